"""The joint loss that latents are optimized under, and its optimization.

Three terms after Gao et al. 2026 (arXiv 2605.15520), whose formulas are not public: direction alignment, magnitude
consistency and task cross-entropy in a form of our own, and a prior on the latents, also our own. The direction and
the magnitude are those of gradients (`Objective`) or of the update that local training makes of them
(`UpdateObjective`), so the loss is differentiated through gradients (double back-propagation). A fifth term, also our
own, is the utility that an evaluator would see, simulated on the reference's data.

Legend: B synthetic samples, L latent values, P trainable parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from client.attacks.company_view import company_loss
from client.attacks.reference import Reference, gradient
from client.attacks.unroll import LocalTraining, call
from steelyard.generators import Decoder
from steelyard.models import FlatModel
from steelyard.parsing import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How much each term counts."""

    direction: NonNegativeFloat = 1.0
    magnitude: NonNegativeFloat = 0.1
    task: NonNegativeFloat = 0.0
    prior: NonNegativeFloat = 0.1
    utility: NonNegativeFloat = 0.0


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms' values, before they are weighed; `utility` is 0 where nothing simulates it."""

    direction: torch.Tensor
    magnitude: torch.Tensor
    task: torch.Tensor
    prior: torch.Tensor
    utility: torch.Tensor

    def total(self, weights: Weights) -> torch.Tensor:
        """The joint loss."""
        return (
            weights.direction * self.direction
            + weights.magnitude * self.magnitude
            + weights.task * self.task
            + weights.prior * self.prior
            + weights.utility * self.utility
        )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The terms of gradients as a function of the latents [B, L], at the state that the model has loaded.

    The decoder makes the images for `carriers` [B]; they are trained on as `labels` [B].
    `by_label` takes direction and magnitude of each label's samples apart and averages them; otherwise they are the
    whole batch's. `own_share`, the part of the client's training set that is its own, and `own_P`, its own mean
    gradient [P], make the direction that of all the client trains on (None: of the synthetic samples alone); with
    `by_label` that is averaged with the labels' directions. `norm` is the length of an honest mini-batch gradient.
    """

    model: FlatModel
    decoder: Decoder
    carriers: torch.Tensor
    labels: torch.Tensor
    reference: Reference
    norm: float
    by_label: bool
    own_P: torch.Tensor | None
    own_share: float

    def __call__(self, latents_BL: torch.Tensor) -> Terms:
        """The terms, differentiable in the latents."""
        images = self.decoder(latents_BL, self.carriers)
        logits_loss = functional.cross_entropy(self.model(images), self.labels)
        parts = self._gradients(images)
        directions = torch.stack([1 - _cosine(part_P, towards_P) for part_P, towards_P, _ in parts])
        ratios = torch.stack([part_P.norm() for part_P, _, _ in parts]) / self.norm
        direction = directions.mean()
        if self.own_P is not None:
            batch_P = torch.stack([share * part_P for part_P, _, share in parts]).sum(0)
            total_P = self.own_share * self.own_P + (1 - self.own_share) * batch_P
            whole = 1 - _cosine(total_P, self.reference.direction_P)
            direction = (direction + whole) / 2 if self.by_label else whole
        return Terms(
            direction=direction,
            magnitude=(ratios - 1).square().mean(),
            task=logits_loss,
            prior=latents_BL.square().mean(),
            utility=torch.zeros((), device=latents_BL.device),
        )

    def _gradients(self, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """Per group of samples: its mean gradient [P], its reference [P], its share of the batch."""
        if not self.by_label:
            return [(gradient(self.model, images, self.labels, graph=True), self.reference.direction_P, 1.0)]
        groups = []
        for label in sorted(set(self.labels.tolist())):
            mine = self.labels == label
            part_P = gradient(self.model, images[mine], self.labels[mine], graph=True)
            groups.append((part_P, self.reference.of(label), float(mine.float().mean())))
        return groups


@dataclass(frozen=True, kw_only=True)
class UpdateObjective:
    """The terms of the update that the client will send, as a function of the latents [B, L].

    Local training is simulated step by step on the shard and the synthetic samples. Direction: the update against the
    reference's; magnitude: its length against `norm`, that of the update which honest training would make; utility: the
    mean cross-entropy of the model that the update leads to, on the reference's data. With BatchNorm, utility and task
    are taken with the running statistics that the simulated training ends with. `company_P`, the step [P] that each
    simulated other sends, makes the utility minus the score that `company` would give the update in their company.
    """

    training: LocalTraining
    decoder: Decoder
    carriers: torch.Tensor
    labels: torch.Tensor
    reference: Reference
    norm: float
    company_P: torch.Tensor | None = None

    def __call__(self, latents_BL: torch.Tensor) -> Terms:
        """The terms, differentiable in the latents."""
        model, global_D = self.training.resources.model, self.training.global_D
        start_P = global_D[: model.layout.trainable]
        images = self.decoder(latents_BL, self.carriers)
        update_P = self.training(images, self.labels)
        model.module.eval()
        utility = torch.zeros((), device=latents_BL.device)
        if self.reference.data is not None:
            x, y = self.reference.data
            if self.company_P is None:
                utility = functional.cross_entropy(call(model, start_P + update_P, x), y)
            else:
                utility = company_loss(model, start_P, update_P, self.company_P, (x, y))
        return Terms(
            direction=1 - _cosine(update_P, -self.reference.direction_P),
            magnitude=(update_P.norm() / self.norm - 1).square(),
            task=functional.cross_entropy(call(model, start_P, images), self.labels),
            prior=latents_BL.square().mean(),
            utility=utility,
        )


def minimize(
    objective: Callable[[torch.Tensor], Terms], start_BL: torch.Tensor, weights: Weights, steps: int, rate: float
) -> torch.Tensor:
    """Latents [B, L] after so many steps of Adam from a start."""
    latents_BL = start_BL.clone().requires_grad_()
    optimizer = torch.optim.Adam([latents_BL], lr=rate)
    for _ in range(steps):
        (slope_BL,) = torch.autograd.grad(objective(latents_BL).total(weights), [latents_BL])
        latents_BL.grad = slope_BL
        optimizer.step()
    return latents_BL.detach()


def _cosine(a_P: torch.Tensor, b_P: torch.Tensor) -> torch.Tensor:
    return functional.cosine_similarity(a_P, b_P, dim=0, eps=1e-12)
