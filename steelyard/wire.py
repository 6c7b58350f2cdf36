"""The wire's messages and the records that they stand for; the only module that imports the generated messages.

What comes off the wire is checked here, before anybody allocates for it. Nothing here knows of sockets or gRPC.
"""

from __future__ import annotations

from typing import Protocol

from protos import federation_pb2 as pb
from steelyard.bundle import Manifest, TensorSpec, check_number
from steelyard.errors import BadBundleError, RefusedError

__all__ = [
    "PROTOCOL_VERSION",
    "manifest_from_wire",
    "manifest_to_wire",
    "pb",
    "raise_if_refused",
    "refusal_name",
    "refusal_value",
]

PROTOCOL_VERSION = 2


class Reply(Protocol):
    """Any reply that can refuse."""

    @property
    def refusal(self) -> int:
        """A value of the wire's `Refusal`; 0: not refused."""

    @property
    def detail(self) -> str:
        """One line for a person, when refused."""


def manifest_to_wire(manifest: Manifest) -> pb.Manifest:
    """A manifest as its message; the byte count travels with it, so that the peer can check the shapes against it."""
    tensors = [pb.Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in manifest.tensors]
    return pb.Manifest(tensors=tensors, nbytes=manifest.nbytes, sha256=manifest.sha256)


def manifest_from_wire(message: pb.Manifest) -> Manifest:
    """A peer's manifest, checked; allocates nothing of the size that it announces.

    Raises:
        BadBundleError: it is malformed, or the announced byte count is not the shapes'.
    """
    check_number(len(message.tensors))  # of 8 MiB there can be four million: a record of each would cost seconds
    specs = tuple(TensorSpec(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in message.tensors)
    manifest = Manifest(specs, message.sha256)
    manifest.check()
    if message.nbytes != manifest.nbytes:
        raise BadBundleError(
            "BAD_LAYOUT", f"{manifest.nbytes} bytes expected from the shapes, {message.nbytes} announced"
        )
    return manifest


def refusal_name(value: int) -> str:
    """The name of a refusal; one that a newer peer knows and we do not is named by its number."""
    return pb.Refusal.Name(pb.Refusal.ValueType(value)) if value in pb.Refusal.values() else f"REFUSAL_{value}"


def refusal_value(name: str) -> int:
    """The wire's number of a refusal; `ValueError` for a name that the protocol does not have."""
    return int(pb.Refusal.Value(name))


def raise_if_refused(message: Reply) -> None:
    """Raise a reply's refusal, if it is one.

    Raises:
        RefusedError: with the refusal's name and the peer's line for a person.
    """
    if message.refusal != pb.REFUSAL_UNSPECIFIED:
        raise RefusedError(refusal_name(message.refusal), message.detail)
