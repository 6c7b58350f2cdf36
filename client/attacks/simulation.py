"""Honest clients that an attacker plays to itself: from data that it holds, what others might send.

Knows nothing of what is done with it. Legend: K simulated clients, D state values, P trainable parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from client.attacks.base import LabelledImages, Resources
from steelyard.training import train


def simulate(
    own: Resources, round_: int, purpose: str, global_D: torch.Tensor, shards: Sequence[LabelledImages]
) -> torch.Tensor:
    """Updates [K, D] of honest training on each shard; one generator, named by its purpose, shuffles all in order."""
    generator = own.generator(purpose, round_)
    updates = [train(own.model, global_D, images, labels, own.training, generator) for images, labels in shards]
    return torch.stack(updates)


def resample(images: torch.Tensor, labels: torch.Tensor, size: int, generator: torch.Generator) -> LabelledImages:
    """A shard of `size` samples drawn with replacement (bootstrap)."""
    drawn = torch.randint(len(labels), (size,), generator=generator)
    return images[drawn], labels[drawn]


def resampled(own: Resources, round_: int, global_D: torch.Tensor, count: int) -> torch.Tensor:
    """Trainable parts of updates [K, P] that it trains on so many resamples of its own shard."""
    generator = own.generator("resample", round_)
    shards = [resample(own.images, own.labels, len(own.labels), generator) for _ in range(count)]
    return simulate(own, round_, "simulate", global_D, shards)[:, : own.model.layout.trainable]


def skewed(images: torch.Tensor, labels: torch.Tensor, size: int, generator: torch.Generator) -> LabelledImages:
    """A shard of `size` samples drawn with replacement whose label shares are Dirichlet(1): uneven, as clients' are."""
    drawn_from = labels.cpu()
    count_C = torch.bincount(drawn_from)
    share_C = torch.empty(len(count_C)).exponential_(generator=generator)
    weights = share_C[drawn_from] / count_C[drawn_from]
    drawn = torch.multinomial(weights, size, replacement=True, generator=generator)
    return images[drawn], labels[drawn]
