"""What an evaluation path is. Knows neither labels nor coalitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch


class Path(Protocol):
    """Computes logits on images that it was made with."""

    def logits(self) -> Iterator[torch.Tensor]:
        """Float32 logits [B, classes] of each inner batch, in order, under the state that the model holds now.

        A pure function of state and images: nothing of an earlier state may be left in it. The next batch's may be
        written over these.
        """
