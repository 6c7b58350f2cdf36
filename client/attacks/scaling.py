"""Scaling: the honest update times a factor, the boost of model replacement.

Bagdasaryan et al. 2020 (arXiv 1807.00459); there it carries a backdoor, here nothing but the client's own training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.attacks.base import Resources, Result
from steelyard.parsing import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class ScalingParams:
    """How many times the honest update is sent. The default is our choice."""

    factor: NonNegativeFloat = 3.0


class Scaling:
    """Trains honestly and sends the trainable part scaled; buffers stay honest."""

    def __init__(self, params: ScalingParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """The honest update, its trainable part times `factor`."""
        own = self.resources
        update_D = own.train(round_, global_D, own.images, own.labels)
        update_D[: own.model.layout.trainable] *= self.params.factor
        return Result(update_D=update_D)
