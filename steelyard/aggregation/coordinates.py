"""Rules that look at each coordinate alone: the median and the trimmed mean.

A client's weight is the mean over coordinates of its part there; equal values share theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.aggregation.base import Group, State, Stateless, Verdict, check_limit, relative
from steelyard.aggregation.rows import Rows, Vector
from steelyard.parsing import NonNegative
from steelyard.scoring.coalitions import Floats
from steelyard.scoring.ordering import ordered


@dataclass(frozen=True, kw_only=True)
class MedianParams:
    """None."""


@dataclass(frozen=True, kw_only=True)
class TrimmedMeanParams:
    """`f` values are cut off at each end of every coordinate."""

    f: NonNegative = 1


class Median(Stateless):
    """Yin et al. 2018, arXiv 1803.01498: the coordinate-wise median; of an even number, the mean of the middle two.

    Suspicion: distance to the median over the median such distance (our choice).
    """

    def __init__(self, params: MedianParams) -> None:
        self.params = params

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Take the middle of each coordinate."""
        step_P, weights_n, far_n = trimmed(group.rows, (len(group) - 1) // 2)
        return Verdict(weights_n=weights_n, suspicion_n=relative(far_n), due_n=group.equal_n, step_P=step_P)


class TrimmedMean(Stateless):
    """Yin et al. 2018, arXiv 1803.01498: the mean of each coordinate without its f lowest and f highest values.

    A group of n <= 2f cuts (n - 1) // 2 off each end. Suspicion: how much of its weight of 1 / n a client lost, so that
    0 is as much as the others have on average, 1 is cut off everywhere, and below 0 it is in the middle more often.
    """

    def __init__(self, params: TrimmedMeanParams) -> None:
        self.params = params

    def check(self, rows: int) -> None:
        """N > 2f."""
        check_limit(rows, self.params.f, 2 * self.params.f + 1, "N >= 2f + 1", "trimmed_mean")

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Trim and average each coordinate."""
        step_P, weights_n, _ = trimmed(group.rows, min(self.params.f, (len(group) - 1) // 2))
        lost_n = 1.0 - weights_n * len(group)
        return Verdict(weights_n=weights_n, suspicion_n=lost_n, due_n=group.equal_n, step_P=step_P)


def trimmed(rows: Rows, f: int) -> tuple[Vector, Floats, Floats]:
    """The coordinate-wise mean without the f lowest and f highest values.

    Returns:
        The step [P], each row's mean weight over the coordinates [n], and its distance to the step [n].
    """
    n = len(rows)
    step_P = np.empty(rows.size, np.float32)
    weights_n, squares_n = np.zeros(n), np.zeros(n)
    for place, block_nb in rows.blocks():
        kept_rb = ordered(block_nb, f, n - f)
        kept_b = np.mean(kept_rb, axis=0)
        within_nb = (block_nb >= kept_rb[0]) & (block_nb <= kept_rb[-1])
        weights_n += np.sum(within_nb / np.sum(within_nb, axis=0), axis=1)
        squares_n += np.sum((block_nb - kept_b) ** 2, axis=1)
        step_P[place] = kept_b
    return step_P, weights_n / rows.size, np.sqrt(squares_n)
