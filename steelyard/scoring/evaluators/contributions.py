"""What each player did to each validation example: a semivalue of a round's game, taken apart. Torch-free.

A utility is a mean over validation examples and a semivalue is linear in it, so it is the mean over examples of each
example's own semivalue. Scores that look at labels or at folds of the examples begin here.

Legend: n players, C coalitions, E validation examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from steelyard.scoring.coalitions import Floats, Game, Masks, all_masks
from steelyard.scoring.evaluators.base import CHUNK, example_values
from steelyard.scoring.evaluators.beta_shapley import semivalue_coefficients
from steelyard.scoring.evaluators.walks import Walks


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Semivalues example by example, [n, E], and the standard error of their mean over examples, [n].

    `draws_nmF` is how far each pair of orders is from the mean of all on each fold of the examples, None where exact.
    """

    examples_nE: Floats
    std_error: Floats
    draws_nmF: Floats | None = None


def contributions(
    game: Game, size_weights_n: Floats, generator: np.random.Generator, *, pairs: int, folds: int = 1
) -> Contributions:
    """The semivalue of a game with players, exact or by antithetic orders.

    Args:
        game: has validation examples behind its values.
        size_weights_n: what the mean marginal over coalitions of each size 0..n-1 counts for.
        generator: draws the orders.
        pairs: orders to walk forwards and backwards, 2 at least; 0: exact, by all coalitions that count.
        folds: example e is in fold e mod `folds`; no more than there are examples.
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
    masks = plan.masks()
    estimate = plan.estimate(game.values(masks))
    examples_nE = example_values(game, masks, estimate.coefficients_nC)
    parts = [plan.estimate(values_C).parts_nm for values_C in _fold_values(game, masks, folds)]
    draws_nmF = np.stack([part for part in parts if part is not None], axis=2) * sqrt(pairs * (pairs - 1))
    return Contributions(examples_nE=examples_nE, std_error=estimate.std_error, draws_nmF=draws_nmF)


def _fold_values(game: Game, masks_Cn: Masks, folds: int) -> Floats:
    """The coalitions' utilities on each fold alone, [F, C]."""
    chunks = []
    for at in range(0, len(masks_Cn), CHUNK):
        examples_CE = game.examples(masks_Cn[at : at + CHUNK])
        chunks.append([examples_CE[:, fold::folds].mean(axis=1) for fold in range(folds)])
    return np.concatenate(chunks, axis=1)
