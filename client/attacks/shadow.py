"""The Shadow attack on data attribution (Wang et al. 2025, arXiv 2409.05657), carried over to federated rounds.

Own points are perturbed, labels kept, so that their gradients point where those of reference data point, on average
over shadow models. Our choices: the attack is made anew every round; shadow models start from the round's global model
and train like a client on random halves of the shard, since a round's score is about one step from that model (models
from initial states would be strangers to it); the ascent is PGD; the reference is label-balanced.

Legend: S shadow models, D state values, P trainable parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from client.attacks.base import LabelledImages, Resources, Result
from client.attacks.latent import withheld
from client.attacks.perturbation import ascend
from client.attacks.reference import from_data, gradient
from client.attacks.simulation import simulate
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.parsing import Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class ShadowParams:
    """Where the reference data come from, how far points may move (L-infinity), and the effort.

    `reference = "own"` withholds every fourth own sample of each label as reference data: these are trained on
    unperturbed. "public" takes the public set and perturbs the whole shard.
    """

    reference: Literal["own", "public"] = "own"
    eps: Fraction = 0.03
    models: Positive = 8
    steps: Positive = 5


def inner_product(
    model: FlatModel, images: torch.Tensor, labels: torch.Tensor, direction_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss gradient's inner product with a direction at the loaded model, and its slope in the images.

    The slope is a true second derivative: the loss gradient's graph is kept, so the images' way into it counts.
    """
    images = images.detach().requires_grad_()
    product = gradient(model, images, labels, graph=True) @ direction_P
    (slope,) = torch.autograd.grad(product, [images])
    return product.detach(), slope


class Shadow:
    """Trains on its shard with points perturbed towards the reference data's gradient."""

    def __init__(self, params: ShadowParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources
        own = resources
        self.kept = torch.zeros_like(own.labels, dtype=torch.bool)
        if params.reference == "public":
            self.reference = own.public_set('reference = "public"')
        else:
            self.kept = withheld(own)
            self.reference = own.images[self.kept], own.labels[self.kept]
        if self.kept.all():
            raise UserError('[attack] a shard of at least 2 samples expected: reference "own" withholds one, got 1')

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training on the perturbed shard: as many samples and steps as honest."""
        own = self.resources
        points = own.images[~self.kept], own.labels[~self.kept]
        pairs = self._shadows(round_, global_D, points)
        moved = ascend(points[0], self.params.eps, self.params.steps, lambda x: self._products(pairs, x, points[1])[1])
        notes = {
            "start_product": self._products(pairs, *points)[0],
            "end_product": self._products(pairs, moved, points[1])[0],
        }
        images = own.images.clone()
        images[~self.kept] = moved
        return Result(update_D=own.train(round_, global_D, images, own.labels), notes=notes)

    def _shadows(
        self, round_: int, global_D: torch.Tensor, points: LabelledImages
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per shadow model its state [D] and the reference data's gradient [P] there."""
        own, (images, labels) = self.resources, points
        generator = own.generator("halves", round_)
        half = (len(labels) + 1) // 2
        halves = [torch.randperm(len(labels), generator=generator)[:half] for _ in range(self.params.models)]
        updates_SD = simulate(own, round_, "shadows", global_D, [(images[part], labels[part]) for part in halves])
        pairs = []
        for update_D in updates_SD:
            self._load(global_D + update_D)
            pairs.append((global_D + update_D, from_data(own.model, *self.reference).direction_P))
        return pairs

    def _products(
        self, pairs: list[tuple[torch.Tensor, torch.Tensor]], images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        """The inner products' sum over the shadow models, and its slope in the images."""
        total, slopes = 0.0, torch.zeros_like(images)
        for state_D, direction_P in pairs:
            self._load(state_D)
            product, slope = inner_product(self.resources.model, images, labels, direction_P)
            total += float(product)
            slopes += slope
        return total, slopes

    def _load(self, state_D: torch.Tensor) -> None:
        self.resources.model.load(state_D)
        self.resources.model.module.eval()
