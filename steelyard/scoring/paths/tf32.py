"""The TF32 path: the folded graph with convolutions on a GPU's tensor cores, which round inputs to 10 bits of mantissa.

Sums, and all layers but convolutions, stay float32, and so does the range: nothing overflows that did not before.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.backends import cudnn

from steelyard.scoring.paths.folded import Folded


class FoldedTf32(Folded):
    """Logits of any model that torch.fx can trace, for CUDA devices alone.

    What allows TF32 is the process's, so no other thread of it may compute float32 convolutions there meanwhile:
    `deploy.inline` refuses clients on a GPU beside this path.
    """

    def logits(self) -> Iterator[torch.Tensor]:
        """Logits [B, classes] of each inner batch."""
        batches = super().logits()
        while True:
            before = cudnn.allow_tf32
            cudnn.allow_tf32 = True  # only while this computes: training and every other path are float32
            try:
                made = next(batches, None)
            finally:
                cudnn.allow_tf32 = before
            if made is None:
                return
            yield made
