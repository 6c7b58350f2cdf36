"""The latent-optimization attack on contribution scores.

After "On the Fragility of Data Attribution When Learning Is Distributed", Gao et al. 2026 (arXiv 2605.15520). The names
of the three terms are the paper's; their form, the reference, the label choice and every number are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from client.attacks.base import Note, Resources, Result
from client.attacks.memory import Memory
from client.attacks.objective import Objective, UpdateObjective, Weights, minimize
from client.attacks.reference import Reference, from_data, from_step, gradient, honest_norm
from client.attacks.synthesis import Draft, SynthesisParams, Synthesizer
from client.attacks.unroll import LocalTraining
from steelyard.errors import UserError
from steelyard.parsing import NonNegative, Positive, PositiveFloat

PER_LABEL = 16  # decoder samples per label that the reference "decoder" is made of


@dataclass(frozen=True, kw_only=True)
class LatentParams(SynthesisParams):
    """The synthesis and the optimization of its latents.

    `reference` says where the rewarded direction comes from: minus the last global step (`own` in the first round),
    the client's own withheld samples, label-balanced decoder samples, or the public set. `granularity` takes direction
    and magnitude of the whole batch or of each label's samples; `align` takes the direction of the synthetic batch's
    gradient, of the gradient of all that the client trains on, or of the update that it will send, its own local
    training simulated and differentiated through (the last `unroll` steps of it; 0: all). `steps` of Adam at `rate`;
    `weights` of the terms: with all but the prior at 0 the latents are drawn to the middle, a control that tells how
    much the rest adds. The utility term simulates an evaluator on the reference's data; it needs the update, and data.
    `evaluator` is the simulated one: the loss of the model that the update leads to, or `company` (company_view.py).
    """

    reference: Literal["previous_step", "own", "decoder", "public"] = "previous_step"
    granularity: Literal["batch", "class"] = "batch"
    align: Literal["batch", "total", "update"] = "total"
    unroll: NonNegative = 0
    steps: Positive = 30
    rate: PositiveFloat = 0.1
    weights: Weights = field(default_factory=Weights)
    evaluator: Literal["loss", "company"] = "loss"

    def __post_init__(self) -> None:
        """Raises `UserError` where two settings do not go together."""
        if self.align == "update" and self.granularity == "class":
            raise UserError('[attack] latent align = "update" looks at one update; set granularity = "batch"')
        if self.weights.utility and (self.align != "update" or self.reference == "previous_step"):
            raise UserError(
                '[attack] latent weights utility simulates an evaluator of the update on data: align = "update" and a '
                f'reference "own", "decoder" or "public" expected, got {self.align!r} and {self.reference!r}'
            )


class Latent:
    """Trains on its shard and B synthetic samples whose latents were optimized for this round's global model."""

    def __init__(self, params: LatentParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources
        self.memory = Memory(resources.folder, resources.device)
        if params.reference == "public":
            resources.public_set('reference = "public"')
        self.withheld = withheld(resources)
        unseen = self.withheld if params.reference == "own" else torch.zeros_like(self.withheld)
        self.synthesizer = Synthesizer(params, resources, unseen)

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Draft, optimize, train."""
        before = self.memory.before(round_)
        draft = self.synthesizer.draft(round_, global_D)
        reference, source = self._reference(round_, global_D, before)
        objective = self._objective(round_, global_D, draft, reference, before)
        latents_BL = minimize(objective, draft.latents_BL, self.params.weights, self.params.steps, self.params.rate)
        notes: dict[str, Note] = {"reference": source}
        for when, latents in (("start", draft.latents_BL), ("end", latents_BL)):
            terms = objective(latents)
            notes |= {f"{when}_{name}": float(term.detach()) for name, term in vars(terms).items()}
            notes[f"{when}_objective"] = float(terms.total(self.params.weights).detach())
        result = self.synthesizer.train(round_, global_D, replace(draft, latents_BL=latents_BL), notes)
        self.memory.keep(round_, {"global": global_D})
        return result

    def _objective(
        self,
        round_: int,
        global_D: torch.Tensor,
        draft: Draft,
        reference: Reference,
        before: dict[str, torch.Tensor],
    ) -> Objective | UpdateObjective:
        own, decoder = self.resources, self.synthesizer.decoder
        if self.params.align == "update":
            honest_D = own.train(round_, global_D, own.images, own.labels)
            return UpdateObjective(
                training=LocalTraining(resources=own, round=round_, global_D=global_D, last=self.params.unroll),
                decoder=decoder,
                carriers=draft.carriers,
                labels=draft.labels,
                reference=reference,
                norm=max(float(honest_D[: own.model.layout.trainable].norm()), 1e-12),
                company_P=self._others(global_D, before) if self.params.evaluator == "company" else None,
            )
        total = self.params.align == "total"
        return Objective(
            model=own.model,
            decoder=decoder,
            carriers=draft.carriers,
            labels=draft.labels,
            reference=reference,
            norm=max(honest_norm(own.model, own.images, own.labels, own.training.batch_size), 1e-12),
            by_label=self.params.granularity == "class",
            own_P=gradient(own.model, own.images, own.labels) if total else None,
            own_share=len(own.labels) / (len(own.labels) + len(draft.labels)),
        )

    def _others(self, global_D: torch.Tensor, before: dict[str, torch.Tensor]) -> torch.Tensor:
        """What each simulated other sends, [P]: the last global step; nothing in the first round."""
        return (global_D - before.get("global", global_D))[: self.resources.model.layout.trainable]

    def _reference(self, round_: int, global_D: torch.Tensor, before: dict[str, torch.Tensor]) -> tuple[Reference, str]:
        """The reference and the name of its source, which in the first rounds may be another than asked for."""
        own, source = self.resources, self.params.reference
        if source == "previous_step" and before:
            step_P = (global_D - before["global"])[: own.model.layout.trainable]
            if step_P.any():
                return from_step(step_P), source
        if source == "public":
            return from_data(own.model, *own.public_set('reference = "public"')), source
        if source == "decoder":
            decoder = self.synthesizer.decoder
            labels = torch.tensor(decoder.labels).to(own.device).repeat_interleave(PER_LABEL)
            return from_data(own.model, decoder.sample(labels, own.generator("reference", round_)), labels), source
        return from_data(own.model, own.images[self.withheld], own.labels[self.withheld]), "own"


def withheld(resources: Resources) -> torch.Tensor:
    """Marks [n] every fourth sample of each label, at least one of all, that the reference `own` is made of."""
    marks = torch.zeros_like(resources.labels, dtype=torch.bool)
    for label in sorted(set(resources.labels.tolist())):
        marks[(resources.labels == label).nonzero().flatten()[3::4]] = True
    if not marks.any():
        marks[-1] = True
    return marks
