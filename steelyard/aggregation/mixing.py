"""Steps before a rule: they replace updates by means of some of them, so that no rule is pulled apart by variety.

A step is a matrix that makes rows of updates. It works on inner products and mixes nothing before a rule looks.

Legend: n rows, m rows after the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from steelyard.aggregation.base import Group, check_limit
from steelyard.aggregation.rows import squared_distances
from steelyard.parsing import NonNegative, Positive
from steelyard.scoring.coalitions import Floats


class Step(Protocol):
    """Mixes rows; `keeps_clients` says that row k after it still stands for client k."""

    keeps_clients: bool

    def check(self, rows: int) -> int:
        """The rows that are left of so many; raises UserError if those are too few for the parameters."""

    def matrix(self, group: Group) -> tuple[Floats, NDArray[np.int64]]:
        """What mixes a group, [m, n], and the row after the step that stands for each row before it, [n]."""


@dataclass(frozen=True, kw_only=True)
class NnmParams:
    """`f` of the updates are left out of each mean."""

    f: NonNegative = 1


class Nnm:
    """Nearest neighbour mixing, Allouah et al. 2023, arXiv 2302.01772: each update becomes a mean of its nearest.

    The mean is over n - f, itself included; a group of n <= 2f leaves out (n - 1) // 2 (our choice).
    """

    keeps_clients = True

    def __init__(self, params: NnmParams) -> None:
        self.params = params

    def check(self, rows: int) -> int:
        """N > 2f."""
        check_limit(rows, self.params.f, 2 * self.params.f + 1, "N >= 2f + 1", "nnm")
        return rows

    def matrix(self, group: Group) -> tuple[Floats, NDArray[np.int64]]:
        """Each row the mean of its nearest, itself first."""
        n = len(group)
        near = n - min(self.params.f, (n - 1) // 2)
        squares_nn = squared_distances(group.rows.gram_nn)
        np.fill_diagonal(squares_nn, -1.0)  # itself before its copies
        nearest = np.argsort(squares_nn, axis=1, kind="stable")[:, :near]
        matrix_nn = np.zeros((n, n))
        np.put_along_axis(matrix_nn, nearest, 1 / near, axis=1)
        return matrix_nn, np.arange(n)


@dataclass(frozen=True, kw_only=True)
class BucketingParams:
    """`size` updates are in each bucket, the last one may have fewer."""

    size: Positive = 2


class Bucketing:
    """Karimireddy, He and Jaggi 2022, arXiv 2006.09365: clients are shuffled into buckets, each replaced by its mean.

    The roster is shuffled once a round; a coalition keeps that order (our choice), so that its buckets depend on its
    members alone. A client's suspicion is its bucket's.
    """

    keeps_clients = False

    def __init__(self, params: BucketingParams) -> None:
        self.params = params

    def check(self, rows: int) -> int:
        """As many rows as buckets."""
        return -(-rows // self.params.size)

    def matrix(self, group: Group) -> tuple[Floats, NDArray[np.int64]]:
        """Each row the mean of a bucket."""
        places = group.setting.generator("bucketing").permutation(group.setting.clients)
        order = np.argsort(np.argsort(places)[list(group.members)], kind="stable")
        bucket_n = np.empty(len(group), np.int64)
        bucket_n[order] = np.arange(len(group)) // self.params.size
        inside_mn = bucket_n == np.arange(bucket_n.max() + 1)[:, None]
        return inside_mn / np.sum(inside_mn, axis=1, keepdims=True), bucket_n


def mix(step: Step, group: Group) -> tuple[Group, Floats, NDArray[np.int64]]:
    """The group after a step, its matrix, and the row that stands for each row before it.

    A bucket counts the samples of its members and goes by the first one's place.
    """
    matrix_mn, stands_n = step.matrix(group)
    rows = group.rows.mixed(matrix_mn)
    if step.keeps_clients:
        return replace(group, rows=rows), matrix_mn, stands_n
    inside_mn = matrix_mn > 0
    mixed = replace(
        group,
        rows=rows,
        samples=tuple(sum(n for n, inside in zip(group.samples, row, strict=True) if inside) for row in inside_mn),
        members=tuple(group.members[int(np.argmax(row))] for row in inside_mn),
    )
    return mixed, matrix_mn, stands_n
