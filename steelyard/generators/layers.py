"""Layers as pure functions of named weights, and their first values: what every kind of decoder is made of.

No layer couples the samples of a batch: there are no batch statistics anywhere, so a sample's image depends on its own
latents and label alone.

Legend: B samples, L latent values, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

Weights = dict[str, torch.Tensor]


def linear(weights: Weights, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """One fully connected layer, by its name."""
    return functional.linear(inputs, weights[f"{layer}.weight"], weights[f"{layer}.bias"])


def shrink(weights: Weights, layer: str, planes: torch.Tensor) -> torch.Tensor:
    """A convolution of 4x4 that halves height and width."""
    return functional.conv2d(planes, weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride=2, padding=1)


def grow(weights: Weights, layer: str, planes: torch.Tensor) -> torch.Tensor:
    """A transposed convolution of 4x4 that doubles height and width."""
    return functional.conv_transpose2d(
        planes, weights[f"{layer}.weight"], weights[f"{layer}.bias"], stride=2, padding=1
    )


def with_label(values_BX: torch.Tensor, labels_B: torch.Tensor, classes: int) -> torch.Tensor:
    """Values and the one-hot label behind them, [B, X + C]."""
    return torch.cat([values_BX, functional.one_hot(labels_B, classes).to(values_BX.dtype)], dim=1)


@dataclass(frozen=True)
class Layer:
    """What a layer's first values depend on: its weight's shape, its outputs, and the inputs of one output value."""

    size: tuple[int, ...]
    outputs: int
    inputs: int


def dense(inputs: int, outputs: int) -> Layer:
    """A layer for `linear`."""
    return Layer((outputs, inputs), outputs, inputs)


def shrinking(inputs: int, outputs: int) -> Layer:
    """A layer for `shrink`."""
    return Layer((outputs, inputs, 4, 4), outputs, 16 * inputs)


def growing(inputs: int, outputs: int) -> Layer:
    """A layer for `grow`: with a stride of 2, each output pixel has a quarter of the 16 weights."""
    return Layer((inputs, outputs, 4, 4), outputs, 4 * inputs)


def first_weights(layers: Mapping[str, Layer], generator: torch.Generator) -> Weights:
    """Uniform weights of variance 1 / inputs and biases of 0, to be trained; drawn in the layers' order."""
    weights: Weights = {}
    for name, layer in layers.items():
        bound = math.sqrt(3 / layer.inputs)
        uniform = torch.empty(layer.size).uniform_(-bound, bound, generator=generator)
        weights[f"{name}.weight"] = uniform.requires_grad_()
        weights[f"{name}.bias"] = torch.zeros(layer.outputs).requires_grad_()
    return weights
