"""Joins recorded rounds, in order, by the experiment's defence, and keeps what it carries from round to round.

Without a defence that is federated averaging. The server's root set, where a rule asks for it, is trained on here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steelyard.aggregation import make_defence
from steelyard.aggregation.base import Setting, State, Verdict
from steelyard.aggregation.fedavg import fedavg
from steelyard.aggregation.round import JoinedRound
from steelyard.aggregation.rows import read_only
from steelyard.bundle import check_arrays, read_arrays, write_arrays
from steelyard.config import ServerHalf
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.recording import ClosedRound, Recordings
from steelyard.seeding import torch_generator
from steelyard.training import train


@dataclass(frozen=True, kw_only=True)
class RecordedRound:
    """What a closed round's game is played on: the clients whose updates count, in client order (none if void)."""

    clients: tuple[int, ...]
    global_D: torch.Tensor
    updates: tuple[torch.Tensor, ...]
    samples: tuple[int, ...]
    files: tuple[Path, ...]  # of the global model and each update


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """A round's updates joined: the next global model [D], and the defence's verdict (None: no defence, or void)."""

    next_D: torch.Tensor
    verdict: Verdict | None


class Joiner:
    """Joins round after round.

    Args:
        half: the server's half of the experiment.
        table: the `[defence]` table; empty: federated averaging.
        model: the experiment's network; its own state is overwritten where a rule needs the root set.
        data: the server's arrays; root_images and root_labels are read where a rule needs them.
        recordings: where checkpoints lie.

    Raises:
        UserError: the table is wrong, or its rule needs a root set that the server does not hold.
    """

    def __init__(
        self,
        half: ServerHalf,
        table: Mapping[str, Any],
        model: FlatModel,
        data: Mapping[str, np.ndarray[Any, Any]],
        recordings: Recordings,
    ) -> None:
        self._defence = make_defence(table, len(half.roster))
        self._half, self._model, self._recordings = half, model, recordings
        self._places = {client: i for i, client in enumerate(sorted(entry.client for entry in half.roster))}
        self._root: tuple[torch.Tensor, torch.Tensor] | None = None
        if self._defence is not None and self._defence.rule.needs_root:
            if "root_images" not in data:
                raise UserError(
                    f"[defence] {self._defence.config.name}: a root set expected among the server's data, there is "
                    "none; run the experiment with [defence] root set to its size"
                )
            self._root = (torch.from_numpy(data["root_images"].copy()), torch.from_numpy(data["root_labels"].copy()))
        self._state = self._start()
        self._number = 0
        self._round: JoinedRound | None = None
        self._joined: Joined | None = None

    @property
    def coalitions(self) -> JoinedRound | None:
        """The round joined last, if its coalitions are joined by the same rule; None: by the weighted mean."""
        same = self._defence is not None and self._defence.config.scoring == "same_rule"
        return self._round if same else None

    def resume(self, number: int) -> None:
        """Take up what the defence carried on from a settled round; 0: nothing was settled yet."""
        self._state, self._number = self._start(), 0
        if number and self._state:
            self._state = {key: a.copy() for key, a in read_arrays(self._recordings.defence_file(number)).items()}

    def checkpoint(self, number: int) -> None:
        """Write down, atomically and durably, what the defence carries on, if it carries anything."""
        if self._state:
            write_arrays(self._recordings.defence_file(number), self._state)

    def join(self, closed: ClosedRound, recorded: RecordedRound) -> Joined:
        """Join a round that comes after the one that `advance` was called for last; the same one again is known."""
        if self._joined is not None and self._number == closed.round:
            return self._joined
        self._number = closed.round
        if self._defence is None:
            next_D = fedavg(recorded.global_D, recorded.updates, recorded.samples)
            self._joined = Joined(next_D=next_D, verdict=None)
            return self._joined
        self._round = JoinedRound(
            defence=self._defence,
            state=self._state,
            setting=self._setting(closed.round, recorded.global_D),
            global_D=recorded.global_D,
            updates=recorded.updates,
            samples=recorded.samples,
            members=[self._places[client] for client in recorded.clients],
        )
        verdict = self._round.verdict()
        self._joined = Joined(next_D=self._round.aggregate(verdict), verdict=verdict)
        return self._joined

    def advance(self) -> None:
        """Carry on from the round joined last."""
        if self._round is not None and self._joined is not None:
            self._state = self._kept(self._round.after(self._joined.verdict), f"after, round {self._number}")

    def _start(self) -> State:
        if self._defence is None:
            return {}
        return self._kept(self._defence.rule.start(len(self._places), self._model.layout.trainable), "start")

    def _kept(self, state: State, origin: str) -> State:
        """A state that the rule gave, if it can be written down."""
        if self._defence is not None:
            check_arrays(state, f"[defence] {self._defence.config.name}, what it carries from {origin}")
        return state

    def _setting(self, number: int, global_D: torch.Tensor) -> Setting:
        trainable, root_P = self._model.layout.trainable, None
        if self._root is not None:
            generator = torch_generator(self._half.seed, "defence", number, "root")
            update_D = train(self._model, global_D, *self._root, self._half.training, generator)
            root_P = update_D[:trainable].numpy().copy()
        return Setting(
            number=number,
            seed=self._half.seed,
            clients=len(self._places),
            global_P=read_only(global_D[:trainable].numpy()),
            root_P=root_P,
        )
