"""The control of `latent`: the same decoder, labels and first latents, without the optimization."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client.attacks.base import Resources, Result
from client.attacks.synthesis import SynthesisParams, Synthesizer


@dataclass(frozen=True, kw_only=True)
class DecoderSamplesParams(SynthesisParams):
    """The synthesis alone."""


class DecoderSamples:
    """Trains on its shard and plain decoder samples of under-covered labels."""

    def __init__(self, params: DecoderSamplesParams, resources: Resources) -> None:
        nothing = torch.zeros_like(resources.labels, dtype=torch.bool)
        self.synthesizer = Synthesizer(params, resources, nothing)

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training with B samples more."""
        return self.synthesizer.train(round_, global_D, self.synthesizer.draft(round_, global_D), {})
