"""Training a conditional decoder: a variational auto-encoder whose encoder is thrown away.

Kingma & Welling 2014 (arXiv 1312.6114), conditioned on the label as in Sohn et al. 2015. Deterministic: one generator
per purpose, none global.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from steelyard.config import Shape
from steelyard.generators.decoder import Decoder, Weights, decode, linear
from steelyard.parsing import NonNegativeFloat, Positive, PositiveFloat
from steelyard.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class DecoderParams:
    """Size and training; `divergence` weighs the Kullback-Leibler term against the pixels' cross-entropy."""

    latent: Positive = 8
    hidden: Positive = 128
    steps: Positive = 600
    batch_size: Positive = 64
    learning_rate: PositiveFloat = 0.005
    divergence: NonNegativeFloat = 0.2


def train_decoder(
    images: torch.Tensor, labels: torch.Tensor, shape: Shape, params: DecoderParams, seed: int
) -> Decoder:
    """Train a decoder with Adam.

    Args:
        images: [n, channels, height, width], float32 in [0, 1].
        labels: [n], int64.
        shape: the images' shape and the number of classes.
        params: size and training.
        seed: decides the first weights, the mini-batches and the encoder's noise.

    Returns:
        A decoder for the labels present.
    """
    weights = _initial_weights(shape, params, torch_generator(seed, "decoder", "weights"))
    draws = torch_generator(seed, "decoder", "draws")
    optimizer = torch.optim.Adam(list(weights.values()), lr=params.learning_rate)
    for _ in range(params.steps):
        batch = torch.randint(len(labels), (params.batch_size,), generator=draws)
        noise_BL = torch.randn(params.batch_size, params.latent, generator=draws)
        optimizer.zero_grad()
        loss = _loss(weights, images[batch], labels[batch], noise_BL, shape, params.divergence)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        optimizer.step()
    kept = {name: tensor.detach() for name, tensor in weights.items() if name.startswith("decode.")}
    return Decoder(shape=shape, labels=tuple(sorted(set(labels.tolist()))), weights=kept)


def _loss(
    weights: Weights,
    images: torch.Tensor,
    labels: torch.Tensor,
    noise_BL: torch.Tensor,
    shape: Shape,
    divergence: float,
) -> torch.Tensor:
    """Negative evidence bound per image: cross-entropy of the pixels plus the weighted divergence from the prior."""
    inputs = torch.cat([images.flatten(1), functional.one_hot(labels, shape.classes).to(images.dtype)], dim=1)
    hidden = functional.softplus(linear(weights, "encode.0", inputs))
    mean_BL, log_variance_BL = linear(weights, "encode.1", hidden).chunk(2, dim=1)
    latents_BL = mean_BL + (0.5 * log_variance_BL).exp() * noise_BL
    pixels = functional.binary_cross_entropy_with_logits(
        decode(weights, latents_BL, labels, shape), images, reduction="sum"
    )
    excess = 0.5 * (mean_BL.square() + log_variance_BL.exp() - 1 - log_variance_BL).sum()
    return (pixels + divergence * excess) / len(labels)


def _initial_weights(shape: Shape, params: DecoderParams, generator: torch.Generator) -> Weights:
    pixels = shape.channels * shape.height * shape.width
    sizes = {
        "encode.0": (pixels + shape.classes, params.hidden),
        "encode.1": (params.hidden, 2 * params.latent),
        "decode.0": (params.latent + shape.classes, params.hidden),
        "decode.1": (params.hidden, params.hidden),
        "decode.2": (params.hidden, pixels),
    }
    weights: Weights = {}
    for layer, (inputs, outputs) in sizes.items():
        bound = math.sqrt(3 / inputs)
        uniform = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
        weights[f"{layer}.weight"] = uniform.requires_grad_()
        weights[f"{layer}.bias"] = torch.zeros(outputs).requires_grad_()
    return weights
