"""The control of more training: B more of its own samples, so as many steps as an attack with B synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.attacks.base import Resources, Result
from client.attacks.simulation import resample
from steelyard.parsing import Positive


@dataclass(frozen=True, kw_only=True)
class OwnRepeatParams:
    """`samples` is B."""

    samples: Positive = 32


class OwnRepeat:
    """Trains on its shard and B samples drawn from it with replacement, fresh every round."""

    def __init__(self, params: OwnRepeatParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training with B of its samples repeated."""
        own = self.resources
        images, labels = resample(own.images, own.labels, self.params.samples, own.generator("repeat", round_))
        both = torch.cat([own.images, images]), torch.cat([own.labels, labels])
        return Result(update_D=own.train(round_, global_D, *both))
