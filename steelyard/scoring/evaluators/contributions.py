"""What each player did to each validation example: a semivalue of a round's game, taken apart. Torch-free.

A utility is a mean over validation examples and a semivalue is linear in it, so it is the mean over examples of each
example's own semivalue. Scores that look at labels or at folds of the examples begin here.

Legend: n players, C coalitions, E validation examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.scoring.coalitions import Floats, Game, all_masks
from steelyard.scoring.evaluators.base import example_values
from steelyard.scoring.evaluators.beta_shapley import semivalue_coefficients
from steelyard.scoring.evaluators.walks import Walks


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Semivalues example by example, [n, E], and the standard error of their mean over examples, [n]."""

    examples_nE: Floats
    std_error: Floats


def contributions(game: Game, size_weights_n: Floats, generator: np.random.Generator, *, pairs: int) -> Contributions:
    """The semivalue of a game with players, exact or by antithetic orders.

    Args:
        game: has validation examples behind its values.
        size_weights_n: what the mean marginal over coalitions of each size 0..n-1 counts for.
        generator: draws the orders.
        pairs: orders to walk forwards and backwards; 0: exact, by all coalitions that count.
    """
    n = game.players
    if pairs == 0:
        masks, coefficients = all_masks(n), semivalue_coefficients(size_weights_n)
        counts = coefficients.any(axis=0)
        masks, coefficients = masks[counts], coefficients[:, counts]
        return Contributions(examples_nE=example_values(game, masks, coefficients), std_error=np.zeros(n))
    plan = Walks(n, generator, antithetic=True, place_weight_n=n * size_weights_n)
    for _ in range(pairs):
        plan.draw()
    estimate = plan.estimate(game.values(plan.masks()))
    examples_nE = example_values(game, plan.masks(), estimate.coefficients_nC)
    return Contributions(examples_nE=examples_nE, std_error=estimate.std_error)
