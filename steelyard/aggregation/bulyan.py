"""Bulyan: Krum chooses again and again, then each coordinate is averaged around its median."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelyard.aggregation.base import Group, State, Stateless, Verdict, check_limit, relative
from steelyard.aggregation.krum import scores
from steelyard.aggregation.rows import squared_distances
from steelyard.parsing import NonNegative
from steelyard.scoring.coalitions import Floats
from steelyard.scoring.ordering import median


@dataclass(frozen=True, kw_only=True)
class BulyanParams:
    """`f` attackers are to be stood."""

    f: NonNegative = 1


class Bulyan(Stateless):
    """El Mhamdi, Guerraoui and Rouault 2018, arXiv 1802.07927.

    Krum picks n - 2f updates, each from those left; of every coordinate the n - 4f values closest to the median of the
    picked are averaged. A group too small for f stands (n - 3) // 4 attackers, at least none, which is the mean (our
    choice). Suspicion: the Krum score among all over the median score.
    """

    def __init__(self, params: BulyanParams) -> None:
        self.params = params

    def check(self, rows: int) -> None:
        """N >= 4f + 3."""
        check_limit(rows, self.params.f, 4 * self.params.f + 3, "N >= 4f + 3", "bulyan")

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Pick, then average around the median."""
        n = len(group)
        f = min(self.params.f, max(0, (n - 3) // 4))
        squares_nn = squared_distances(group.rows.gram_nn)
        picked = _picked(squares_nn, n - 2 * f, f)
        step_P = np.empty(group.rows.size, np.float32)
        counts_n = np.zeros(n)
        for place, block_nb in group.rows.blocks():
            chosen_nb = block_nb[picked]
            order_nb = np.argsort(np.abs(chosen_nb - median(chosen_nb)), axis=0, kind="stable")
            kept_nb = order_nb[: n - 4 * f]
            step_P[place] = np.mean(np.take_along_axis(chosen_nb, kept_nb, axis=0), axis=0)
            counts_n[picked] += np.bincount(kept_nb.ravel(), minlength=len(picked))
        return Verdict(
            weights_n=counts_n / np.sum(counts_n),
            suspicion_n=relative(scores(squares_nn, n - f - 2)) if n > 1 else np.ones(1),
            due_n=group.equal_n,
            step_P=step_P,
        )


def _picked(squares_nn: Floats, count: int, f: int) -> NDArray[np.int64]:
    """The rows that Krum picks one after the other, in client order."""
    left = list(range(len(squares_nn)))
    picked: list[int] = []
    while len(picked) < count:
        if count - len(picked) == len(left):
            picked += left
            break
        scores_n = scores(squares_nn[np.ix_(left, left)], len(left) - f - 2)
        picked.append(left.pop(int(np.argmin(scores_n))))
    return np.array(sorted(picked), dtype=np.int64)
