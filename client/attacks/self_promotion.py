"""Self-promotion: an update made for an evaluator that the client simulates (after Pejo et al. 2025, 2509.19921).

The client plays the whole federation to itself: other clients, coalitions of them, a validation set. It then changes
its update by gradient ascent so that its mean marginal contribution to the simulated coalitions rises, never longer
than its honest update. All of this is our choice: who the others are, equal weights of all clients, coalitions of a
uniformly drawn size (whose mean marginal is the Shapley value), utility = minus the label-balanced validation loss,
and the ascent. Buffers stay honest.

Legend: K simulated clients, S sampled coalitions, D state values, P trainable parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from client.attacks.base import LabelledImages, Resources, Result
from client.attacks.latent import withheld
from client.attacks.memory import Memory
from client.attacks.simulation import simulate, skewed
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.parsing import Positive, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class SelfPromotionParams:
    """Who the simulated others are, what they are validated on, and the effort.

    `others`: `clients` of them, trained on label-skewed resamples of its own shard or of the public set; or each of
    them the previous global step ("own" until there is one). `validation`: every fourth own sample of each label, which
    the others then never see, or the public set, every second sample of it where the others are trained on it too.
    `steps` of ascent over `coalitions`, the first of length `rate` times the honest update's, then falling to 0.
    """

    others: Literal["own", "public", "previous_step"] = "own"
    validation: Literal["own", "public"] = "own"
    clients: Positive = 5
    coalitions: Positive = 8
    steps: Positive = 20
    rate: PositiveFloat = 0.05


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """The simulated evaluator of one round: `bases_SD`, the coalitions' summed updates, and their `sizes_S`."""

    model: FlatModel
    global_D: torch.Tensor
    bases_SD: torch.Tensor
    sizes_S: list[int]
    images: torch.Tensor
    labels: torch.Tensor

    def loss(self, update_D: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The mean loss of the coalitions joined by an update [D], and its gradient [P] in the update."""
        total, slope_P = 0.0, torch.zeros_like(update_D[: self.model.layout.trainable])
        for base_D, size in zip(self.bases_SD, self.sizes_S, strict=True):
            loss = self._loss_at(self.global_D + (base_D + update_D) / (size + 1))
            parts = torch.autograd.grad(loss, self.model.parameters)
            slope_P += torch.cat([part.flatten() for part in parts]) / (size + 1)
            total += float(loss.detach())
        return total / len(self.sizes_S), slope_P / len(self.sizes_S)

    def alone(self) -> float:
        """The mean loss of the coalitions without the client: a marginal contribution is this minus `loss`."""
        bases = zip(self.bases_SD, self.sizes_S, strict=True)
        losses = [float(self._loss_at(self.global_D + base_D / max(size, 1)).detach()) for base_D, size in bases]
        return sum(losses) / len(losses)

    def _loss_at(self, state_D: torch.Tensor) -> torch.Tensor:
        self.model.load(state_D)
        self.model.module.eval()
        count = torch.bincount(self.labels)
        weights = 1 / (count[self.labels] * (count > 0).sum())
        return (weights * functional.cross_entropy(self.model(self.images), self.labels, reduction="none")).sum()


class SelfPromotion:
    """Sends the update that its simulated evaluator likes best among those no longer than its honest one."""

    def __init__(self, params: SelfPromotionParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources
        self.memory = Memory(resources.folder, resources.device)
        own = resources
        seen = torch.ones_like(own.labels, dtype=torch.bool)
        self.validation: LabelledImages
        if params.validation == "own":
            seen = ~withheld(own)
            self.validation = own.images[~seen], own.labels[~seen]
        else:
            self.validation = own.public_set('validation = "public"')
        self.pool: LabelledImages = own.images[seen], own.labels[seen]
        if params.others == "public":
            images, labels = own.public_set('others = "public"')
            shared = params.validation == "public"
            self.pool = (images[::2], labels[::2]) if shared else (images, labels)
            if shared:
                self.validation = images[1::2], labels[1::2]
        if not len(self.pool[1]) or not len(self.validation[1]):
            raise UserError("[attack] self_promotion needs 2 samples at least, to simulate others and to validate")

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """The honest update, promoted."""
        own = self.resources
        honest_D = own.train(round_, global_D, own.images, own.labels)
        others_KD, source = self._others(round_, global_D)
        evaluator = self._evaluator(round_, global_D, others_KD)
        promoted_D = promote(evaluator, honest_D, self.params.steps, self.params.rate)
        alone = evaluator.alone()
        scores = {
            f"{when}_score": alone - evaluator.loss(update_D)[0]
            for when, update_D in (("start", honest_D), ("end", promoted_D))
        }
        if self.params.others == "previous_step":
            self.memory.keep(round_, {"global": global_D})
        return Result(update_D=promoted_D, notes={"others": source, **scores})

    def _others(self, round_: int, global_D: torch.Tensor) -> tuple[torch.Tensor, str]:
        """The simulated others' updates [K, D], and where they came from."""
        own, params = self.resources, self.params
        if params.others == "previous_step":
            before = self.memory.before(round_)
            step_D = global_D - before.get("global", global_D)
            if step_D.any():
                return step_D.expand(params.clients, -1), "previous_step"
        generator = own.generator("others", round_)
        shards = [skewed(*self.pool, len(own.labels), generator) for _ in range(params.clients)]
        source = "public" if params.others == "public" else "own"
        return simulate(own, round_, "simulate", global_D, shards), source

    def _evaluator(self, round_: int, global_D: torch.Tensor, others_KD: torch.Tensor) -> Evaluator:
        generator = self.resources.generator("coalitions", round_)
        count = len(others_KD)
        sizes = torch.randint(count + 1, (self.params.coalitions,), generator=generator).tolist()
        members = [torch.randperm(count, generator=generator)[:size] for size in sizes]
        return Evaluator(
            model=self.resources.model,
            global_D=global_D,
            bases_SD=torch.stack([others_KD[chosen].sum(0) for chosen in members]),
            sizes_S=sizes,
            images=self.validation[0],
            labels=self.validation[1],
        )


def promote(evaluator: Evaluator, honest_D: torch.Tensor, steps: int, rate: float) -> torch.Tensor:
    """The update [D] after normalized gradient ascent on the simulated score inside the ball of the honest norm."""
    update_D = honest_D.clone()
    part_P = update_D[: evaluator.model.layout.trainable]
    bound = part_P.norm()
    for step in range(steps):
        _, slope_P = evaluator.loss(update_D)
        part_P -= rate * (1 - step / steps) * bound * slope_P / slope_P.norm().clamp(min=1e-12)
        part_P *= (bound / part_P.norm().clamp(min=1e-12)).clamp(max=1)
    return update_D
