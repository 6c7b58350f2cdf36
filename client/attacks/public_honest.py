"""The control of public knowledge: plain training on the shard and public samples, no trick at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from client.attacks.base import Resources, Result
from steelyard.parsing import NonNegative


@dataclass(frozen=True, kw_only=True)
class PublicHonestParams:
    """How many public samples are trained on each round: 0 all of them, else so many, drawn fresh every round.

    `source` has one value; it says in the table that this control cannot do without the public set.
    """

    samples: NonNegative = 0
    source: Literal["public"] = "public"


class PublicHonest:
    """Trains on its shard and the public set."""

    def __init__(self, params: PublicHonestParams, resources: Resources) -> None:
        self.resources = resources
        self.images, self.labels = resources.public_set("public_honest")
        self.samples = min(params.samples or len(self.labels), len(self.labels))

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training with public samples more."""
        own = self.resources
        drawn = torch.randperm(len(self.labels), generator=own.generator("public", round_))[: self.samples]
        both = torch.cat([own.images, self.images[drawn]]), torch.cat([own.labels, self.labels[drawn]])
        return Result(update_D=own.train(round_, global_D, *both), notes={"public_samples": self.samples})
