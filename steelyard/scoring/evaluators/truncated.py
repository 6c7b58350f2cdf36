"""Walks of random orders that stop early, one coalition at a time, within a budget. Torch-free.

Where a walk is cut depends on the utilities, so no plan can be drawn ahead. A walk that needs a coalition beyond the
budget (its calls are spent, or its seconds) is dropped, and sampling ends there: the calls of a budget in seconds,
given as the budget, end at the same walk.

Legend: n players, m orders, C distinct coalitions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats, Game, Masks
from steelyard.scoring.evaluators.budget import BudgetParams, Drawn

ROUNDING = 1e-9  # below any difference of two means over examples: what a threshold takes for equal

Order = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One order: the coalition's row after each of its steps 0..n, and the step after which it was cut (n: never).

    After the cut the row stays the same, so that the players there have no marginal.
    """

    order: Order
    rows: tuple[int, ...]
    cut: int


class Walker:
    """Walks orders over one game; remembers utilities by coalition.

    Args:
        game: what to walk over; the empty and the full coalition are asked for at once.
        params: the budget.
    """

    def __init__(self, game: Game, params: BudgetParams) -> None:
        n = game.players
        self._game, self._params = game, params
        self._deadline = time.monotonic() + params.seconds
        self._drawn = Drawn(n)
        ends = np.array([[False] * n, [True] * n])
        for mask in ends:
            self._drawn.row(mask)
        self.values: list[float] = game.values(ends).tolist()

    @property
    def gain(self) -> float:
        """V(N) - V(empty)."""
        return self.values[1] - self.values[0]

    def masks(self) -> Masks:
        """All coalitions evaluated, the empty and the full one first, [C, n]."""
        return self._drawn.masks()

    def walk(self, order: Order, tolerance: float) -> Walk | None:
        """Walk one order until the utility is closer than `tolerance` to V(N); None where the budget ends before."""
        n = len(order)
        mask, rows, cut = np.zeros(n, dtype=bool), [0], n
        for step, player in enumerate(order.tolist()):
            if cut == n and abs(self.values[1] - self.values[rows[-1]]) < tolerance - ROUNDING:
                cut = step
            mask[player] = True
            row = self._row(mask) if cut == n else rows[-1]
            if row is None:
                return None
            rows.append(row)
        return Walk(order=order, rows=tuple(rows), cut=cut)

    def _row(self, mask: Masks) -> int | None:
        if mask in self._drawn:
            return self._drawn.row(mask)
        late = self._params.seconds > 0 and time.monotonic() >= self._deadline
        if late or len(self.values) >= self._params.calls:
            return None
        self.values.extend(self._game.values(mask[None]).tolist())
        return self._drawn.row(mask)


def walk_marginals(walks: list[Walk], values: list[float], *, shares_rest: bool) -> Floats:
    """Each player's marginal in each order, [m, n].

    `shares_rest` gives the players after a cut equal parts of what is left to V(N), instead of nothing.
    """
    values_C, marginals = np.array(values), np.zeros((len(walks), len(walks[0].order)))
    for marginal_n, walk in zip(marginals, walks, strict=True):
        marginal_n[walk.order] = np.diff(values_C[list(walk.rows)])
        if shares_rest and walk.cut < len(walk.order):
            rest = walk.order[walk.cut :]
            marginal_n[rest] = (values_C[1] - values_C[walk.rows[-1]]) / len(rest)
    return marginals


def walk_coefficients(walks: list[Walk], coalitions: int, *, shares_rest: bool) -> Floats:
    """The mean of `walk_marginals` over orders as weights on the coalitions, [n, C]; the cuts count as given."""
    counts = np.zeros((len(walks[0].order), coalitions))
    for walk in walks:
        np.add.at(counts, (walk.order, np.array(walk.rows[1:])), 1.0)
        np.add.at(counts, (walk.order, np.array(walk.rows[:-1])), -1.0)
        if shares_rest and walk.cut < len(walk.order):
            rest = walk.order[walk.cut :]
            counts[rest, 1] += 1 / len(rest)
            counts[rest, walk.rows[-1]] -= 1 / len(rest)
    return counts / len(walks)


def known(walks: list[Walk], std_error_n: Floats, first: int = 0) -> Floats:
    """Standard errors, nan for players that stand behind the cut in every order: of them nothing was evaluated.

    Places before the `first` do not count: who stands there is no matter of chance.
    """
    met = np.zeros(len(std_error_n), dtype=bool)
    for walk in walks:
        met[walk.order[first : walk.cut]] = True
    return np.where(met, std_error_n, np.nan)
