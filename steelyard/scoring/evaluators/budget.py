"""What an evaluator that samples may spend in a round, and the loop that spends it. Torch-free.

A plan draws coalitions without knowing any utility, so the coalitions of a smaller budget are the first ones of a
larger one. That makes a budget in seconds replayable: the calls that it came to, given as the budget, stop at the same
draw and give the same bits.

Legend: n players, C distinct coalitions of a plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from steelyard.parsing import NonNegative, NonNegativeFloat, Range
from steelyard.scoring.coalitions import Floats, Game, Masks, all_masks
from steelyard.scoring.evaluators.base import (
    NO_SCORES,
    EvaluatorParams,
    Scores,
    linear_scores,
)
from steelyard.scoring.evaluators.racing import FIRST, best_are_settled, differences, planned_looks

STEP = 32  # coalitions between two looks at the clock or at the standard error


@dataclass(frozen=True, kw_only=True)
class CallsParams(EvaluatorParams):
    """The number of distinct coalitions a round may cost; with 2^n all are there."""

    calls: Annotated[int, Range(2)] = 512

    def within_calls(self, players: int) -> int:
        """The most distinct coalitions of who never goes beyond `calls`."""
        return min(int(2**players), self.calls)


@dataclass(frozen=True, kw_only=True)
class BudgetParams(CallsParams):
    """What a round may cost; sampling ends with whichever comes first.

    At 2^n `calls` the value is exact, below it sampling stops with the draw that reaches it. `target_std_error` is the
    largest standard error of any player to be content with, `seconds` wall time; 0 sets neither. Errors of few draws
    are small by chance, so none is looked at before FIRST calls a player.
    """

    target_std_error: NonNegativeFloat = 0.0
    seconds: NonNegativeFloat = 0.0

    def most_calls(self, players: int) -> int:
        """The most distinct coalitions that a game of so many players can take: one walk more than the budget."""
        return min(int(2**players), self.calls + 2 * players)


@dataclass(frozen=True, kw_only=True)
class RacingParams(BudgetParams):
    """Sampling ends, too, once the `top` best players of a round are settled (0: no matter) with this confidence.

    See `steelyard.scoring.evaluators.racing`. `converged` says whether they were.
    """

    top: NonNegative = 0
    confidence: Annotated[float, Range(0.5, 0.9999)] = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Values as linear functions of the plan's utilities, [n, C], and their standard errors [n], nan where unknown.

    `parts_nm` is what the squared errors are sums of squares of, over draws; None where it is not told.
    """

    coefficients_nC: Floats
    std_error: Floats
    parts_nm: Floats | None = None


class Plan(Protocol):
    """A growing sample of coalitions."""

    def draw(self) -> None:
        """Draw one unit more: a coalition, a pair, an order of the players; it may hold nothing new."""

    def __len__(self) -> int:
        """Distinct coalitions so far, C."""

    def masks(self, start: int = 0) -> Masks:
        """The coalitions from the `start`-th on, in the order in which they were first drawn, [C - start, n]."""

    def estimate(self, values_C: Floats) -> Estimate:
        """What the sample says, given the utilities of all its coalitions."""


class Drawn:
    """The distinct coalitions that a plan has drawn, numbered in the order of their first appearance."""

    def __init__(self, players: int) -> None:
        self.players = players
        self._rows: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, mask: Masks) -> bool:
        return mask.tobytes() in self._rows

    def row(self, mask: Masks) -> int:
        """The number of a coalition, bool [n], which is drawn by asking for it."""
        return self._rows.setdefault(mask.tobytes(), len(self._rows))

    def masks(self, start: int = 0) -> Masks:
        """The coalitions from the `start`-th on, [C - start, n]."""
        data = b"".join(list(self._rows)[start:])
        return np.frombuffer(data, dtype=np.bool_).reshape(-1, self.players)


class DrawnPlan:
    """What plans share: the coalitions drawn so far.

    Args:
        players: n.
        generator: draws them.
        ends: have the empty and the full coalition first.
    """

    def __init__(self, players: int, generator: np.random.Generator, *, ends: bool = False) -> None:
        self._generator = generator
        self._drawn = Drawn(players)
        if ends:
            self._drawn.row(np.zeros(players, dtype=bool))
            self._drawn.row(np.ones(players, dtype=bool))

    def __len__(self) -> int:
        return len(self._drawn)

    def masks(self, start: int = 0) -> Masks:
        """The coalitions from the `start`-th on, [C - start, n]."""
        return self._drawn.masks(start)


def spend(
    game: Game,
    params: BudgetParams,
    make_plan: Callable[[], Plan],
    exact: Callable[[int], Floats],
    clock: Callable[[], float] = time.monotonic,
) -> Scores:
    """Sample until the budget is spent, the target reached, or the best settled.

    Args:
        game: what to sample.
        params: the budget.
        make_plan: makes the plan, which draws from the caller's generator; not called where all coalitions are asked
            for at once.
        exact: gives the exact value's weights [n, 2^n] on all coalitions, in the order of `all_masks`.
        clock: seconds that only grow.
    """
    n = game.players
    if n == 0:
        return NO_SCORES
    everything = int(2**n)
    most = min(params.calls, everything)
    watched = params.seconds > 0 or params.target_std_error > 0
    racing = isinstance(params, RacingParams) and params.top > 0
    if n == 1 or (most == everything and not (watched or racing)):
        return exact_scores(game, exact)
    plan, values, deadline = make_plan(), np.zeros(0), clock() + params.seconds
    looks = planned_looks(n, most) if racing else [most]
    at = 0
    while True:
        goal = min(looks[at], len(plan) + max(STEP, len(plan) // 8)) if watched else looks[at]
        while len(plan) < goal:
            plan.draw()
        if len(plan) == everything:
            return exact_scores(game, exact)
        values = np.concatenate([values, game.values(plan.masks(len(values)))])
        enough = params.target_std_error > 0 and len(plan) >= FIRST * n
        reached = enough and meets(params, plan.estimate(values).std_error)
        if racing and len(plan) >= looks[at]:
            reached = reached or settled(params, plan.estimate(values), values, len(looks))
            at = min(at + 1, len(looks) - 1)
        late = params.seconds > 0 and clock() >= deadline
        if len(plan) >= most or late or reached:
            break
    estimate, converged = plan.estimate(values), reached or not (racing or params.target_std_error > 0)
    return linear_scores(game, plan.masks(), estimate.coefficients_nC, values, estimate.std_error, converged=converged)


def settled(params: BudgetParams, estimate: Estimate, values_C: Floats, looks: int) -> bool:
    """Whether a look, one of so many, settles who the best are; a plan that does not tell its parts settles nothing."""
    assert isinstance(params, RacingParams)
    value_n, parts_nm = estimate.coefficients_nC @ values_C, estimate.parts_nm
    if parts_nm is None:
        return False
    degrees, error = parts_nm.shape[1] - len(value_n), (1 - params.confidence) / looks
    return best_are_settled(value_n, differences(parts_nm), degrees, top=params.top, error=error)


def meets(params: BudgetParams, std_error_n: Floats) -> bool:
    """Whether every player's standard error is known and within the target."""
    return bool((std_error_n <= params.target_std_error).all())


def exact_scores(game: Game, exact: Callable[[int], Floats]) -> Scores:
    """The value from all 2^n coalitions."""
    masks, coefficients = all_masks(game.players), exact(game.players)
    return linear_scores(game, masks, coefficients, game.values(masks), np.zeros(game.players))
