"""A recorded round as evaluators see it: its game, and what folds look at besides. The one place that has all of it.

Legend: N clients of the roster, n members (participants), D float values of a state, P trainable ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from steelyard.aggregation.round import JoinedRound
from steelyard.aggregation.rows import read_only
from steelyard.errors import UserError
from steelyard.models import Layout
from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators.base import Vectors
from steelyard.scoring.utility import Progress, RoundView, Utility


class PlayedRound:
    """One recorded round (the `Round` of the evaluators).

    Args:
        utility: evaluates coalitions.
        layout: names and shapes of a state.
        gradient: gives the validation gradient [P] at a state [D].
        number: the round, from 1.
        last: whether it is the experiment's last.
        samples: n_k of every client of the roster, by place.
        members: the places of the round's participants, in client order.
        global_D: the state that the round began with.
        updates: the members' updates, float32 [D] each.
        labels: of the validation examples, int64 [E].
        progress: told by every game of the round what `Utility.round` tells.
        joined: the defence that makes the coalitions' models, if it is to.
        files: the recorded files of global state and updates; see `Utility.round`.
    """

    def __init__(
        self,
        *,
        utility: Utility,
        layout: Layout,
        gradient: Callable[[torch.Tensor], Floats],
        number: int,
        last: bool,
        samples: tuple[int, ...],
        members: tuple[int, ...],
        global_D: torch.Tensor,
        updates: tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        progress: Progress | None,
        joined: JoinedRound | None,
        files: Sequence[Path],
    ) -> None:
        self.number, self.last = number, last
        self.clients, self.samples, self.members = len(samples), samples, members
        self.trainable = layout.trainable
        self.labels_E: NDArray[np.int64] = read_only(labels.numpy())
        self._utility, self._layout, self._gradient = utility, layout, gradient
        self._global, self._progress = global_D, progress
        self.global_D: Vectors = read_only(global_D.numpy())
        self.updates_nD: tuple[Vectors, ...] = tuple(read_only(update_D.numpy()) for update_D in updates)
        self._game = utility.round(global_D, updates, [samples[k] for k in members], progress, joined, files)

    def view(self, metric: Literal["accuracy", "loss"]) -> RoundView:
        """The round's game; all views share its outcomes."""
        return self._game.view(metric)

    def validation_gradient(self) -> Floats:
        """The gradient of the mean validation cross-entropy at the global state, [P]."""
        return self._gradient(self._global)

    def last_layer(self, vector_P: Vectors) -> Vectors:
        """The last matrix's part of a vector and its bias's, a row per class, [classes, features + 1].

        Raises:
            UserError: the network does not end with a matrix and its bias.
        """
        specs, at = self._layout.specs, 0
        places = {}
        for spec in specs:
            size = int(np.prod(spec.shape))
            if at < self.trainable:
                places[spec.name] = (spec.shape, at, at + size)
            at += size
        (shape, start, middle), (bias, _, end) = list(places.values())[-2:] if len(places) > 1 else [((), 0, 0)] * 2
        if len(shape) != 2 or bias != shape[:1]:
            raise UserError("a network that ends with a matrix and its bias expected; use another evaluator")
        return np.hstack([vector_P[start:middle].reshape(shape), vector_P[middle:end, None]])

    def play(
        self,
        global_D: Vectors,
        updates_nD: tuple[Vectors, ...],
        samples: tuple[int, ...],
        metric: Literal["accuracy", "loss"],
    ) -> RoundView:
        """The game of other updates to another state, with nothing known yet; its coalitions are weighted means."""
        updates = [torch.from_numpy(update_D.copy()) for update_D in updates_nD]
        return self._utility.round(torch.from_numpy(global_D.copy()), updates, samples, self._progress).view(metric)
