"""The convolutional networks of the kinds "conv_vae" and "dcgan": one decoder for both, one trunk that reads images.

After Radford et al. 2016 (arXiv 1511.06434), with strided and transposed convolutions and no pooling; at two scales,
which suits 8x8 to 32x32 pixels, without batch normalization (its statistics would couple the samples of a batch) and
with SiLU in the decoder (ReLU's second derivative is 0): our choice. Any height and width will do: planes are a
multiple of 4 wide inside, and cut to size.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from steelyard.config import Shape
from steelyard.generators.layers import Layer, Weights, dense, grow, growing, linear, shrink, shrinking, with_label


def decode(weights: Weights, latents_BL: torch.Tensor, labels_B: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Pixel logits [B, channels, height, width]: two fully connected layers, then two that double height and width."""
    height, width = _quarter(shape)
    hidden = functional.silu(linear(weights, "decode.0", with_label(latents_BL, labels_B, shape.classes)))
    hidden = functional.silu(linear(weights, "decode.1", with_label(hidden, labels_B, shape.classes)))
    planes = functional.silu(grow(weights, "decode.2", hidden.view(len(hidden), -1, height, width)))
    return grow(weights, "decode.3", planes)[:, :, : shape.height, : shape.width]


def decoder_layers(shape: Shape, latent: int, width: int) -> dict[str, Layer]:
    """The decoder's layers: `width` planes at half the size, twice as many at a quarter.

    The first layer is named and shaped as the perceptron's, so `Decoder.latent` reads either.
    """
    return {
        "decode.0": dense(latent + shape.classes, 8 * width),
        "decode.1": dense(8 * width + shape.classes, 2 * width * math.prod(_quarter(shape))),
        "decode.2": growing(2 * width, width),
        "decode.3": growing(width, shape.channels),
    }


def read(weights: Weights, prefix: str, images: torch.Tensor, shape: Shape) -> torch.Tensor:
    """An image's features [B, F]; trained only, so a kink in its activation does no harm."""
    height, width = _quarter(shape)
    planes = functional.pad(images, (0, 4 * width - shape.width, 0, 4 * height - shape.height))
    for layer in ("0", "1"):
        planes = functional.leaky_relu(shrink(weights, f"{prefix}.{layer}", planes), 0.2)
    return planes.flatten(1)


def reader_layers(prefix: str, shape: Shape, width: int) -> dict[str, Layer]:
    """The layers of `read`."""
    return {f"{prefix}.0": shrinking(shape.channels, width), f"{prefix}.1": shrinking(width, 2 * width)}


def features(shape: Shape, width: int) -> int:
    """The number F of values that `read` gives."""
    return 2 * width * math.prod(_quarter(shape))


def _quarter(shape: Shape) -> tuple[int, int]:
    """Height and width at the smallest scale, rounded up."""
    return math.ceil(shape.height / 4), math.ceil(shape.width / 4)
