"""The median of Shapley values over disjoint folds of the validation examples. Torch-free.

Our own use of an old idea (median of means): a value that rests on a few validation examples, such as an update fitted
to guessed ones, does not carry a majority of the folds. Example e is in fold e mod `folds`; a fold's value is FedSV on
its examples alone. With one fold it is FedSV. Medians do not add up to the utility. Where orders are sampled, the error
is a bootstrap's over their pairs, since the median of folds errs more than their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import Annotated

import numpy as np

from steelyard.parsing import Range
from steelyard.scoring.coalitions import Floats, Game
from steelyard.scoring.evaluators.base import NO_SCORES, Scores
from steelyard.scoring.evaluators.company import size_weights
from steelyard.scoring.evaluators.contributions import contributions
from steelyard.scoring.evaluators.fedsv import FedSV, FedSVParams

RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class FoldMedianParams(FedSVParams):
    """`folds` of the validation examples; no more than there are examples."""

    folds: Annotated[int, Range(1, 1000)] = 5


class FoldMedian:
    """The median over folds of one round's Shapley values."""

    def __init__(self, params: FoldMedianParams) -> None:
        self.params = params
        self._fedsv = FedSV(params)

    def most_calls(self, players: int) -> int:
        """FedSV's."""
        return self._fedsv.most_calls(players)

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Medians; the error over examples is a normal median's, from the spread of the folds."""
        n = game.players
        if n == 0:
            return NO_SCORES
        folds = min(self.params.folds, game.examples(np.zeros((1, n), dtype=bool)).shape[1])
        found = contributions(game, size_weights(n, 0), generator, pairs=self._fedsv.pairs(n), folds=folds)
        values_nF = np.stack([found.examples_nE[:, at::folds].mean(axis=1) for at in range(folds)], axis=1)
        spread_n = values_nF.std(axis=1, ddof=1) if folds > 1 else np.full(n, np.nan)
        return Scores(
            value=np.median(values_nF, axis=1),
            std_error=np.zeros(n) if found.draws_nmF is None else _bootstrap(values_nF, found.draws_nmF, generator),
            validation_std_error=spread_n * sqrt(pi / 2 / folds),
            calls=game.calls,
        )


def _bootstrap(values_nF: Floats, draws_nmF: Floats, generator: np.random.Generator) -> Floats:
    """Spread of the median over folds when the pairs of orders are drawn again with replacement, [n]."""
    pairs = draws_nmF.shape[1]
    weights_Rm = generator.multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES) / pairs
    medians_Rn = np.median(values_nF + np.einsum("rm,nmf->rnf", weights_Rm, draws_nmF), axis=2)
    error_n: Floats = medians_Rn.std(axis=0, ddof=1) * sqrt(pairs / (pairs - 1))
    return error_n
