"""An update on its way, from its announcement to its receipt, as records. The coordinator moves them along."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from steelyard.bundle import BundleFile, TensorSpec
from steelyard.transport.base import Transfer


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of an update; `refusal` is empty when it was accepted and is durable."""

    round: int
    sha256: str
    refusal: str = ""
    detail: str = ""


@dataclass(eq=False, slots=True)
class Upload:
    """An announced update whose bytes are expected, are coming, or are being made durable."""

    client: int
    round: int
    transfer: Transfer
    file: BundleFile
    started: float
    arrived: int = 0  # bytes so far
    claimed: bool = False  # its bytes are verified and it is being made durable: it can't be superseded any more
    awaited: bool = False
    outcome: Future[Receipt] = field(default_factory=Future)


def layout_difference(expected: tuple[TensorSpec, ...], got: tuple[TensorSpec, ...]) -> str:
    """The first difference between the tensors that an update must have and those announced, for a person."""
    for ours, theirs in zip(expected, got, strict=False):
        if ours != theirs:
            want = f"{ours.name} {ours.dtype} {list(ours.shape)}"
            return f"{want} expected, got {theirs.name} {theirs.dtype} {list(theirs.shape)}"
    return f"{len(expected)} tensors expected, got {len(got)}"
