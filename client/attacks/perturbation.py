"""Small changes of images: within eps of where they were in every value, and within [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch

Images = torch.Tensor


def ascend(images: Images, eps: float, steps: int, slope: Callable[[Images], Images]) -> Images:
    """Projected sign ascent from the images themselves (PGD, Madry et al. 2018, arXiv 1706.06083).

    Args:
        images: [n, channels, height, width] in [0, 1].
        eps: the largest change of a value (L-infinity).
        steps: how many steps of 2.5 eps / steps.
        slope: the gradient, of the images' shape, of what is to rise.
    """
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    moved = images
    for _ in range(steps):
        moved = torch.clamp(moved + 2.5 * eps / steps * slope(moved).sign(), low, high)
    return moved
