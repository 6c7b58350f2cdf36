"""The Shapley value beside a free rider that the server plays itself: no pay for repeating what everybody knows.

Our own. What an attacker without data can always send is the last global step again: it knows it, and so does the
server. So the server lets a phantom client send just that, weighed as `weight` mean clients, and every coalition of the
round holds it:

    U(S) = V(S + rider);  value of k = Shapley value of U

A client is paid for what it adds to the common direction, not for going along with it. The values add up to
V(N + rider) - V(rider). There is no rider until a round has moved the model. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.parsing import PositiveFloat
from steelyard.scoring.coalitions import Floats, Game, Masks
from steelyard.scoring.evaluators.base import Round, Scores, State, Vectors
from steelyard.scoring.evaluators.shapley import Shapley, ShapleyParams


@dataclass(frozen=True, kw_only=True)
class RiderParams(ShapleyParams):
    """`weight` is the rider's sample count in units of the participants' mean one."""

    weight: PositiveFloat = 1.0


class Accompanied:
    """A game without its last player, who is in every coalition."""

    def __init__(self, game: Game) -> None:
        self.players = game.players - 1
        self._game = game

    @property
    def calls(self) -> int:
        """The whole game's."""
        return self._game.calls

    def values(self, masks_Cn: Masks) -> Floats:
        """Utility of each coalition with the last player, [C]."""
        return self._game.values(_with_last(masks_Cn))

    def examples(self, masks_Cn: Masks) -> Floats:
        """The same per validation example, [C, E]."""
        return self._game.examples(_with_last(masks_Cn))


class Rider:
    """State: `global` [D], the state that the round before began with; `step` [D], the last step that was none of zero.

    Both are empty before there is one.
    """

    own_games = True

    def __init__(self, params: RiderParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The budget, and one draw more."""
        return self.params.most_calls(players)

    def start(self, clients: int) -> State:  # noqa: ARG002 - the same for any number
        """No model seen, no step."""
        return {"global": np.zeros(0, np.float32), "step": np.zeros(0, np.float32)}

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:
        """The round's Shapley values in the rider's company."""
        step_D = state["step"]
        if len(state["global"]) and (moved_D := round_.global_D - state["global"]).any():
            step_D = moved_D
        game = self._game(round_, step_D)
        scores = Shapley(self.params).evaluate(game, generator)
        return {"global": round_.global_D.copy(), "step": step_D}, scores.spread(round_.members, round_.clients)

    def _game(self, round_: Round, step_D: Vectors) -> Game:
        utility, members = self.params.utility, round_.members
        if not len(step_D) or not members:
            return round_.view(utility)
        samples = tuple(round_.samples[k] for k in members)
        rider = max(1, round(self.params.weight * sum(samples) / len(samples)))
        updates_nD = (*round_.updates_nD, step_D)
        return Accompanied(round_.play(round_.global_D, updates_nD, (*samples, rider), utility))


def _with_last(masks_Cn: Masks) -> Masks:
    return np.hstack([masks_Cn, np.ones((len(masks_Cn), 1), np.bool_)])
