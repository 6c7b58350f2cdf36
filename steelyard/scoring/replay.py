"""Scores a recorded round: the one way, whether the round just closed or was recorded long ago.

The live server and `steelyard replay` run this same code on the same files, so their values are the same bits on the
same processor type.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steelyard.config import ServerHalf
from steelyard.models import FlatModel
from steelyard.recording import ClosedRound, Recordings, read_vector
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.score import score_round
from steelyard.scoring.utility import Progress, Utility


@dataclass(frozen=True, kw_only=True)
class RecordedRound:
    """What a closed round's game is played on: the clients whose updates count, in client order (none if void)."""

    clients: tuple[int, ...]
    global_D: torch.Tensor
    updates: tuple[torch.Tensor, ...]
    samples: tuple[int, ...]


class RoundScorer:
    """Scores recorded rounds with the experiment's evaluators.

    Args:
        half: the server's half of the experiment: roster, model, evaluators, evaluation path.
        data: holds validation_images [V, channels, height, width] and validation_labels [V].
        recordings: where models and updates lie.
    """

    def __init__(self, half: ServerHalf, data: dict[str, np.ndarray[Any, Any]], recordings: Recordings) -> None:
        self._seed = half.seed
        self._samples = {entry.client: entry.samples for entry in half.roster}
        self._clients = sorted({*range(half.clients), *self._samples})
        self._recordings = recordings
        self._evaluators = make_evaluators(half.evaluators, len(half.roster))
        self.model = FlatModel(half.model.name, half.shape)
        self._utility = Utility(
            self.model,
            torch.from_numpy(data["validation_images"].copy()),
            torch.from_numpy(data["validation_labels"].copy()),
            inner_batch=half.scoring.inner_batch,
            path=half.scoring.path,
            device=half.scoring.device,
            workers=half.scoring.workers,
        )

    def close(self) -> None:
        """End the scoring workers, if there are any."""
        self._utility.close()

    def read(self, closed: ClosedRound) -> RecordedRound:
        """A round's game from the recordings, every file's digest verified."""
        clients = () if closed.void else closed.received
        files = [self._recordings.update_file(closed.round, client) for client in clients]
        return RecordedRound(
            clients=clients,
            global_D=_vector(self._recordings.global_file(closed.round)),
            updates=tuple(_vector(file) for file in files),
            samples=tuple(self._samples[client] for client in clients),
        )

    def rows(self, closed: ClosedRound, progress: Progress | None = None) -> list[dict[str, Any]]:
        """One row per evaluator and client, absent ones too; a client outside the round's game has value 0.

        Args:
            closed: the round.
            progress: told, after each coalition, how many were evaluated and how many the round takes as far as is
                known by then: what one evaluator needs at most, or more once several have asked for different ones.
        """
        recorded = self.read(closed)
        needed = max((named.evaluator.most_calls(len(recorded.clients)) for named in self._evaluators), default=0)

        def tell(done: int, requested: int) -> None:
            if progress is not None:
                progress(game.evaluated, max(needed, game.evaluated + requested - done))

        game = self._utility.round(recorded.global_D, recorded.updates, recorded.samples, tell)
        place = {client: i for i, client in enumerate(recorded.clients)}
        rows = []
        for result in score_round(game, self._evaluators, seed=self._seed, round_number=closed.round):
            for client in self._clients:
                i = place.get(client)
                rows.append(
                    {
                        "round": closed.round,
                        "client": client,
                        "evaluator": result.evaluator,
                        "value": 0.0 if i is None else float(result.scores.value[i]),
                        "std_error": 0.0 if i is None else float(result.scores.std_error[i]),
                        "validation_std_error": 0.0 if i is None else float(result.scores.validation_std_error[i]),
                        "calls": result.scores.calls,
                        "evaluated": int(i is not None),
                        "seconds": round(result.seconds, 3),
                    }
                )
        return rows


def _vector(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_vector(path, verify=True).copy())
