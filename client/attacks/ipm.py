"""Inner-product manipulation (Xie et al. 2020, arXiv 1903.03936): minus epsilon times the mean of honest updates.

The published attackers know the honest updates. This one is alone (our choice): it takes the mean of updates that it
trains on resamples of its own shard. Legend: M resamples, P trainable parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.attacks.base import Resources, Result
from client.attacks.simulation import resampled
from steelyard.parsing import NonNegativeFloat, Positive


@dataclass(frozen=True, kw_only=True)
class IpmParams:
    """The length of the reversed mean, and from how many resamples that mean is estimated."""

    epsilon: NonNegativeFloat = 0.5
    resamples: Positive = 5


class Ipm:
    """Sends the reversed mean of its resampled updates; buffers honest."""

    def __init__(self, params: IpmParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Minus epsilon times the mean of M updates."""
        own, trainable = self.resources, self.resources.model.layout.trainable
        update_D = own.train(round_, global_D, own.images, own.labels)
        updates_MP = resampled(own, round_, global_D, self.params.resamples)
        update_D[:trainable] = -self.params.epsilon * updates_MP.mean(0)
        return Result(update_D=update_D)
