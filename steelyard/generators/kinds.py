"""The kinds of decoders: one file per kind, one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from steelyard.config import Shape
from steelyard.generators import conv_vae, convolution, dcgan, mlp
from steelyard.generators.conv_vae import ConvVaeParams
from steelyard.generators.dcgan import DcganParams
from steelyard.generators.layers import Weights
from steelyard.generators.mlp import MlpParams
from steelyard.parsing import parse

DecoderParams = MlpParams | ConvVaeParams | DcganParams  # `parse` tells them apart by the key `kind`


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one kind is used and trained.

    `decode` maps weights, latents [B, L], labels [B] and shape to pixel logits, as a pure function, twice
    differentiable in the latents, each sample's image by itself. `train` returns the weights of all layers, the
    decoder's named "decode.*", and the final losses by name.
    """

    decode: Callable[[Weights, torch.Tensor, torch.Tensor, Shape], torch.Tensor]
    train: Callable[[torch.Tensor, torch.Tensor, Shape, Any, int], tuple[Weights, dict[str, float]]]


KINDS: dict[str, Kind] = {
    "mlp": Kind(decode=mlp.decode, train=mlp.train),
    "conv_vae": Kind(decode=convolution.decode, train=conv_vae.train),
    "dcgan": Kind(decode=convolution.decode, train=dcgan.train),
}


@dataclass(frozen=True, kw_only=True)
class _Attack:
    decoder: DecoderParams = field(default_factory=MlpParams)


def decoder_params(table: Mapping[str, Any]) -> DecoderParams:
    """The parameters that a table [attack.decoder] gives, every default filled in.

    Raises:
        UserError: an unknown kind or key, or a value out of range.
    """
    return parse(_Attack, {"decoder": table}, "[attack]").decoder
