"""The least core: the payment that leaves the worst-treated coalition the smallest grievance. Torch-free.

    minimize e over phi, e   with   sum of phi over S >= U(S) - e for all S,   sum of phi = U(N),   U = V - V(empty)

Yan & Procaccia 2021 (arXiv 2009.08576), who also take the phi of least norm among the optima and sample the constraints
where there are too many. It rewards what no group could do better with on its own: values add up to U(N), players alike
get alike, a null player may get something.

Sampled, constraints are missing, so e is biased downwards and some coalition is treated worse than e says. The standard
error is a delete-a-group jackknife over the sampled coalitions: rough, since the value is no smooth function of them,
and nan below ENOUGH coalitions a player, or where no group changes the payments: nobody saw what binds them.
The error over validation examples is not known (nan).

Legend: n players, C coalitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.scoring.coalitions import Floats, Game, Masks, all_masks
from steelyard.scoring.evaluators.base import NO_SCORES, Scores
from steelyard.scoring.evaluators.budget import CallsParams, Drawn
from steelyard.scoring.evaluators.regression import sum_zero_basis

GROUPS, ENOUGH = 8, 4
SLACK = 1e-9  # of the utilities' range: what the norm's minimization may give way, as the optimum e is a float
TOLERANCE = 1e-7  # by which least squares may miss a bound of utilities scaled to 1


@dataclass(frozen=True, kw_only=True)
class LeastCoreParams(CallsParams):
    """With 2^n calls all constraints are there."""


class LeastCore:
    """The least core of one round's game."""

    def __init__(self, params: LeastCoreParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The budget, which is met exactly."""
        return self.params.within_calls(players)

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Payments to the players; fair coins draw the coalitions where the budget does not hold all."""
        n = game.players
        if n == 0:
            return NO_SCORES
        exact = self.params.calls >= 2**n
        masks = all_masks(n) if exact else drawn_by_coins(n, self.params.calls, generator)
        full = masks.all(axis=1)
        values = game.values(masks)
        worth = values - values[~masks.any(axis=1)]
        gain = float(worth[full][0])
        value = least_core(masks[~full], worth[~full], gain)
        return Scores(
            value=value,
            std_error=np.zeros(n) if exact else _jackknife(masks[~full], worth[~full], gain),
            validation_std_error=np.full(n, 0.0 if game.examples(masks[:1]).shape[1] == 0 else np.nan),
            calls=game.calls,
        )


def drawn_by_coins(players: int, count: int, generator: np.random.Generator) -> Masks:
    """The empty and the full coalition, and others by fair coins, each once, [count, n]."""
    drawn = Drawn(players)
    drawn.row(np.zeros(players, dtype=bool))
    drawn.row(np.ones(players, dtype=bool))
    while len(drawn) < count:
        drawn.row(generator.random(players) < 0.5)
    return drawn.masks()


def least_core(masks_Cn: Masks, worth_C: Floats, gain: float) -> Floats:
    """The least-norm payment [n] in the least core of these constraints; payments add up to `gain`.

    Among the optima of the linear program the nearest to equal parts is that of least norm; it is a least-distance
    problem, which non-negative least squares solve (Lawson & Hanson 1974).
    """
    from scipy.optimize import linprog  # slow to load, and few experiments need it

    n = masks_Cn.shape[1]
    scale = max(float(np.abs(worth_C).max(initial=0.0)), abs(gain))
    if n == 1 or scale == 0:
        return np.full(n, gain / n)
    members = masks_Cn.astype(np.float64)
    lack_C = (worth_C - members.sum(axis=1) * gain / n) / scale  # of equal parts
    basis = sum_zero_basis(n)
    sums_Cq = members @ basis
    program = linprog(
        np.append(np.zeros(n - 1), 1.0),
        A_ub=np.hstack([-sums_Cq, -np.ones((len(members), 1))]),
        b_ub=-lack_C,
        bounds=(None, None),
        method="highs",
    )
    assert program.status == 0, program.message
    payment_q = _nearest(sums_Cq, lack_C - program.fun - SLACK)
    # The optimum may be a little below what any payment reaches, as far as the program's tolerance goes, and least
    # squares fail at some slacks for rounding alone.
    reached = max(program.fun, float((lack_C - sums_Cq @ program.x[:-1]).max()))
    for slack in (SLACK, 2 * SLACK, 10 * SLACK, 100 * SLACK):
        if payment_q is None:
            payment_q = _nearest(sums_Cq, lack_C - reached - slack)
    if payment_q is None:  # an optimum, if not the one of least norm
        payment_q = program.x[:-1]
    payment: Floats = gain / n + scale * basis @ payment_q
    return payment


def _nearest(sums_Cq: Floats, bound_C: Floats) -> Floats | None:
    """The point of least norm whose sums reach the bounds; None where there is none."""
    from scipy.optimize import nnls

    system, target = np.vstack([sums_Cq.T, bound_C]), np.append(np.zeros(sums_Cq.shape[1]), 1.0)
    weights, distance = nnls(system, target)
    rest = system @ weights - target
    if not distance > 0:
        return None
    point_q: Floats = rest[:-1] / -rest[-1]
    return point_q if float((bound_C - sums_Cq @ point_q).max()) <= TOLERANCE else None


def _jackknife(masks_Cn: Masks, worth_C: Floats, gain: float) -> Floats:
    """Spread of the payments when each of GROUPS groups of sampled coalitions is left out; the empty one stays."""
    n = masks_Cn.shape[1]
    if len(masks_Cn) + 1 < ENOUGH * n:
        return np.full(n, np.nan)
    group = np.arange(len(masks_Cn)) % GROUPS
    kept = [(group != g) | ~masks_Cn.any(axis=1) for g in range(GROUPS)]
    payments = np.array([least_core(masks_Cn[keep], worth_C[keep], gain) for keep in kept])
    if np.ptp(payments, axis=0).max() <= TOLERANCE * max(float(np.abs(worth_C).max()), abs(gain)):
        return np.full(n, np.nan)
    error: Floats = np.sqrt((GROUPS - 1) / GROUPS * ((payments - payments.mean(axis=0)) ** 2).sum(axis=0))
    return error
