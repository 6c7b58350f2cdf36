"""What follows a closed round: aggregate, measure, score, write down. Knows nothing of the wire.

Works from the recorded files alone, so a server that starts again after a kill settles a closed round exactly as the
one before would have.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from server.ledger import Ledger
from steelyard import bundle
from steelyard.config import ServerHalf
from steelyard.recording import ClosedRound, Recordings
from steelyard.report.suspicion import norms_and_cosines, told
from steelyard.scoring.evaluation import on_device
from steelyard.scoring.replay import RoundScorer
from steelyard.seeding import torch_generator
from steelyard.training import evaluate

FIRST_WORD_S, NEXT_WORD_S = 3.0, 2.0  # a round that is scored sooner says nothing before it is done


class Settlement:
    """Aggregates and scores closed rounds.

    Args:
        half: the server's half of the experiment.
        data: the role folder's arrays: validation_images, validation_labels, test_images, test_labels.
        recordings: where models and updates lie.
        ledger: takes scores, metrics and events.
    """

    def __init__(
        self,
        half: ServerHalf,
        data: dict[str, np.ndarray[Any, Any]],
        recordings: Recordings,
        ledger: Ledger,
    ) -> None:
        self._seed = half.seed
        self._recordings = recordings
        self._ledger = ledger
        self._scorer = RoundScorer(half, data, recordings)
        self._scorer.resume(ledger.settled_rounds)
        self._tester = on_device(self._scorer.model, half.scoring.device)
        test = (torch.from_numpy(data[f"test_{name}"].copy()) for name in ("images", "labels"))
        self._images, self._labels = (tensor.to(self._tester.state.device) for tensor in test)

    def close(self) -> None:
        """End the scoring workers, if there are any."""
        self._scorer.close()

    @property
    def specs(self) -> tuple[bundle.TensorSpec, ...]:
        """Names and shapes of the model's state."""
        return self._scorer.model.layout.specs

    def write_initial_model(self) -> None:
        """Write the first round's global model, unless an earlier start of the server already did.

        Raises:
            UserError: the network can't be started, or takes no images of this size.
        """
        path = self._recordings.global_file(1)
        if not path.exists():
            state_D = self._scorer.model.initial_state(torch_generator(self._seed, "model"))
            self._scorer.model.try_out()
            bundle.write(path, self.specs, bundle.raw(state_D.numpy()))

    def settle(self, closed: ClosedRound) -> None:
        """Aggregate and score one closed round; the next round's global model and all rows are durable on return."""
        started = time.monotonic()
        recorded = self._scorer.read(closed)
        joined = self._scorer.join(closed)
        next_D = joined.next_D
        manifest = bundle.write(self._recordings.global_file(closed.round + 1), self.specs, bundle.raw(next_D.numpy()))
        accuracy, loss = evaluate(self._tester, next_D, self._images, self._labels)
        trainable = self._scorer.model.layout.trainable
        updates = [update_D[:trainable].numpy() for update_D in recorded.updates] or [np.zeros(trainable)]
        weights, suspicion = told(recorded.clients, recorded.samples, joined.verdict, norms_and_cosines(updates))
        metrics = {
            "round": closed.round,
            "accuracy": accuracy,
            "loss": loss,
            "participants": _join(sorted((*closed.received, *closed.missing))),
            "missing": _join(closed.missing),
            "weights": weights,
            "suspicion": suspicion,
            "model_sha256": manifest.sha256,
        }
        pace = Pace(FIRST_WORD_S, NEXT_WORD_S, time.monotonic())

        def tell(done: int, total: int) -> None:
            now = time.monotonic()
            if pace.due(now):
                self._ledger.event(
                    "scoring", round=closed.round, done=done, total=total, seconds=round(pace.age(now), 3)
                )

        scores = self._scorer.rows(closed, tell)
        self._scorer.checkpoint(closed.round)
        seconds = round(time.monotonic() - started, 3)
        self._ledger.settle(scores, {**metrics, "seconds": seconds})
        self._scorer.forget(closed.round - 1)
        self._recordings.uncache(closed.round - 1)
        self._ledger.event("scored", round=closed.round, accuracy=accuracy, loss=loss, seconds=seconds)


class Pace:
    """Decides when a long task says again how far it is; seconds, by any clock that only goes forward.

    Args:
        first: how long the task stays silent.
        then: the shortest pause between two words.
        now: when the task began.
    """

    def __init__(self, first: float, then: float, now: float) -> None:
        self._began = now
        self._next = now + first
        self._then = then

    def age(self, now: float) -> float:
        """Seconds since the task began."""
        return now - self._began

    def due(self, now: float) -> bool:
        """Whether it is time for a word; then the next one is a pause away."""
        if now < self._next:
            return False
        self._next = now + self._then
        return True


def _join(items: Iterable[object]) -> str:
    return " ".join(str(item) for item in items)
