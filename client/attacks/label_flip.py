"""Label flipping, the classic data poisoning: every label y becomes C-1-y."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.attacks.base import Resources, Result


@dataclass(frozen=True, kw_only=True)
class LabelFlipParams:
    """Nothing to set."""


class LabelFlip:
    """Trains on its images under mirrored labels."""

    def __init__(self, params: LabelFlipParams, resources: Resources) -> None:  # noqa: ARG002 - every attack is made alike
        self.resources = resources

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training on (x, C-1-y)."""
        own = self.resources
        flipped = own.model.classes - 1 - own.labels
        return Result(update_D=own.train(round_, global_D, own.images, flipped))
