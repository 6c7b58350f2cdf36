"""When a sample is large enough to say who the best are: looks planned ahead, and what each has to show. Torch-free.

Sampling that ends as soon as somebody leads would often end on a lucky draw. So the looks are planned before anything
is drawn, and the error that the user allows is shared among them and among the pairs that a look compares (Bonferroni):
the best `top` are settled where each of them leads each other player by more than Student's quantile of

    (1 - confidence) / (looks x top (n - top))

standard errors of their difference. A wrong decision needs a player that is not among the best to lead, at some look,
one that is, and there are no more such pairs than that. Our choice throughout. It rests on the standard errors, which
few draws tell badly: no look comes before FIRST calls a player, and degrees of freedom are the draws less the players.

Legend: n players, m draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats

FIRST = 6


def planned_looks(players: int, most: int) -> list[int]:
    """At how many calls to look, ascending: two thirds before each, down to FIRST a player; the last is `most`."""
    looks = [most]
    while (sooner := 2 * looks[0] // 3) >= FIRST * players:
        looks.insert(0, sooner)
    return looks


def differences(parts_nm: Floats) -> Floats:
    """Standard errors of the players' differences, [n, n], from what the errors' squares are sums of squares of."""
    squares_nn = parts_nm @ parts_nm.T
    own_n = np.diag(squares_nn)
    error_nn: Floats = np.sqrt(np.maximum(own_n[:, None] + own_n - 2 * squares_nn, 0.0))
    return error_nn


def best_are_settled(value_n: Floats, error_nn: Floats, degrees: float, *, top: int, error: float) -> bool:
    """Whether the `top` best lead all others significantly.

    Args:
        value_n: estimates.
        error_nn: standard errors of their differences; nan where unknown, which settles nothing.
        degrees: of freedom that the errors have, taken for 1 at least.
        top: how many; all players are settled always.
        error: the probability of a wrong decision that this look may have.
    """
    from scipy.stats import t  # slow to load, and few experiments need it

    order: NDArray[np.int64] = np.argsort(-value_n, kind="stable")
    best, others = order[:top], order[top:]
    if not len(others):
        return True
    lead_bo = value_n[best][:, None] - value_n[others]
    quantile = float(t.isf(error / lead_bo.size, max(degrees, 1.0)))
    return bool((lead_bo > quantile * error_nn[np.ix_(best, others)]).all())
