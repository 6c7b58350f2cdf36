"""Scores a recorded round: the one way, whether the round just closed or was recorded long ago.

The live server and `steelyard replay` run this same code on the same files, so their values are the same bits on the
same processor type.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steelyard.bundle import read_arrays, write_arrays
from steelyard.config import ServerHalf
from steelyard.models import FlatModel
from steelyard.recording import ClosedRound, Recordings, read_vector
from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.evaluators.base import Fold, State
from steelyard.scoring.gradient import validation_gradient
from steelyard.scoring.joiner import Joined, Joiner, RecordedRound
from steelyard.scoring.played import PlayedRound
from steelyard.scoring.score import score_round
from steelyard.scoring.subset import draw_subset
from steelyard.scoring.totals import Totals, by_evaluator
from steelyard.scoring.utility import Progress, Utility


class RoundScorer:
    """Scores recorded rounds, in order, with the experiment's evaluators.

    What evaluators carry from round to round is kept here; `checkpoint` writes it beside the round's recording, and
    `resume` reads it back.

    Args:
        half: the server's half of the experiment: roster, model, evaluators, evaluation path.
        data: holds validation_images [V, channels, height, width] and validation_labels [V].
        recordings: where models and updates lie.
        evaluators: `[[evaluators]]` tables to score with instead of the experiment's.
        defence: a `[defence]` table to join updates by instead of the experiment's.
    """

    def __init__(
        self,
        half: ServerHalf,
        data: dict[str, np.ndarray[Any, Any]],
        recordings: Recordings,
        evaluators: Sequence[Mapping[str, Any]] | None = None,
        defence: Mapping[str, Any] | None = None,
    ) -> None:
        self._seed, self._rounds = half.seed, half.rounds
        self._samples = {entry.client: entry.samples for entry in half.roster}
        self._roster = tuple(sorted(self._samples))
        self._clients = sorted({*range(half.clients), *self._roster})
        self._recordings = recordings
        self._evaluators = make_evaluators(half.evaluators if evaluators is None else evaluators, len(half.roster))
        self._states: dict[str, State] = {}
        self._folded = 0
        self._recorded: tuple[ClosedRound, RecordedRound] | None = None
        self._validation = (
            torch.from_numpy(data["validation_images"].copy()),
            torch.from_numpy(data["validation_labels"].copy()),
        )
        self._inner_batch = half.scoring.inner_batch
        subset = draw_subset(data["validation_labels"], half.scoring.examples, half.seed)
        self._judged = self._validation
        if subset is not None:
            places = torch.from_numpy(subset.places_E)
            self._judged = (self._validation[0][places], self._validation[1][places])
        self._totals = Totals(len(self._clients), subset)
        self.model = FlatModel(half.model.name, half.shape)
        self._joiner = Joiner(half, half.defence if defence is None else defence, self.model, data, recordings)
        self._utility = Utility(
            self.model,
            *self._judged,
            inner_batch=half.scoring.inner_batch,
            path=half.scoring.path,
            device=half.scoring.device,
            workers=half.scoring.workers,
            weights_E=None if subset is None else subset.weights_E,
        )

    def close(self) -> None:
        """End the scoring workers, if there are any."""
        self._utility.close()

    def read(self, closed: ClosedRound) -> RecordedRound:
        """A round's game from the recordings, every file's digest verified; the last one read is kept."""
        if self._recorded is not None and self._recorded[0] == closed:
            return self._recorded[1]
        clients = () if closed.void else closed.received
        files = (
            self._recordings.global_file(closed.round),
            *(self._recordings.update_file(closed.round, client) for client in clients),
        )
        with ThreadPoolExecutor(os.cpu_count()) as readers:  # hashing lets other threads run; clients are idle by now
            global_D, *updates = readers.map(_vector, files)
        recorded = RecordedRound(
            clients=clients,
            global_D=global_D,
            updates=tuple(updates),
            samples=tuple(self._samples[client] for client in clients),
            files=files,
        )
        self._recorded = closed, recorded
        return recorded

    def resume(self, number: int) -> None:
        """Take up what the evaluators carried on from a settled round; 0: nothing was settled yet.

        Raises:
            UserError: the round's checkpoint is missing.
        """
        self._joiner.resume(number)
        self._states, self._folded = {}, number
        folds = [named.name for named in self._evaluators if isinstance(named.evaluator, Fold)]
        if number and folds:
            self._states = by_evaluator(read_arrays(self._recordings.state_file(number)))
        self._totals.restart()
        if number and self._recordings.examples_file(number).exists():
            self._totals.resume(read_arrays(self._recordings.examples_file(number)))
        elif number:  # the rounds before were settled by a version that did not keep them
            self._forget_totals()

    def checkpoint(self, number: int) -> None:
        """Write down, atomically and durably, what evaluators and defence carry on from the round just scored."""
        self._joiner.checkpoint(number)
        arrays = {f"{name}/{part}": array for name, state in self._states.items() for part, array in state.items()}
        if any(isinstance(named.evaluator, Fold) for named in self._evaluators):
            write_arrays(self._recordings.state_file(number), arrays)
        write_arrays(self._recordings.examples_file(number), self._totals.arrays())

    def forget(self, number: int) -> None:
        """Remove the checkpoint of a round that is no longer the last one settled."""
        if number:
            self._recordings.state_file(number).unlink(missing_ok=True)
            self._recordings.examples_file(number).unlink(missing_ok=True)
            self._recordings.defence_file(number).unlink(missing_ok=True)

    def join(self, closed: ClosedRound) -> Joined:
        """A round's updates joined: the next global model, and what the defence says of each of them."""
        return self._joiner.join(closed, self.read(closed))

    def rows(
        self, closed: ClosedRound, progress: Progress | None = None, spent: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """One row per evaluator and client, absent ones too; a client outside the round's game has value 0.

        Only an evaluator of the whole run may give it another one: what the round changed of the client's total. It
        knows the roster alone, so whoever is absent from the whole run has 0 from every evaluator.

        Args:
            closed: the round; the one after that scored last where an evaluator carries state. Otherwise it may be any,
                but then the errors of totals are unknown.
            progress: told, after each coalition, how many were evaluated and how many the round takes as far as is
                known by then: what one evaluator needs at most, or more once several have asked for different ones.
            spent: the calls of each evaluator when the round was scored before; see `score_round`.
        """
        recorded = self.read(closed)
        self._joiner.join(closed, recorded)
        round_ = self.played(closed, recorded, self._told(progress, len(recorded.clients)))
        results = score_round(
            round_,
            self._evaluators,
            seed=self._seed,
            round_number=closed.round,
            states=self._states,
            spent=spent,
        )
        self._joiner.advance()
        states = {result.evaluator: result.state for result in results if result.state is not None}
        assert not states or closed.round == self._folded + 1, "rounds in order: what folds carry on depends on it"
        if closed.round != self._folded + 1:
            self._forget_totals()
        self._states, self._folded = states, closed.round
        rows = []
        for result in results:
            those = recorded.clients if result.state is None else self._roster
            scores = result.scores.spread(tuple(self._clients.index(client) for client in those), len(self._clients))
            errors = self._totals.add(result.evaluator, scores)
            for i, client in enumerate(self._clients):
                rows.append(
                    {
                        "round": closed.round,
                        "client": client,
                        "evaluator": result.evaluator,
                        "value": float(scores.value[i]),
                        "std_error": float(scores.std_error[i]),
                        "validation_std_error": float(scores.validation_std_error[i]),
                        "total_validation_std_error": float(errors.total_validation_std_error[i]),
                        "subset_std_error": float(errors.subset_std_error[i]),
                        "total_subset_std_error": float(errors.total_subset_std_error[i]),
                        "calls": scores.calls,
                        "evaluated": int(client in recorded.clients),
                        "converged": int(scores.converged),
                        "seconds": round(result.seconds, 3),
                    }
                )
        return rows

    def _forget_totals(self) -> None:
        for named in self._evaluators:
            self._totals.forget(named.name)

    def _told(self, progress: Progress | None, players: int) -> Progress | None:
        """What the round's games are to tell, each of its own requests, so that `progress` hears of all."""
        if progress is None:
            return None
        needed = max((named.evaluator.most_calls(players) for named in self._evaluators), default=0)
        evaluated = 0

        def tell(done: int, requested: int) -> None:
            nonlocal evaluated
            evaluated += 1
            progress(evaluated, max(needed, evaluated + requested - done))

        return tell

    def played(self, closed: ClosedRound, recorded: RecordedRound, progress: Progress | None = None) -> PlayedRound:
        """A round as evaluators see it; what `progress` is told, `Utility.round` says."""

        def gradient(state_D: torch.Tensor) -> Floats:
            return validation_gradient(self.model, state_D, *self._validation, inner_batch=self._inner_batch)

        return PlayedRound(
            utility=self._utility,
            layout=self.model.layout,
            gradient=gradient,
            number=closed.round,
            last=closed.round == self._rounds,
            samples=tuple(self._samples[client] for client in self._roster),
            members=tuple(self._roster.index(client) for client in recorded.clients),
            global_D=recorded.global_D,
            updates=recorded.updates,
            labels=self._judged[1],
            progress=progress,
            joined=self._joiner.coalitions,
            files=recorded.files,
        )


def _vector(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_vector(path, verify=True, private=True))
