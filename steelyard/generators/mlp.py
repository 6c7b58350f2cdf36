"""The kind "mlp": a conditional variational auto-encoder of perceptrons, whose encoder is thrown away.

Kingma & Welling 2014 (arXiv 1312.6114), conditioned on the label as in Sohn et al. 2015. Deterministic: one generator
per purpose, none global.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from steelyard.config import Shape
from steelyard.generators.layers import Weights, dense, first_weights, linear, with_label
from steelyard.generators.losses import Tail, negative_bound
from steelyard.parsing import NonNegativeFloat, Positive, PositiveFloat
from steelyard.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class MlpParams:
    """Size and training; `divergence` weighs the Kullback-Leibler term against the pixels' cross-entropy."""

    kind: Literal["mlp"] = "mlp"
    latent: Positive = 8
    hidden: Positive = 128
    steps: Positive = 600
    batch_size: Positive = 64
    learning_rate: PositiveFloat = 0.005
    divergence: NonNegativeFloat = 0.2


def decode(weights: Weights, latents_BL: torch.Tensor, labels_B: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Pixel logits [B, channels, height, width]: a perceptron of two hidden layers on latents and one-hot labels."""
    hidden = with_label(latents_BL, labels_B, shape.classes)
    for layer in ("decode.0", "decode.1"):
        hidden = functional.softplus(linear(weights, layer, hidden))
    return linear(weights, "decode.2", hidden).view(-1, shape.channels, shape.height, shape.width)


def train(
    images: torch.Tensor, labels: torch.Tensor, shape: Shape, params: MlpParams, seed: int
) -> tuple[Weights, dict[str, float]]:
    """Train with Adam; arguments and results as of `training.train_decoder`, the weights those of all layers."""
    weights = _first_weights(shape, params, torch_generator(seed, "decoder", "weights"))
    draws = torch_generator(seed, "decoder", "draws")
    optimizer = torch.optim.Adam(list(weights.values()), lr=params.learning_rate)
    tail = Tail("negative_bound")
    for _ in range(params.steps):
        batch = torch.randint(len(labels), (params.batch_size,), generator=draws)
        noise_BL = torch.randn(params.batch_size, params.latent, generator=draws)
        optimizer.zero_grad()
        mean_BL, log_variance_BL = _encode(weights, images[batch], labels[batch], shape)
        latents_BL = mean_BL + (0.5 * log_variance_BL).exp() * noise_BL
        logits = decode(weights, latents_BL, labels[batch], shape)
        loss = negative_bound(logits, images[batch], mean_BL, log_variance_BL, params.divergence)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        optimizer.step()
        tail.note(loss)
    return weights, tail.means()


def _encode(
    weights: Weights, images: torch.Tensor, labels: torch.Tensor, shape: Shape
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and logarithm of the variance of each image's latents, both [B, L]."""
    hidden = functional.softplus(linear(weights, "encode.0", with_label(images.flatten(1), labels, shape.classes)))
    mean_BL, log_variance_BL = linear(weights, "encode.1", hidden).chunk(2, dim=1)
    return mean_BL, log_variance_BL


def _first_weights(shape: Shape, params: MlpParams, generator: torch.Generator) -> Weights:
    pixels = shape.channels * shape.height * shape.width
    layers = {
        "encode.0": dense(pixels + shape.classes, params.hidden),
        "encode.1": dense(params.hidden, 2 * params.latent),
        "decode.0": dense(params.latent + shape.classes, params.hidden),
        "decode.1": dense(params.hidden, params.hidden),
        "decode.2": dense(params.hidden, pixels),
    }
    return first_weights(layers, generator)
