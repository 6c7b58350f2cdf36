"""Leave-one-out: what the full coalition loses without a player, V(N) - V(N without k)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.scoring.coalitions import Game
from steelyard.scoring.evaluators.base import (
    NO_SCORES,
    EvaluatorParams,
    Scores,
    linear_scores,
)


@dataclass(frozen=True, kw_only=True)
class LooParams(EvaluatorParams):
    """Leave-one-out has nothing to set."""


class Loo:
    """Leave-one-out; exact, n + 1 calls."""

    def __init__(self, params: LooParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The full coalition and one without each player."""
        return players + 1

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:  # noqa: ARG002 - exact, draws nothing
        """V(N) - V(N without k) for every player k."""
        n = game.players
        if n == 0:
            return NO_SCORES
        masks = np.vstack([np.ones((1, n), dtype=bool), ~np.eye(n, dtype=bool)])
        coefficients = np.hstack([np.ones((n, 1)), -np.eye(n)])
        return linear_scores(game, masks, coefficients, game.values(masks), np.zeros(n))
