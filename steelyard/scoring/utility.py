"""The utility of coalitions: how good a round's coalition models are on the server's validation data.

Owns the validation data, the evaluation path and each round's cache; knows nothing of evaluators, clients or files.
A coalition's outcome is a pure function of (round, mask, path): coalitions are evaluated one at a time, each the same
way, in inner batches of a fixed size. What was asked before, together or by whom cannot change a bit of it.

Legend: n participants in client order, C coalitions, E validation examples, D float values of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from steelyard.aggregation.fedavg import fedavg
from steelyard.models import FlatModel
from steelyard.scoring.coalitions import CallCounter, Floats, Masks
from steelyard.scoring.paths import make_path

Metric = Literal["accuracy", "loss"]
Progress = Callable[[int, int], None]
MAX_LOSS = 1e6


@dataclass(frozen=True, slots=True)
class Outcome:
    """One coalition model on the validation data: per example whether it is right, [E], and its cross-entropy, [E].

    `accuracy` and `loss` are their means, taken once in float64. An example whose cross-entropy is not finite (a
    diverged model) counts as wrong and as a cross-entropy of MAX_LOSS, which also bounds the finite ones.
    """

    example_correct: NDArray[np.uint8]
    example_loss: NDArray[np.float32]
    accuracy: float
    loss: float


class Utility:
    """The validation data and how a state is evaluated on it.

    Args:
        model: the network; its own state is overwritten by every evaluation.
        images: float32 [E, channels, height, width]; copied.
        labels: int64 [E]; copied.
        inner_batch: examples per forward pass. It decides bits (float sums), so it belongs to the configuration.
        path: the way logits are computed, one of `steelyard.scoring.paths.PATHS`; it decides bits too.

    Raises:
        UserError: the path does not fit the model.
    """

    def __init__(
        self,
        model: FlatModel,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        inner_batch: int,
        path: str = "plain",
    ) -> None:
        if len(images) != len(labels) or len(labels) == 0 or inner_batch < 1:
            raise ValueError(f"images with a label each expected, got {len(images)} and {len(labels)}")
        self._model = model
        self._path = make_path(path, model, torch.split(images.detach(), inner_batch))
        self._labels = torch.split(labels.clone(), inner_batch)

    def round(
        self,
        global_D: torch.Tensor,
        updates: Sequence[torch.Tensor],
        samples: Sequence[int],
        progress: Progress | None = None,
    ) -> RoundGame:
        """The game of one round; its players are the updates in the given (client) order.

        Args:
            global_D: the round's global state, float32 [D].
            updates: the participants' updates, float32 [D] each; read, never written, and not to be changed meanwhile.
            samples: n_k of each participant, from the roster.
            progress: told (done, total) after each coalition that a request had to evaluate.

        Raises:
            ValueError: dtypes, sizes or counts do not fit together.
        """
        fedavg(global_D, updates, samples)  # refuses what does not fit before the first evaluation
        return RoundGame(self, global_D, tuple(updates), tuple(samples), progress)

    def outcome(self, state_D: torch.Tensor) -> Outcome:
        """Evaluate one state [D]."""
        self._model.load(state_D)
        parts = []
        with torch.inference_mode():
            for logits, y in zip(self._path.logits(), self._labels, strict=True):
                loss = functional.cross_entropy(logits, y, reduction="none")
                parts.append((logits.argmax(1) == y, loss))
            raw_E = torch.cat([loss for _, loss in parts])
            finite_E = raw_E.isfinite()
            correct_E = (torch.cat([right for right, _ in parts]) & finite_E).to(torch.uint8).numpy()
            loss_E = torch.where(finite_E, raw_E, MAX_LOSS).clamp(max=MAX_LOSS).numpy()
        return Outcome(
            example_correct=correct_E,
            example_loss=loss_E,
            accuracy=int(correct_E.sum(dtype=np.int64)) / len(correct_E),
            loss=float(loss_E.astype(np.float64).sum()) / len(loss_E),
        )


class RoundGame:
    """One round's coalitions and the outcomes known so far, shared by all evaluators and both metrics."""

    def __init__(
        self,
        utility: Utility,
        global_D: torch.Tensor,
        updates: tuple[torch.Tensor, ...],
        samples: tuple[int, ...],
        progress: Progress | None,
    ) -> None:
        self.players = len(updates)
        self._utility = utility
        self._global_D = global_D
        self._updates = updates
        self._samples = samples
        self._progress = progress
        self._outcomes: dict[bytes, Outcome] = {}

    @property
    def evaluated(self) -> int:
        """Coalitions that were really evaluated so far, whoever asked."""
        return len(self._outcomes)

    def view(self, metric: Metric) -> RoundView:
        """A game over this round with its own count of calls; loss is negated, so that larger is better."""
        return RoundView(self, metric)

    def coalition_state(self, members: Sequence[int]) -> torch.Tensor:
        """The coalition's model [D]: w + sum over members of (n_k / n_S) D_k; all participants give the aggregate."""
        return fedavg(self._global_D, [self._updates[k] for k in members], [self._samples[k] for k in members])

    def outcomes(self, keys: Sequence[bytes]) -> list[Outcome]:
        """Outcomes of coalitions, named by their keys (a byte per player); the unknown ones are evaluated in order."""
        unknown = [key for key in dict.fromkeys(keys) if key not in self._outcomes]
        for done, key in enumerate(unknown, start=1):
            members = [k for k, member in enumerate(key) if member]
            self._outcomes[key] = self._utility.outcome(self.coalition_state(members))
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
        outcomes = self._game.outcomes(self._counter.keys(masks_Cn))
        accuracy = self._metric == "accuracy"
        return np.array([o.accuracy if accuracy else -o.loss for o in outcomes], dtype=np.float64)

    def examples(self, masks_Cn: Masks) -> Floats:
        """The same per validation example, [C, E]."""
        outcomes = self._game.outcomes(self._counter.keys(masks_Cn))
        if self._metric == "accuracy":
            return np.array([o.example_correct for o in outcomes], dtype=np.float64)
        return -np.array([o.example_loss for o in outcomes], dtype=np.float64)
