"""The Shapley value of a whole run: by rounds, by discounted rounds, or of one game on the accumulated updates.

Song et al. 2019 ("Profit allocation for federated learning"; multi-round, one-round) and Wei et al. 2020 ("Efficient
and fair data valuation for horizontal federated learning"; the discount). All three take the estimators and budgets of
`shapley`. `multi_round` is FedSV summed over rounds under that name. `lambda_multi_round` counts round t for
lambda^(t-1) (our choice of the exponent: round 1 counts whole). `one_round` plays a single game from the first global
state, w_S = w_1 + sum over k in S of (n_k / n_S) (sum over t of D_k of round t); a client adds nothing in a round that
it missed (our choice). Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from steelyard.parsing import Range
from steelyard.scoring.evaluators.base import Round, Scores, State
from steelyard.scoring.evaluators.running import advance, nothing_yet, unchanged
from steelyard.scoring.evaluators.shapley import Shapley, ShapleyParams


@dataclass(frozen=True, kw_only=True)
class MultiRoundParams(ShapleyParams):
    """As `shapley`."""


@dataclass(frozen=True, kw_only=True)
class LambdaMultiRoundParams(ShapleyParams):
    """`discount` is lambda: below 1, early rounds count more."""

    discount: Annotated[float, Range(0, 1, above=0)] = 0.9


@dataclass(frozen=True, kw_only=True)
class OneRoundParams(ShapleyParams):
    """When the game is played: after every round, so that its value can be followed, or once, after the last."""

    play: Literal["every_round", "last_round"] = "every_round"


class LambdaMultiRound:
    """Each round's Shapley value, discounted."""

    def __init__(self, params: LambdaMultiRoundParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The budget, and one draw more."""
        return self.params.most_calls(players)

    def start(self, clients: int) -> State:  # noqa: ARG002 - the round's number is all that it needs to know
        """No state: the round says which it is."""
        return {}

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:
        """The round's Shapley value times lambda^(t-1)."""
        weight = self.params.discount ** (round_.number - 1)
        scores = Shapley(self.params).evaluate(round_.view(self.params.utility), generator)
        discounted = Scores(
            value=weight * scores.value,
            std_error=weight * scores.std_error,
            validation_std_error=weight * scores.validation_std_error,
            calls=scores.calls,
            converged=scores.converged,
            examples=None if scores.examples is None else weight * scores.examples,
        )
        return state, discounted.spread(round_.members, round_.clients)


class OneRound:
    """The Shapley value of one game on the accumulated updates.

    State: `global` [D], the first state; `updates` [N, D], summed over rounds; `seen` [N]; the running result.
    """

    own_games = True

    def __init__(self, params: OneRoundParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The budget, and one draw more."""
        return self.params.most_calls(players)

    def start(self, clients: int) -> State:
        """Nothing accumulated."""
        return {
            "global": np.zeros(0, np.float32),
            "updates": np.zeros((clients, 0), np.float32),
            "seen": np.zeros(clients, np.uint8),
            **nothing_yet(clients),
        }

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:
        """What the round changed of the game's Shapley value."""
        first = state["global"] if len(state["global"]) else round_.global_D.copy()
        updates_ND, seen = state["updates"].copy(), state["seen"].copy()
        if not updates_ND.shape[1]:
            updates_ND = np.zeros((len(updates_ND), len(first)), np.float32)
        for k, update_D in zip(round_.members, round_.updates_nD, strict=True):
            updates_ND[k] += update_D
            seen[k] = 1
        state = {**state, "global": first, "updates": updates_ND, "seen": seen}
        players = tuple(np.flatnonzero(seen).tolist())
        due = round_.last if self.params.play == "last_round" else bool(round_.members)
        if not due or not players:
            return unchanged(state)
        game = round_.play(
            first,
            tuple(updates_ND[k] for k in players),
            tuple(round_.samples[k] for k in players),
            self.params.utility,
        )
        return advance(state, Shapley(self.params).evaluate(game, generator).spread(players, round_.clients))
