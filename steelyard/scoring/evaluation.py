"""Evaluates one state on the validation data, in this process. Knows no coalition and no round.

Legend: E validation examples, D float values of a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from steelyard.config import Shape
from steelyard.devices import use_device
from steelyard.models import FlatModel
from steelyard.scoring.outcome import MAX_LOSS, Outcome
from steelyard.scoring.paths import make_path

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that a worker needs to know, beside the data, to evaluate as its parent would; `worker` is its number."""

    model: str
    shape: Shape
    inner_batch: int
    path: str
    device: Device
    worker: int


class Evaluation:
    """A model, the data and the way to its logits.

    Args:
        model: the network, on the device that computes; its own state is overwritten by every evaluation.
        images: float32 [E, channels, height, width]; copied.
        labels: int64 [E]; copied.
        inner_batch: examples per forward pass.
        path: one of `steelyard.scoring.paths.PATHS`.

    Raises:
        UserError: the path does not fit the model.
    """

    def __init__(
        self, model: FlatModel, images: torch.Tensor, labels: torch.Tensor, *, inner_batch: int, path: str
    ) -> None:
        self._model = model
        self.device = model.state.device
        self._path = make_path(path, model, torch.split(images.detach().to(self.device), inner_batch))
        self._labels = torch.split(labels.to(self.device, copy=True), inner_batch)

    def outcome(self, state_D: torch.Tensor) -> Outcome:
        """Evaluate one state [D], of any device."""
        self._model.load(state_D)
        parts = []
        with torch.inference_mode():
            for logits, y in zip(self._path.logits(), self._labels, strict=True):
                loss = functional.cross_entropy(logits, y, reduction="none")
                parts.append((logits.argmax(1) == y, loss))
            raw_E = torch.cat([loss for _, loss in parts])
            finite_E = raw_E.isfinite()
            correct_E = (torch.cat([right for right, _ in parts]) & finite_E).to(torch.uint8).cpu().numpy()
            loss_E = torch.where(finite_E, raw_E, MAX_LOSS).clamp(max=MAX_LOSS).cpu().numpy()
        return Outcome.of(correct_E, loss_E)


def check_data(images: torch.Tensor, labels: torch.Tensor, inner_batch: int) -> None:
    """Raise ValueError unless every image has a label and a batch is no smaller than one example."""
    if len(images) != len(labels) or len(labels) == 0 or inner_batch < 1:
        raise ValueError(f"images with a label each expected, got {len(images)} and {len(labels)}")


def on_device(model: FlatModel, device: Device, worker: int = 0) -> FlatModel:
    """The model itself on the CPU; on CUDA devices, which workers share evenly, another one of its kind.

    Raises:
        UserError: there is no CUDA device.
    """
    if device == "cpu":
        return model
    use_device(device, "[scoring] device")
    return FlatModel(model.name, model.shape, f"cuda:{worker % torch.cuda.device_count()}")
