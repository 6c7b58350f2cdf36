"""A round judged on some of the validation examples only, so that a score and its judge need not share any. Torch-free.

Coalitions are evaluated once, on all examples, whatever the parts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steelyard.errors import UserError
from steelyard.scoring.coalitions import Floats, Game, Masks
from steelyard.scoring.evaluators.base import Round, Vectors


class PartGame:
    """A game on the validation examples at some places."""

    def __init__(self, game: Game, places: NDArray[np.int64]) -> None:
        self.players = game.players
        self._game, self._places = game, places

    @property
    def calls(self) -> int:
        """The whole game's."""
        return self._game.calls

    def values(self, masks_Cn: Masks) -> Floats:
        """Utility of each coalition on these examples, [C]."""
        values_C: Floats = self.examples(masks_Cn).mean(axis=1)
        return values_C

    def examples(self, masks_Cn: Masks) -> Floats:
        """The same per example, [C, E of the part]."""
        return self._game.examples(masks_Cn)[:, self._places]


class PartRound:
    """A round (the evaluators' `Round`) whose games and labels are those of some validation examples.

    Args:
        whole: the round.
        places: which examples, int64; evaluators that take the validation gradient are refused.
    """

    def __init__(self, whole: Round, places: NDArray[np.int64]) -> None:
        self.number, self.last, self.clients = whole.number, whole.last, whole.clients
        self.members, self.samples, self.trainable = whole.members, whole.samples, whole.trainable
        self.global_D, self.updates_nD = whole.global_D, whole.updates_nD
        self.labels_E: NDArray[np.int64] = whole.labels_E[places]
        self._whole, self._places = whole, places

    def view(self, metric: Literal["accuracy", "loss"]) -> Game:
        """The round's game on the part."""
        return PartGame(self._whole.view(metric), self._places)

    def last_layer(self, vector_P: Vectors) -> Vectors:
        """The whole round's."""
        return self._whole.last_layer(vector_P)

    def validation_gradient(self) -> Floats:
        """Not known for a part.

        Raises:
            UserError: always.
        """
        raise UserError("evaluators that do without the validation gradient expected on a part of the validation data")

    def play(
        self,
        global_D: Vectors,
        updates_nD: tuple[Vectors, ...],
        samples: tuple[int, ...],
        metric: Literal["accuracy", "loss"],
    ) -> Game:
        """Another game on the part."""
        return PartGame(self._whole.play(global_D, updates_nD, samples, metric), self._places)
