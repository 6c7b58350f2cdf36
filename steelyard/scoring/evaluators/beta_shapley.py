"""Beta Shapley: marginals weighted by the size of the coalition joined (Kwon & Zou 2022, arXiv 2110.14049). Torch-free.

    value of k = sum over s = 0..n-1 of q_s  mean over S without k, |S| = s, of V(S + k) - V(S)
    q_s proportional to C(n - 1, s) B(s + beta, n - 1 - s + alpha),  sum of q_s = 1

Beta(1, 1) is the Shapley value, q_s = 1/n. A larger alpha looks at small coalitions, a larger beta at large ones. Only
(1, 1) adds up to V(N) - V(empty). Beyond the budget for all coalitions, antithetic orders are walked and each place's
marginal counts n q_s: unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, exp, lgamma, log

import numpy as np

from steelyard.parsing import PositiveFloat
from steelyard.scoring.coalitions import Floats, Game, all_masks
from steelyard.scoring.evaluators.base import Scores
from steelyard.scoring.evaluators.budget import Plan, RacingParams, spend
from steelyard.scoring.evaluators.walks import Walks


@dataclass(frozen=True, kw_only=True)
class BetaShapleyParams(RacingParams):
    """The two parameters of the beta distribution; 16 and 1 are the paper's choice for finding harmful data."""

    alpha: PositiveFloat = 16.0
    beta: PositiveFloat = 1.0


class BetaShapley:
    """The Beta-Shapley value of one round's game."""

    def __init__(self, params: BetaShapleyParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The budget, and one draw more."""
        return self.params.most_calls(players)

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Beta-Shapley values of the players; the generator is not touched where exact."""
        alpha, beta = self.params.alpha, self.params.beta

        def plan() -> Plan:
            n = game.players
            return Walks(n, generator, antithetic=True, place_weight_n=n * size_weights(n, alpha, beta))

        def exact(players: int) -> Floats:
            return semivalue_coefficients(size_weights(players, alpha, beta))

        return spend(game, self.params, plan, exact)


def size_weights(players: int, alpha: float, beta: float) -> Floats:
    """What the mean marginal over coalitions of each size 0..n-1 counts for, [n]; they add up to 1."""
    n = players
    logs = [
        log(comb(n - 1, s)) + lgamma(s + beta) + lgamma(n - 1 - s + alpha) - lgamma(n - 1 + alpha + beta)
        for s in range(n)
    ]
    weights = np.array([exp(value - max(logs)) for value in logs])
    normalized: Floats = weights / weights.sum()
    return normalized


def semivalue_coefficients(size_weights_n: Floats) -> Floats:
    """A semivalue as weights on all coalitions, [n, 2^n], from what each size 0..n-1 counts for."""
    n = len(size_weights_n)
    masks = all_masks(n)
    sizes = masks.sum(axis=1)
    weights = np.array([weight / comb(n - 1, s) for s, weight in enumerate(size_weights_n.tolist())] + [0.0])
    coefficients: Floats = np.where(masks, weights[sizes - 1][:, None], -weights[sizes][:, None]).T
    return coefficients
