"""Truncated Monte Carlo: random orders, each walked until V(N) is nearly reached. Torch-free.

Ghorbani & Zou 2019 (arXiv 1904.02868). Players after the cut get nothing from that order, so values are biased towards
0 and add up to V(N) - V(empty) only within `tolerance`. Of a single player the bias has no such bound: what one would
have added after a cut another may have taken away again. The standard error knows the sampling of orders, not that
bias; it is nan for a player that stood behind the cut in every order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.parsing import NonNegativeFloat, Positive
from steelyard.scoring.coalitions import Floats, Game
from steelyard.scoring.evaluators.base import NO_SCORES, Scores, linear_scores
from steelyard.scoring.evaluators.budget import BudgetParams, meets
from steelyard.scoring.evaluators.racing import FIRST
from steelyard.scoring.evaluators.truncated import Walk, Walker, known, walk_coefficients, walk_marginals


@dataclass(frozen=True, kw_only=True)
class TmcParams(BudgetParams):
    """When a walk is cut, in units of the utility (our choice), and the most orders to walk."""

    tolerance: NonNegativeFloat = 0.01
    permutations: Positive = 1000


class Tmc:
    """Truncated Monte Carlo Shapley value of one round's game."""

    def __init__(self, params: TmcParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The budget; no walk goes beyond it."""
        return self.params.within_calls(players)

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Mean marginals over truncated orders; the standard error is their spread over orders."""
        n = game.players
        if n == 0:
            return NO_SCORES
        walker, walks, look = Walker(game, self.params), list[Walk](), 8
        reached = self.params.target_std_error == 0
        while len(walks) < self.params.permutations:
            walk = walker.walk(generator.permutation(n), self.params.tolerance)
            if walk is None:
                break
            walks.append(walk)
            if walk.cut == 0:  # as every other one would be
                reached = True
                break
            enough = max(len(walks), len(walker.values)) >= FIRST * n
            if self.params.target_std_error > 0 and enough and len(walks) >= look:
                look += len(walks) // 4
                if reached := meets(self.params, _std_error(walks, walker.values)):
                    break
        if not walks:
            return none_walked(game, walker)
        coefficients = walk_coefficients(walks, len(walker.values), shares_rest=False)
        return linear_scores(
            game,
            walker.masks(),
            coefficients,
            np.array(walker.values),
            _std_error(walks, walker.values),
            converged=reached,
        )


def _std_error(walks: list[Walk], values: list[float]) -> Floats:
    marginals = walk_marginals(walks, values, shares_rest=False)
    count, n = marginals.shape
    if count < 2:
        return np.full(n, 0.0 if n == 1 else np.nan)
    return known(walks, marginals.std(axis=0, ddof=1) / np.sqrt(count))


def none_walked(game: Game, walker: Walker) -> Scores:
    """A budget too small for a single walk: equal parts of V(N) - V(empty), their error unknown."""
    n = game.players
    coefficients = np.tile(np.array([-1.0, 1.0] + [0.0] * (len(walker.values) - 2)) / n, (n, 1))
    return linear_scores(
        game, walker.masks(), coefficients, np.array(walker.values), np.full(n, np.nan), converged=False
    )
