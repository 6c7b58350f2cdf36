"""The im2col path: the first convolution as a matrix product with patches that are cut out of the images once.

The first convolution sees the same images for every coalition and is linear in its weights, so its patches are cached.
Positions that are pooled together lie in four blocks, so pooling is a maximum of blocks, taken before bias and ReLU: it
commutes with both, exactly. What follows is `chain`'s.

Legend: B examples, P positions pooled together (4, or 1 without pooling), M pooled positions of a batch, K values of a
patch, O output channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.scoring.paths.chain import layers_of, makers, norm_behind
from steelyard.scoring.paths.folding import folded

FITS = "path 'im2col' fits chains of layers (nn.Sequential) that begin with an ordinary Conv2d"


class Im2col:
    """Logits of an `nn.Sequential` that begins with Conv2d, then perhaps BatchNorm2d, ReLU and MaxPool2d(2).

    Memory: the patches are kernel height x kernel width times as large as the images.

    Args:
        model: the network.
        images: float32 [B, channels, height, width] of each inner batch.
        dtype: what all but the last layer compute in.
        filtering: whether later convolutions are computed by minimal filtering where it fits; in float32 alone.

    Raises:
        UserError: the model is built otherwise, or minimal filtering was not compiled for this processor.
    """

    def __init__(
        self,
        model: FlatModel,
        images: Sequence[torch.Tensor],
        dtype: torch.dtype = torch.float32,
        *,
        filtering: bool = False,
    ) -> None:
        self._module = model.module
        self._dtype = dtype
        layers = layers_of(model.module)
        self._conv = _first_convolution(layers)
        self._norm = norm_behind(layers)
        layers = layers[1 if self._norm is None else 2 :]
        head = _head(layers)
        self._rectifies = any(isinstance(layer, nn.ReLU) for layer in head)
        self._makers = makers(layers[len(head) :], dtype, filtering=filtering)
        pools = any(isinstance(layer, nn.MaxPool2d) for layer in head)
        self._batches = [_patches(self._conv, x, dtype, pools=pools) for x in images]

    def logits(self) -> Iterator[torch.Tensor]:
        """Logits [B, classes] of each inner batch."""
        self._module.eval()
        weight, bias_O = folded(self._conv, self._norm)
        weight_KO = weight.flatten(1).t().to(self._dtype).contiguous()
        bias_O = None if bias_O is None else bias_O.to(self._dtype)
        steps = [make() for make in self._makers]
        for patches_PMK, grid in self._batches:
            h_MO = patches_PMK[0] @ weight_KO
            for patch_MK in patches_PMK[1:]:
                torch.maximum(h_MO, patch_MK @ weight_KO, out=h_MO)
            if bias_O is not None:
                h_MO += bias_O
            if self._rectifies:
                h_MO.relu_()
            h = h_MO.view(*grid, -1).permute(0, 3, 1, 2)
            for step in steps:
                h = step(h)
            yield h.float()


def _first_convolution(layers: Sequence[nn.Module]) -> nn.Conv2d:
    first = layers[0] if layers else None
    if not isinstance(first, nn.Conv2d):
        what = type(first).__name__ if first is not None else "nothing"
        raise UserError(f"[scoring] {FITS}; this model begins with {what}; set path = 'plain'")
    if first.groups != 1 or first.padding_mode != "zeros" or isinstance(first.padding, str):
        raise UserError(f"[scoring] {FITS}, ungrouped and padded with zeros; this is {first}; set path = 'plain'")
    return first


def _head(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """What follows the first convolution and is done together with it: at most one ReLU and one MaxPool2d(2)."""
    head: list[nn.Module] = []
    for layer in layers[:2]:
        fits = isinstance(layer, nn.ReLU) or _halves(layer)
        if not fits or type(layer) in map(type, head):
            break
        head.append(layer)
    return head


def _halves(layer: nn.Module) -> bool:
    """Whether a layer is MaxPool2d(2): windows of 2x2 side by side, an odd last row or column left out."""
    if not isinstance(layer, nn.MaxPool2d) or layer.ceil_mode or layer.return_indices:
        return False
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    pairs = [(value, value) if isinstance(value, int) else tuple(value) for value in geometry]
    return pairs == [(2, 2), (2, 2), (0, 0), (1, 1)]


def _patches(
    conv: nn.Conv2d, x: torch.Tensor, dtype: torch.dtype, *, pools: bool
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """All patches of a batch [P, M, K], and (B, height, width) whose product is M."""
    k, s, p, d = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    assert not isinstance(p, str)
    height, width = ((x.shape[2 + i] + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in (0, 1))
    patches = functional.unfold(x, k, dilation=d, padding=p, stride=s).view(len(x), -1, height, width)
    window = 2 if pools else 1
    height, width = height // window, width // window
    whole = patches[:, :, : height * window, : width * window]
    blocks = whole.reshape(len(x), -1, height, window, width, window).permute(3, 5, 0, 2, 4, 1)
    patches_PMK = blocks.reshape(window * window, len(x) * height * width, -1).to(dtype).contiguous()
    return patches_PMK, (len(x), height, width)
