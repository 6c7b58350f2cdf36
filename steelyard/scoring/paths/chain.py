"""A plain chain of layers with each step in its cheapest equal form; knows neither patches nor images.

Pooling before ReLU (the maximum commutes with it, exactly), BatchNorm folded into the convolution before it, ReLU in
place, and a linear layer behind a Flatten with its weights in the order of channels-last features, which then stay
where they lie. Weights are read once per state.

Legend: O outputs, B examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from steelyard.scoring.paths.filtering import Filtering, Scratch, fits
from steelyard.scoring.paths.folding import foldable, folded

Step = Callable[[torch.Tensor], torch.Tensor]
Maker = Callable[[], Step]  # reads the present weights; its step then serves every batch of that state


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of nested `nn.Sequential`s in the order in which they run; any other module is one layer."""
    if not isinstance(module, nn.Sequential):
        return [module]
    return [layer for part in module for layer in layers_of(part)]


def norm_behind(layers: Sequence[nn.Module]) -> nn.BatchNorm2d | None:
    """The BatchNorm2d that can be folded into the chain's first layer, if there is one."""
    norm = layers[1] if len(layers) > 1 else None
    return norm if isinstance(norm, nn.BatchNorm2d) and foldable(layers[0], norm) else None


def makers(layers: Sequence[nn.Module], dtype: torch.dtype, *, filtering: bool) -> list[Maker]:
    """The chain's steps; all compute in `dtype` but a last linear layer, which makes the logits in float32.

    Args:
        layers: the chain.
        dtype: the precision.
        filtering: whether convolutions are computed by minimal filtering where it fits; in float32 alone.
    """
    made: list[Maker] = []
    scratch = Scratch() if filtering else None
    left = _pooled_first(layers)
    while left:
        layer, norm = left[0], norm_behind(left)
        following = left[1] if len(left) > 1 else None
        used = 1
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
            made.append(
                _convolution(layer, norm, dtype)
                if scratch is None or not fits(layer, torch.float32)
                else _filtered_convolution(layer, norm, scratch)
            )
            used = 1 if norm is None else 2
        elif isinstance(layer, nn.Linear):
            made.append(_linear(layer, _precision(left, dtype)))
        elif _flattens(layer) and isinstance(following, nn.Linear):
            made.append(_linear_on_grid(following, _precision(left[1:], dtype)))
            used = 2
        elif isinstance(layer, nn.ReLU):
            made.append(lambda: torch.relu_)
        else:
            made.append(_as_it_is(layer, dtype))
        left = left[used:]
    return made


def _pooled_first(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers with ReLU behind the pooling that follows it, where a quarter of the values is left to rectify."""
    order = list(layers)
    for at in range(len(order) - 1):
        if isinstance(order[at], nn.ReLU) and isinstance(order[at + 1], nn.MaxPool2d):
            order[at], order[at + 1] = order[at + 1], order[at]
    return order


def _precision(left: Sequence[nn.Module], dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if len(left) == 1 else dtype


def _flattens(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


def _convolution(layer: nn.Conv2d, norm: nn.BatchNorm2d | None, dtype: torch.dtype) -> Maker:
    def make() -> Step:
        weight, bias_O = folded(layer, norm)
        weight = weight.to(dtype)
        bias_O = None if bias_O is None else bias_O.to(dtype)
        return lambda h: functional.conv2d(h, weight, bias_O, layer.stride, layer.padding, layer.dilation, layer.groups)

    return make


def _filtered_convolution(layer: nn.Conv2d, norm: nn.BatchNorm2d | None, scratch: Scratch) -> Maker:
    filtering = Filtering(layer, scratch, rectifies=False)

    def make() -> Step:
        filtering.load(*folded(layer, norm))
        return filtering

    return make


def _linear(layer: nn.Linear, dtype: torch.dtype) -> Maker:
    def make() -> Step:
        weight, bias_O = layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
        return lambda h: functional.linear(h.to(dtype), weight, bias_O)

    return make


def _linear_on_grid(layer: nn.Linear, dtype: torch.dtype) -> Maker:
    """A linear layer on features [B, channels, height, width], or [B, features] where they are flat already."""

    def make() -> Step:
        weight, bias_O = layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
        ordered: dict[int, torch.Tensor] = {}

        def step(h: torch.Tensor) -> torch.Tensor:
            h = h.to(dtype)
            if h.ndim != 4:
                return functional.linear(h.flatten(1), weight, bias_O)
            channels = h.shape[1]
            if channels not in ordered:
                ordered[channels] = weight.view(len(weight), channels, -1).transpose(1, 2).flatten(1)
            return functional.linear(h.permute(0, 2, 3, 1).flatten(1), ordered[channels], bias_O)

        return step

    return make


def _as_it_is(layer: nn.Module, dtype: torch.dtype) -> Maker:
    """Any other layer, with whatever weights it has in the given precision."""
    if dtype == torch.float32:
        return lambda: layer

    def make() -> Step:
        tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
        lowered = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        return (lambda h: functional_call(layer, lowered, (h,))) if lowered else layer

    return make
