"""The utility of coalitions: how good a round's coalition models are on the server's validation data.

Owns each round's cache, and who evaluates: this process or workers; knows nothing of evaluators, clients or recordings.
A coalition's outcome is a pure function of (round, mask, path): coalitions are evaluated one at a time, each the same
way. What was asked before, together, by whom or in which process cannot change a bit of it.

Legend: n participants in client order, C coalitions, E validation examples, D float values of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from steelyard.aggregation.fedavg import check_round, fedavg
from steelyard.aggregation.round import JoinedRound
from steelyard.models import FlatModel
from steelyard.scoring.coalitions import CallCounter, Floats, Masks
from steelyard.scoring.evaluation import Device, Evaluation, Setup, check_data, on_device
from steelyard.scoring.outcome import Outcome
from steelyard.scoring.paths import make_path
from steelyard.scoring.pool import WorkerPool

Metric = Literal["accuracy", "loss"]
Progress = Callable[[int, int], None]


class Utility:
    """The validation data and how a state is evaluated on it. Close it: workers may stand behind it.

    Args:
        model: the network; its own state is overwritten by every evaluation.
        images: float32 [E, channels, height, width]; copied.
        labels: int64 [E]; copied.
        inner_batch: examples per forward pass. It decides bits (float sums), so it belongs to the configuration.
        path: the way logits are computed, one of `steelyard.scoring.paths.PATHS`; it decides bits too.
        device: "cpu" or "cuda"; decides bits too.
        workers: 1 evaluates in this process; more are processes of their own. It decides no bit.
        weights_E: what each example counts for in a mean over them; None: all alike.

    Raises:
        UserError: the path does not fit the model, or there is no such device.
    """

    def __init__(
        self,
        model: FlatModel,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        inner_batch: int,
        path: str = "plain",
        device: Device = "cpu",
        workers: int = 1,
        weights_E: Floats | None = None,
    ) -> None:
        check_data(images, labels, inner_batch)
        self.weights = weights_E
        self.device = torch.device("cpu")  # where this process makes coalitions' models
        self._pool: WorkerPool | None = None
        if workers == 1:
            self._evaluation = Evaluation(on_device(model, device), images, labels, inner_batch=inner_batch, path=path)
            self.device = self._evaluation.device
            return
        tried = on_device(model, device)
        make_path(path, tried, [images[:2].to(tried.state.device)])  # refuses here, not in a worker's log
        setup = Setup(model=model.name, shape=model.shape, inner_batch=inner_batch, path=path, device=device, worker=0)
        data = {"images": images.numpy(), "labels": labels.numpy()}
        self._pool = WorkerPool(asdict(setup), data, workers)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._pool is not None:
            self._pool.close()

    def round(
        self,
        global_D: torch.Tensor,
        updates: Sequence[torch.Tensor],
        samples: Sequence[int],
        progress: Progress | None = None,
        joined: JoinedRound | None = None,
        files: Sequence[Path] = (),
    ) -> RoundGame:
        """The game of one round; its players are the updates in the given (client) order.

        Args:
            global_D: the round's global state, float32 [D].
            updates: the participants' updates, float32 [D] each; read, never written, and not to be changed meanwhile.
            samples: n_k of each participant, from the roster.
            progress: told (done, total) after each coalition that a request had to evaluate.
            joined: the same round under the defence that makes its coalitions' models; None: weighted means.
            files: the recorded files of the global state and each update, if there are: workers read those, which
                spares writing them all once more.

        Raises:
            ValueError: dtypes, sizes or counts do not fit together.
        """
        check_round(global_D, updates, samples)  # refuses what does not fit before the first evaluation
        if files and len(files) != 1 + len(updates):
            raise ValueError(f"{1 + len(updates)} files expected, of global state and updates, got {len(files)}")
        return RoundGame(self, global_D, tuple(updates), tuple(samples), progress, joined, tuple(files))

    def outcomes(self, game: RoundGame, keys: Sequence[bytes]) -> Iterator[tuple[bytes, Outcome]]:
        """Evaluate coalitions of a round, named by their keys; workers give them back in no certain order."""
        if self._pool is None:
            for key in keys:
                yield key, self._evaluation.outcome(game.coalition_state(members_of(key)))
            return
        self._pool.open(game, game.states, game.samples, game.joined.packed() if game.joined else None)
        yield from self._pool.outcomes(keys)


def members_of(key: bytes) -> list[int]:
    """The players in a coalition's key, in order."""
    return [k for k, member in enumerate(key) if member]


class RoundGame:
    """One round's coalitions and the outcomes known so far, shared by all evaluators and both metrics."""

    def __init__(
        self,
        utility: Utility,
        global_D: torch.Tensor,
        updates: tuple[torch.Tensor, ...],
        samples: tuple[int, ...],
        progress: Progress | None,
        joined: JoinedRound | None,
        files: tuple[Path, ...],
    ) -> None:
        self.joined = joined
        self.players = len(updates)
        self.samples = samples
        self._utility = utility
        self._global_D = global_D
        self._updates = updates
        self._files = files
        # summed where they are evaluated: the bits are the same, and a GPU need not be sent each coalition's model
        self._there = [state_D if joined else state_D.to(utility.device) for state_D in (global_D, *updates)]
        self._progress = progress
        self._outcomes: dict[bytes, Outcome] = {}

    @property
    def states(self) -> Sequence[np.ndarray[Any, Any] | Path]:
        """The round's global state and updates, float32 [D] each or the files that hold them."""
        return self._files or [state_D.numpy() for state_D in (self._global_D, *self._updates)]

    @property
    def weights(self) -> Floats | None:
        """What each validation example counts for, [E]; None: all alike."""
        return self._utility.weights

    @property
    def evaluated(self) -> int:
        """Coalitions that were really evaluated so far, whoever asked."""
        return len(self._outcomes)

    def view(self, metric: Metric) -> RoundView:
        """A game over this round with its own count of calls; loss is negated, so that larger is better."""
        return RoundView(self, metric)

    def coalition_state(self, members: Sequence[int]) -> torch.Tensor:
        """The coalition's model [D]: by the round's defence, or else w + sum over members of (n_k / n_S) D_k.

        All participants give the aggregate. It lies on the evaluating device, a defence's on the CPU.
        """
        if self.joined is not None:
            return self.joined.model(members)
        return fedavg(self._there[0], [self._there[1 + k] for k in members], [self.samples[k] for k in members])

    def outcomes(self, keys: Sequence[bytes]) -> list[Outcome]:
        """Outcomes of coalitions, named by their keys (a byte per player); the unknown ones are evaluated in order."""
        unknown = [key for key in dict.fromkeys(keys) if key not in self._outcomes]
        for done, (key, outcome) in enumerate(self._utility.outcomes(self, unknown), start=1):
            self._outcomes[key] = outcome
            if self._progress is not None:
                self._progress(done, len(unknown))
        return [self._outcomes[key] for key in keys]


class RoundView:
    """One metric of a round as a `Game`."""

    def __init__(self, game: RoundGame, metric: Metric) -> None:
        self.players = game.players
        self._game = game
        self._metric = metric
        self._counter = CallCounter(game.players)

    @property
    def calls(self) -> int:
        """Distinct coalitions asked for through this view, as with a cold cache."""
        return len(self._counter)

    def values(self, masks_Cn: Masks) -> Floats:
        """Accuracy, or minus the mean cross-entropy, of each coalition's model, [C]."""
        if self._game.weights is not None:
            values_C: Floats = self.examples(masks_Cn).mean(axis=1)
            return values_C
        outcomes = self._game.outcomes(self._counter.keys(masks_Cn))
        accuracy = self._metric == "accuracy"
        return np.array([o.accuracy if accuracy else -o.loss for o in outcomes], dtype=np.float64)

    def examples(self, masks_Cn: Masks) -> Floats:
        """The same per validation example, [C, E], times what the example counts for."""
        outcomes = self._game.outcomes(self._counter.keys(masks_Cn))
        accuracy, weights_E = self._metric == "accuracy", self._game.weights
        rows = [o.example_correct if accuracy else o.example_loss for o in outcomes]
        examples_CE = np.array(rows, dtype=np.float64) if accuracy else -np.array(rows, dtype=np.float64)
        return examples_CE if weights_E is None else examples_CE * weights_E
