"""Gaussian noise, fresh every round, on the client's inputs or on its update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from client.attacks.base import Resources, Result
from steelyard.parsing import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class RandomNoiseParams:
    """Where the noise goes and its standard deviation.

    `scale` is in units of a pixel's range [0, 1] on the inputs, of the update's own root mean square on the update.
    """

    target: Literal["inputs", "update"] = "inputs"
    scale: NonNegativeFloat = 0.5


class RandomNoise:
    """Trains on noisy images, or adds noise to what it trained."""

    def __init__(self, params: RandomNoiseParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training with noise before it (images stay in [0, 1]) or after it (trainable part only)."""
        own, scale = self.resources, self.params.scale
        generator = own.generator("noise", round_)
        if self.params.target == "inputs":
            noise = torch.randn(own.images.shape, generator=generator).to(own.device)
            return Result(update_D=own.train(round_, global_D, (own.images + scale * noise).clamp(0, 1), own.labels))
        update_D = own.train(round_, global_D, own.images, own.labels)
        trainable = update_D[: own.model.layout.trainable]
        rms = trainable.square().mean().sqrt()
        trainable += scale * rms * torch.randn(trainable.shape, generator=generator).to(own.device)
        return Result(update_D=update_D, notes={"noise_std": float(scale * rms)})
