"""Scores of one round: every evaluator over the round's game. The live server and the replay both call this."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from steelyard.scoring.coalitions import Game
from steelyard.scoring.evaluators import NamedEvaluator
from steelyard.scoring.evaluators.base import Scores
from steelyard.seeding import numpy_generator


class GameSource(Protocol):
    """A round that offers a game per utility, over one cache."""

    def view(self, metric: Literal["accuracy", "loss"]) -> Game:
        """The round's game under one utility, with its own count of calls."""


@dataclass(frozen=True, kw_only=True)
class RoundScores:
    """One evaluator's scores of one round.

    `seconds` is wall time. Evaluators share the round's outcomes, so the first to ask for a coalition pays for it;
    `scores.calls` counts as if each had started cold.
    """

    evaluator: str
    scores: Scores
    seconds: float


def score_round(
    game: GameSource, evaluators: Sequence[NamedEvaluator], *, seed: int, round_number: int
) -> tuple[RoundScores, ...]:
    """Score one round with each evaluator, in order.

    An evaluator's randomness is a function of (seed, its name, the round) alone: other evaluators, or a repetition
    years later from the recording, change nothing.
    """
    results = []
    for named in evaluators:
        start = time.perf_counter()
        generator = numpy_generator(seed, "evaluator", named.name, round_number)
        scores = named.evaluator.evaluate(game.view(named.params.utility), generator)
        results.append(RoundScores(evaluator=named.name, scores=scores, seconds=time.perf_counter() - start))
    return tuple(results)
