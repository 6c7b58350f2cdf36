"""Krum and Multi-Krum: the updates that lie closest to their closest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelyard.aggregation.base import Group, State, Stateless, Verdict, check_limit, relative
from steelyard.aggregation.rows import squared_distances
from steelyard.parsing import NonNegative
from steelyard.scoring.coalitions import Floats


@dataclass(frozen=True, kw_only=True)
class KrumParams:
    """`f` attackers are to be stood; a score counts the `neighbours` closest others (0: n - f - 2, as published)."""

    f: NonNegative = 1
    neighbours: NonNegative = 0


@dataclass(frozen=True, kw_only=True)
class MultiKrumParams(KrumParams):
    """`keep` updates are averaged (0: n - f)."""

    keep: NonNegative = 0


class Krum(Stateless):
    """Blanchard et al. 2017, arXiv 1703.02757: the update with the least sum of squared distances to its neighbours.

    Of equal scores the first client's counts. A group too small for f stands as many attackers as it can, (n - 3) // 2,
    and one of fewer than three is averaged (our choice). Suspicion: the score over the median score.
    """

    name = "krum"

    def __init__(self, params: KrumParams) -> None:
        self.params = params

    def check(self, rows: int) -> None:
        """N >= 2f + 3."""
        check_limit(rows, self.params.f, 2 * self.params.f + 3, "N >= 2f + 3", self.name)

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Score, and average the best."""
        n = len(group)
        if n < 3:
            return Verdict(weights_n=group.equal_n, suspicion_n=np.ones(n), due_n=group.equal_n)
        f = min(self.params.f, (n - 3) // 2)
        scores_n = scores(squared_distances(group.rows.gram_nn), self.params.neighbours or n - f - 2)
        chosen = np.argsort(scores_n, kind="stable")[: self._kept(n, f)]
        return Verdict(weights_n=among(n, chosen), suspicion_n=relative(scores_n), due_n=group.equal_n)

    def _kept(self, n: int, f: int) -> int:  # noqa: ARG002 - always the one
        return 1


class MultiKrum(Krum):
    """Blanchard et al. 2017, arXiv 1703.02757: the mean of the updates with the lowest scores. Else as `Krum`."""

    name = "multi_krum"
    params: MultiKrumParams

    def __init__(self, params: MultiKrumParams) -> None:
        super().__init__(params)

    def _kept(self, n: int, f: int) -> int:
        return min(n, self.params.keep or n - f)


def scores(squares_nn: Floats, neighbours: int) -> Floats:
    """Each row's sum of squared distances to so many closest others, [n]."""
    others_nn = np.sort(np.where(np.eye(len(squares_nn), dtype=bool), np.inf, squares_nn), axis=1)
    return np.asarray(np.sum(others_nn[:, : max(1, min(neighbours, len(squares_nn) - 1))], axis=1))


def among(n: int, chosen: NDArray[np.int64]) -> Floats:
    """Equal weights for the chosen rows, 0 for the others, [n]."""
    weights_n = np.zeros(n)
    weights_n[chosen] = 1 / len(chosen)
    return weights_n
