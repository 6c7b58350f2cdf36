"""Evaluation paths by name: the ways to compute the logits of a model's present state on fixed images.

A path decides bits, so `[scoring] path` names it and the manifest records it; no run picks one by itself. What a path
may differ from `plain` by is its `Bound`: stated here, held by tests/unit/test_paths.py, measured in docs/scoring.md.

Legend: E validation examples, B examples of an inner batch, D float values of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.parsing import choose
from steelyard.scoring.paths.base import Path
from steelyard.scoring.paths.folded import Folded
from steelyard.scoring.paths.im2col import Im2col
from steelyard.scoring.paths.plain import Plain
from steelyard.scoring.paths.tf32 import FoldedTf32
from steelyard.scoring.paths.winograd import Winograd


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How far a coalition's utilities may be from the plain path's.

    Attributes:
        loss: absolute, and relative where the loss is above 1 (float errors grow with the logits).
        accuracy: absolute, beside the examples whose two largest logits are closer than the path's error.
    """

    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way: what makes it, its bound, and the devices that it is made for."""

    make: Callable[[FlatModel, Sequence[torch.Tensor]], Path]
    bound: Bound
    devices: tuple[str, ...] = ("cpu", "cuda")


EXACT = Bound(loss=1e-5, accuracy=1e-5)
LOW = Bound(loss=1e-2, accuracy=2e-2)

PATHS = {
    "plain": Kind(make=Plain, bound=Bound(loss=0.0, accuracy=0.0)),
    "im2col": Kind(make=Im2col, bound=EXACT),
    "folded": Kind(make=Folded, bound=EXACT),
    "winograd": Kind(make=Winograd, bound=EXACT, devices=("cpu",)),
    "im2col_winograd": Kind(make=partial(Im2col, filtering=True), bound=EXACT, devices=("cpu",)),
    "folded_tf32": Kind(make=FoldedTf32, bound=LOW, devices=("cuda",)),
    "im2col_bf16": Kind(make=partial(Im2col, dtype=torch.bfloat16), bound=LOW),
    "folded_bf16": Kind(make=partial(Folded, dtype=torch.bfloat16), bound=LOW),
    "winograd_bf16": Kind(make=partial(Winograd, dtype=torch.bfloat16), bound=LOW, devices=("cpu",)),
}


def make_path(name: str, model: FlatModel, images: Sequence[torch.Tensor]) -> Path:
    """The path of that name over the images of each inner batch, float32 [B, channels, height, width].

    Raises:
        UserError: there is none of that name, or it does not fit the model or the device that it lies on.
    """
    kind = choose(name, PATHS, "[scoring] path")
    if ("cpu" if model.state.device.type == "cpu" else "cuda") not in kind.devices:
        here = kind.devices[0]
        raise UserError(f"[scoring] path {name!r} is made for {here} alone; set device = {here!r}, or path = 'folded'")
    return kind.make(model, images)
