"""What an evaluator is and what it returns. Knows games, never models, clients or files. Torch-free.

Legend: n players, C coalitions, E validation examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum, nan, sqrt
from typing import Literal, Protocol

import numpy as np

from steelyard.scoring.coalitions import Floats, Game, Masks

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class EvaluatorParams:
    """The keys that every `[[evaluators]]` table has: a unique name, the evaluator's kind, and the utility."""

    name: str
    kind: str
    utility: Literal["accuracy", "loss"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One evaluator's result for one game.

    Attributes:
        value: each player's contribution, [n].
        std_error: its standard error from the sampling of coalitions, [n]; 0 where exact, nan where the
            sample is too small to tell.
        validation_std_error: its standard error from the sampling of validation examples, the coalitions being those
            used, [n]; 0 for a game without examples, nan where a single example tells nothing.
        calls: distinct coalitions asked for.
        converged: False where sampling ended for its budget's sake, before the standard error or the rule that it was
            to reach; True where it is exact, or nothing was to be reached.
    """

    value: Floats
    std_error: Floats
    validation_std_error: Floats
    calls: int
    converged: bool = True


class Evaluator(Protocol):
    """Turns a game into a contribution per player."""

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Score the game's players; all randomness comes from the generator."""

    def most_calls(self, players: int) -> int:
        """The most distinct coalitions that a game of so many players can take."""


NO_SCORES = Scores(value=np.zeros(0), std_error=np.zeros(0), validation_std_error=np.zeros(0), calls=0)


def linear_value(coefficients_nC: Floats, values_C: Floats) -> Floats:
    """Each player's value as a linear function of the coalitions' utilities, [n].

    The sum is the correctly rounded one of the products, so its bits do not depend on the coalitions' order, and a
    player that never changes a value scores exactly 0.
    """
    return np.array([fsum(row) for row in (coefficients_nC * values_C).tolist()], dtype=np.float64)


def validation_std_error(game: Game, masks_Cn: Masks, coefficients_nC: Floats) -> Floats:
    """Standard error of linear values over the sampling of validation examples, [n].

    A utility is a mean over examples and the value is linear in it, so the value is the mean over examples of the
    value computed on that example alone; its standard error is their standard deviation (n - 1) over the root of their
    number, which is what a bootstrap over the examples converges to. Memory: CHUNK coalitions at a time.
    """
    chunks = range(0, len(masks_Cn), CHUNK)
    per_example_nE = sum(
        coefficients_nC[:, at : at + CHUNK] @ game.examples(masks_Cn[at : at + CHUNK]) for at in chunks
    )
    assert isinstance(per_example_nE, np.ndarray)
    players, examples = per_example_nE.shape
    if examples < 2:
        return np.full(players, 0.0 if examples == 0 else nan)
    error_n: Floats = per_example_nE.std(axis=1, ddof=1) / sqrt(examples)
    return error_n
