"""The im2col path: the first convolution as a matrix product with patches that are cut out of the images once.

The first convolution sees the same images for every coalition and is linear in its weights, so its patches are cached.
Behind it every step of a plain chain of layers is put into its cheapest equal form: pooling before bias and ReLU (the
maximum commutes with both, exactly), ReLU in place, channels last throughout, the linear layer's weights in the order
of channels-last features instead of the features in the order of the weights.

Legend: B examples, P positions pooled together (4, or 1 without pooling), M pooled positions of a batch, K values of a
patch, O output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from steelyard.errors import UserError
from steelyard.models import FlatModel

Step = Callable[[torch.Tensor], torch.Tensor]
Maker = Callable[[], Step]  # reads the present weights once per state; its step then serves every batch
MARGIN = "path 'im2col' fits chains of layers (nn.Sequential) that begin with an ordinary Conv2d"


class Im2col:
    """Logits of an `nn.Sequential` that begins with Conv2d, then perhaps ReLU and MaxPool2d(2).

    Memory: the patches are kernel height x kernel width times as large as the images.

    Raises:
        UserError: the model is built otherwise.
    """

    def __init__(self, model: FlatModel, images: Sequence[torch.Tensor]) -> None:
        self._module = model.module
        chain = _chain(model.module)
        self._conv = _first_convolution(chain)
        head = _head(chain)
        self._pools = any(isinstance(layer, nn.MaxPool2d) for layer in head)
        self._rectifies = any(isinstance(layer, nn.ReLU) for layer in head)
        self._makers = _makers(chain[1 + len(head) :])
        self._patches = [_patches(self._conv, x, pools=self._pools) for x in images]

    def logits(self) -> Iterator[torch.Tensor]:
        """Logits [B, classes] of each inner batch."""
        self._module.eval()
        weight_KO = self._conv.weight.flatten(1).t().contiguous()
        steps = [make() for make in self._makers]
        for patches_PMK, grid in self._patches:
            h_MO = patches_PMK[0] @ weight_KO
            for patch_MK in patches_PMK[1:]:
                torch.maximum(h_MO, patch_MK @ weight_KO, out=h_MO)
            if self._conv.bias is not None:
                h_MO += self._conv.bias
            if self._rectifies:
                h_MO.relu_()
            h = h_MO.view(*grid, -1).permute(0, 3, 1, 2)
            for step in steps:
                h = step(h)
            yield h


def _chain(module: nn.Module) -> list[nn.Module]:
    """The layers of nested `nn.Sequential`s in the order in which they run."""
    if not isinstance(module, nn.Sequential):
        return [module]
    return [layer for part in module for layer in _chain(part)]


def _first_convolution(chain: Sequence[nn.Module]) -> nn.Conv2d:
    first = chain[0] if chain else None
    if not isinstance(first, nn.Conv2d):
        what = type(first).__name__ if first is not None else "nothing"
        raise UserError(f"[scoring] {MARGIN}; this model begins with {what}; set path = 'plain'")
    if first.groups != 1 or first.padding_mode != "zeros" or isinstance(first.padding, str):
        raise UserError(f"[scoring] {MARGIN}, ungrouped and padded with zeros; this is {first}; set path = 'plain'")
    return first


def _head(chain: Sequence[nn.Module]) -> list[nn.Module]:
    """What follows the first convolution and is done together with it: at most one ReLU and one MaxPool2d(2)."""
    head: list[nn.Module] = []
    for layer in chain[1:3]:
        fits = isinstance(layer, nn.ReLU) or _halves(layer)
        if not fits or type(layer) in map(type, head):
            break
        head.append(layer)
    return head


def _halves(layer: nn.Module) -> bool:
    """Whether a layer is MaxPool2d(2): windows of 2x2 side by side, an odd last row or column left out."""
    if not isinstance(layer, nn.MaxPool2d) or layer.ceil_mode or layer.return_indices:
        return False
    pairs = [(value, value) if isinstance(value, int) else tuple(value) for value in _geometry(layer)]
    return pairs == [(2, 2), (2, 2), (0, 0), (1, 1)]


def _geometry(layer: nn.MaxPool2d) -> tuple[int | tuple[int, ...], ...]:
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation


def _patches(conv: nn.Conv2d, x: torch.Tensor, *, pools: bool) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """All patches of a batch [P, M, K], and (B, height, width) whose product is M."""
    k, s, p, d = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    assert not isinstance(p, str)
    size = [(x.shape[2 + i] + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in (0, 1)]
    columns = functional.unfold(x, k, dilation=d, padding=p, stride=s)
    patches = columns.view(*columns.shape[:2], *size)  # [B, K, height, width]
    if not pools:
        patches_1MK = patches.permute(0, 2, 3, 1).reshape(1, -1, patches.shape[1])
        return patches_1MK.contiguous(), (len(x), size[0], size[1])
    height, width = size[0] // 2, size[1] // 2
    even = patches[:, :, : 2 * height, : 2 * width].reshape(len(x), -1, height, 2, width, 2)
    patches_4MK = even.permute(3, 5, 0, 2, 4, 1).reshape(4, -1, patches.shape[1])
    return patches_4MK.contiguous(), (len(x), height, width)


def _makers(layers: Sequence[nn.Module]) -> list[Maker]:
    """The remaining layers, each in its cheapest equal form."""
    layers = list(layers)
    for at in range(len(layers) - 1):
        if isinstance(layers[at], nn.ReLU) and isinstance(layers[at + 1], nn.MaxPool2d):
            layers[at], layers[at + 1] = layers[at + 1], layers[at]  # a quarter of the values is left to rectify
    makers: list[Maker] = []
    for at, layer in enumerate(layers):
        following = layers[at + 1] if at + 1 < len(layers) else None
        if isinstance(layer, nn.Flatten) and _whole(layer) and isinstance(following, nn.Linear):
            continue  # its linear layer takes the features as they lie
        if isinstance(layer, nn.Linear) and at and isinstance(layers[at - 1], nn.Flatten) and _whole(layers[at - 1]):
            makers.append(_linear_on_grid(layer))
        elif isinstance(layer, nn.ReLU):
            makers.append(lambda: torch.relu_)
        else:
            makers.append(_as_it_is(layer))
    return makers


def _whole(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)


def _as_it_is(layer: nn.Module) -> Maker:
    return lambda: layer


def _linear_on_grid(layer: nn.Linear) -> Maker:
    """A linear layer behind a Flatten: its weights take the order of channels-last features, which stay in place."""

    def make() -> Step:
        orders: dict[int, torch.Tensor] = {}

        def step(h: torch.Tensor) -> torch.Tensor:
            if h.ndim != 4:
                return functional.linear(h.flatten(1), layer.weight, layer.bias)
            channels = h.shape[1]
            if channels not in orders:
                orders[channels] = layer.weight.view(len(layer.weight), channels, -1).transpose(1, 2).flatten(1)
            return functional.linear(h.permute(0, 2, 3, 1).flatten(1), orders[channels], layer.bias)

        return step

    return make
