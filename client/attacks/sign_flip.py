"""Sign flipping: the honest update reversed, the classic untargeted model poisoning.

Named so in, e.g., Li et al. 2019 (RSA, arXiv 1811.03761).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.attacks.base import Resources, Result
from steelyard.parsing import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class SignFlipParams:
    """How long the reversed update is, in units of the honest one. The default is our choice."""

    factor: NonNegativeFloat = 1.0


class SignFlip:
    """Trains honestly and sends the trainable part reversed; buffers stay honest."""

    def __init__(self, params: SignFlipParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """The honest update, its trainable part times -`factor`."""
        own = self.resources
        update_D = own.train(round_, global_D, own.images, own.labels)
        update_D[: own.model.layout.trainable] *= -self.params.factor
        return Result(update_D=update_D)
