"""The TF32 path: the folded graph with convolutions on a GPU's tensor cores, which round inputs to 10 bits of mantissa.

Sums, and all layers but convolutions, stay float32, and so does the range: nothing overflows that did not before.
"""

from __future__ import annotations

import torch
from torch.backends import cudnn

from steelyard.scoring.paths.folded import Folded


class FoldedTf32(Folded):
    """Logits of any model that torch.fx can trace, for CUDA devices alone.

    What allows TF32 is the process's, so no other thread of it may compute float32 convolutions there meanwhile:
    `deploy.launch` refuses clients on a GPU in one process with this path.
    """

    def _through(self, images: torch.Tensor) -> torch.Tensor:
        before = cudnn.allow_tf32
        cudnn.allow_tf32 = True  # only while this computes: training and every other path are float32
        try:
            return super()._through(images)
        finally:
            cudnn.allow_tf32 = before
