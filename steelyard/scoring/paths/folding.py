"""BatchNorm in evaluation mode folded into the convolution before it, as the folded and im2col paths need it.

In evaluation mode a BatchNorm2d is an affine map per channel, so convolution and normalization are one convolution with
other weights: W' = W s, b' = (b - mean) s + beta with s = gamma / sqrt(variance + eps), per output channel.

Legend: O output channels, I input channels.
"""

from __future__ import annotations

import torch
from torch import nn


def foldable(layer: nn.Module | None, norm: nn.Module | None) -> bool:
    """Whether two layers in a row are a convolution and a normalization by running statistics."""
    return isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [O, I, height, width] and bias [O] of the one convolution; without a norm, the convolution's own."""
    if norm is None:
        return conv.weight, conv.bias
    mean_O, variance_O = norm.running_mean, norm.running_var
    assert mean_O is not None
    assert variance_O is not None
    scale_O = (variance_O + norm.eps).rsqrt()
    if norm.affine:
        scale_O = scale_O * norm.weight
    bias_O = (-mean_O if conv.bias is None else conv.bias - mean_O) * scale_O
    if norm.affine:
        bias_O = bias_O + norm.bias
    return conv.weight * scale_O[:, None, None, None], bias_O
