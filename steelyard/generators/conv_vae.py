"""The kind "conv_vae": a conditional convolutional variational auto-encoder, whose encoder is thrown away.

Kingma & Welling 2014 (arXiv 1312.6114), conditioned on the label as in Sohn et al. 2015; the networks are those of
`convolution`. Sizes and training are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from steelyard.config import Shape
from steelyard.generators.convolution import decode, decoder_layers, features, read, reader_layers
from steelyard.generators.layers import Weights, dense, first_weights, linear, with_label
from steelyard.generators.losses import Tail, negative_bound
from steelyard.parsing import NonNegativeFloat, Positive, PositiveFloat
from steelyard.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class ConvVaeParams:
    """Size and training; `width` planes at half the image's size, twice as many at a quarter.

    `divergence` weighs the Kullback-Leibler term against the mean cross-entropy of a pixel, so that one value suits
    all image sizes: with too little of it the latents carry the label, and samples of the prior ignore the one asked.
    """

    kind: Literal["conv_vae"] = "conv_vae"
    latent: Positive = 8
    width: Positive = 16
    steps: Positive = 600
    batch_size: Positive = 64
    learning_rate: PositiveFloat = 0.003
    divergence: NonNegativeFloat = 0.004


def train(
    images: torch.Tensor, labels: torch.Tensor, shape: Shape, params: ConvVaeParams, seed: int
) -> tuple[Weights, dict[str, float]]:
    """Train with Adam; arguments and results as of `training.train_decoder`, the weights those of all layers."""
    layers = reader_layers("encode", shape, params.width)
    layers |= {"encode.2": dense(features(shape, params.width) + shape.classes, 2 * params.latent)}
    layers |= decoder_layers(shape, params.latent, params.width)
    weights = first_weights(layers, torch_generator(seed, "decoder", "weights"))
    draws = torch_generator(seed, "decoder", "draws")
    optimizer = torch.optim.Adam(list(weights.values()), lr=params.learning_rate)
    divergence = params.divergence * shape.channels * shape.height * shape.width
    tail = Tail("negative_bound")
    for _ in range(params.steps):
        batch = torch.randint(len(labels), (params.batch_size,), generator=draws)
        noise_BL = torch.randn(params.batch_size, params.latent, generator=draws)
        seen = with_label(read(weights, "encode", images[batch], shape), labels[batch], shape.classes)
        mean_BL, log_variance_BL = linear(weights, "encode.2", seen).chunk(2, dim=1)
        latents_BL = mean_BL + (0.5 * log_variance_BL).exp() * noise_BL
        logits = decode(weights, latents_BL, labels[batch], shape)
        loss = negative_bound(logits, images[batch], mean_BL, log_variance_BL, divergence)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        optimizer.step()
        tail.note(loss)
    return weights, tail.means()
