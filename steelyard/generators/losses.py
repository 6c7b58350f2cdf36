"""What trainings share beside layers: the evidence bound of an auto-encoder, and the losses that they ended with."""

from __future__ import annotations

import torch
from torch.nn import functional

TAIL = 50  # last steps that the final loss is the mean of: one mini-batch alone says little


def negative_bound(
    logits: torch.Tensor, images: torch.Tensor, mean_BL: torch.Tensor, log_variance_BL: torch.Tensor, divergence: float
) -> torch.Tensor:
    """Negative evidence bound per image: cross-entropy of the pixels plus the weighted divergence from the prior.

    Args:
        logits: the decoder's pixel logits [B, channels, height, width].
        images: the images to be restored, in [0, 1].
        mean_BL: means of the latents that the encoder gives.
        log_variance_BL: logarithms of their variances.
        divergence: weight of the Kullback-Leibler term.
    """
    pixels = functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
    excess = 0.5 * (mean_BL.square() + log_variance_BL.exp() - 1 - log_variance_BL).sum()
    return (pixels + divergence * excess) / len(images)


class Tail:
    """The last losses of a training, by name."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._last: list[tuple[torch.Tensor, ...]] = []

    def note(self, *losses: torch.Tensor) -> None:
        """One step's losses, in the order of the names."""
        self._last = [*self._last[1 - TAIL :], tuple(loss.detach() for loss in losses)]

    def means(self) -> dict[str, float]:
        """Mean of each loss over the last steps."""
        columns = zip(self._names, zip(*self._last, strict=True), strict=True)
        return {name: float(torch.stack(values).mean()) for name, values in columns}
