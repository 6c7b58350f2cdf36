"""No attack: train plainly on the shard."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.attacks.base import Resources, Result


@dataclass(frozen=True, kw_only=True)
class HonestParams:
    """Nothing to set."""


class Honest:
    """The behaviour of a client that follows the protocol."""

    def __init__(self, params: HonestParams, resources: Resources) -> None:  # noqa: ARG002 - every attack is made alike
        self.resources = resources

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training, nothing else."""
        own = self.resources
        return Result(update_D=own.train(round_, global_D, own.images, own.labels))
