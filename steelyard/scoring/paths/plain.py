"""The plain path: the model's own forward pass, batch after batch. It fits every model and others are held to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from steelyard.models import FlatModel


class Plain:
    """Forward passes of the module as it is, in evaluation mode."""

    def __init__(self, model: FlatModel, images: Sequence[torch.Tensor]) -> None:
        self._model = model
        # channels_last is faster than the default layout on CPUs: pooling and convolutions vectorize. A copy, since
        # images of one channel count as channels_last already and would keep the strides that torch goes by.
        self._images = [x.clone(memory_format=torch.channels_last) for x in images]

    def logits(self) -> Iterator[torch.Tensor]:
        """Logits [B, classes] of each inner batch."""
        self._model.module.eval()
        for x in self._images:
            yield self._model(x)
