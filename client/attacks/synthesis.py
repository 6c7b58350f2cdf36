"""A decoder, the labels to make and the first latents: what `latent` and its control `decoder_samples` share.

Both draw from the same generators, so under one seed they differ by the optimization alone. But with
`reference = "own"`, `latent` withholds samples from its decoder, which is another one then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from client.attacks.base import Note, Resources, Result
from client.attacks.coverage import carry, choose_labels, label_losses
from client.attacks.handed import handed_decoder
from steelyard.errors import UserError
from steelyard.generators import Decoder, DecoderParams, MlpParams, cached_decoder
from steelyard.parsing import NonNegativeFloat, Positive
from steelyard.seeding import derive_seed

Source = Literal["own", "public"]


@dataclass(frozen=True, kw_only=True)
class SynthesisParams:
    """What is synthesized each round.

    `samples` is B; `decoder_source` says which data the decoder is trained on; `tilt` is how far the target histogram
    leans towards labels of high loss: target share = loss ** tilt (0: all labels the same). `labels` are those that the
    decoder knows ("known") or "all": for one that it was never trained on (its loss is taken as the mean of the others)
    a sample of another label, its carrier, is relabelled: the one that the global model comes nearest to taking for it.
    `decoder` says how the decoder is trained; `decoder_sha256` names one trained beforehand instead ("": none).
    """

    samples: Positive = 32
    decoder_source: Source = "own"
    tilt: NonNegativeFloat = 1.0
    labels: Literal["known", "all"] = "known"
    decoder: DecoderParams = field(default_factory=MlpParams)
    decoder_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One round's synthetic batch before any optimization.

    Latents [B, L], the labels [B] that the decoder makes images of, and those [B] that they are trained on as. The two
    differ only where the decoder lacks a label.
    """

    latents_BL: torch.Tensor
    carriers: torch.Tensor
    labels: torch.Tensor


class Synthesizer:
    """Drafts synthetic batches and trains on them beside the client's shard."""

    def __init__(self, params: SynthesisParams, resources: Resources, withheld: torch.Tensor) -> None:
        """`withheld` [n] marks the client's own samples that the decoder must not see."""
        self.params = params
        self.resources = resources
        images, labels = resources.pooled(~withheld)  # a colluding client has its allies' shards too
        if params.decoder_source == "public":
            images, labels = resources.public_set('decoder_source = "public"')
        if not len(labels):
            raise UserError('[attack] a shard of at least 2 samples expected: reference "own" withholds one, got 1')
        if params.decoder_sha256:
            unseen = params.decoder_source == "own" and bool(withheld.any())
            decoder = handed_decoder(resources, params.decoder_sha256, unseen=unseen)
        else:
            seed = derive_seed(resources.seed, "decoder")
            # trained on the CPU wherever the client computes: one decoder, one digest
            images, labels = images.cpu(), labels.cpu()
            decoder = cached_decoder(resources.folder, images, labels, resources.shape, params.decoder, seed)
        self.decoder: Decoder = decoder.to(resources.device)

    def draft(self, round_: int, global_D: torch.Tensor) -> Draft:
        """Labels that the client thinks under-covered, and first latents; loads the model.

        In the first round the global model takes nothing for anything yet, so there are no carriers.
        """
        own = self.resources
        own.model.load(global_D)
        losses_C = label_losses(own.model, self.decoder, own.generator("probe", round_))
        known = torch.tensor(self.decoder.labels)
        target_C = torch.zeros_like(losses_C)
        if self.params.labels == "all" and round_ > 1:
            target_C += losses_C[known].mean().clamp(min=1e-3) ** self.params.tilt
        target_C[known] = losses_C[known].clamp(min=1e-3) ** self.params.tilt
        own_C = torch.bincount(own.labels, minlength=own.model.classes)
        labels = choose_labels(own_C, target_C, self.params.samples).to(own.device)
        generator = own.generator("latents", round_)
        latents_BL = torch.randn(len(labels), self.decoder.latent, generator=generator).to(own.device)
        carriers = labels.clone()
        for label in sorted(set(labels.tolist()) - set(self.decoder.labels)):
            chosen = labels == label
            latents_BL[chosen], carriers[chosen] = carry(own.model, self.decoder, label, int(chosen.sum()), generator)
        return Draft(latents_BL=latents_BL, carriers=carriers, labels=labels)

    def train(self, round_: int, global_D: torch.Tensor, draft: Draft, notes: dict[str, Note]) -> Result:
        """The update of local training on the shard and the drafted samples."""
        own = self.resources
        with torch.no_grad():
            images = torch.cat([own.images, self.decoder(draft.latents_BL, draft.carriers)])
        labels = torch.cat([own.labels, draft.labels])
        carried = int((draft.carriers != draft.labels).sum())
        counts = torch.bincount(draft.labels).tolist()
        made = ",".join(f"{label}:{count}" for label, count in enumerate(counts) if count)
        return Result(
            update_D=own.train(round_, global_D, images, labels), notes=notes | {"labels": made, "carried": carried}
        )
