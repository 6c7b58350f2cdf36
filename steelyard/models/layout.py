"""What a state vector [D] holds, by name and place. It knows no network.

Legend: D is the number of float values of a state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from steelyard.bundle import TensorSpec

VARIANCE = "running_var"  # torch's name for a normalization's running variance, the one value that can't be below 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a state vector [D], in order; the first `trainable` values are parameters."""

    specs: tuple[TensorSpec, ...]
    size: int
    trainable: int


def places(specs: tuple[TensorSpec, ...]) -> Iterator[tuple[TensorSpec, slice]]:
    """Each tensor and its place in the vector."""
    at = 0
    for spec in specs:
        end = at + prod(spec.shape)
        yield spec, slice(at, end)
        at = end


def variances(specs: tuple[TensorSpec, ...]) -> tuple[tuple[str, slice], ...]:
    """Names and places of the running variances."""
    return tuple((spec.name, place) for spec, place in places(specs) if spec.name.rpartition(".")[2] == VARIANCE)
