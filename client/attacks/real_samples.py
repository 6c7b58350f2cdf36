"""The upper bound of synthesis: B real samples where `latent` makes synthetic ones.

Labels are chosen by the same rule (`coverage.choose_labels`: the client's own histogram against the global model's
loss per label), except that the loss is taken on the public set and not on decoder samples (our choice: without a
decoder there is nothing else to take it on).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from client.attacks.base import Resources, Result
from client.attacks.coverage import choose_labels
from steelyard.parsing import NonNegativeFloat, Positive


@dataclass(frozen=True, kw_only=True)
class RealSamplesParams:
    """`samples` is B; `tilt` as in `latent`: target share = loss ** tilt (0: all labels the same).

    `source` has one value; it says in the table that this control cannot do without the public set.
    """

    samples: Positive = 32
    tilt: NonNegativeFloat = 1.0
    source: Literal["public"] = "public"


class RealSamples:
    """Trains on its shard and B public samples of under-covered labels, drawn fresh every round."""

    def __init__(self, params: RealSamplesParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources
        self.images, self.labels = resources.public_set("real_samples")

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training with B real samples more."""
        own = self.resources
        wanted = self._choose(global_D)
        generator = own.generator("real", round_)
        drawn = torch.cat([self._draw(label, count, generator) for label, count in enumerate(wanted) if count])
        both = torch.cat([own.images, self.images[drawn]]), torch.cat([own.labels, self.labels[drawn]])
        made = ",".join(f"{label}:{count}" for label, count in enumerate(wanted) if count)
        return Result(update_D=own.train(round_, global_D, *both), notes={"labels": made})

    def _choose(self, global_D: torch.Tensor) -> list[int]:
        """How many samples of each label."""
        own = self.resources
        own.model.load(global_D)
        own.model.module.eval()
        with torch.no_grad():
            losses = functional.cross_entropy(own.model(self.images), self.labels, reduction="none")
        known_C = torch.bincount(self.labels.cpu(), minlength=own.model.classes)
        # summed on the CPU: a GPU has no deterministic sum by label
        losses_C = torch.bincount(self.labels.cpu(), weights=losses.double().cpu(), minlength=own.model.classes)
        target_C = (known_C > 0) * (losses_C / known_C.clamp(min=1)).clamp(min=1e-3) ** self.params.tilt
        own_C = torch.bincount(own.labels, minlength=own.model.classes)
        return torch.bincount(choose_labels(own_C, target_C, self.params.samples)).tolist()

    def _draw(self, label: int, count: int, generator: torch.Generator) -> torch.Tensor:
        """Indices [count] of a label's public samples: all of them before any comes again."""
        mine = (self.labels == label).nonzero().flatten()
        rounds = -(-count // len(mine))
        order = torch.cat([torch.randperm(len(mine), generator=generator) for _ in range(rounds)])
        return mine[order[:count]]
