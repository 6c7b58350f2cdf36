"""The sample-weighted mean of updates. It builds the next global model and every coalition's model alike.

Legend: D is the number of float values of a state. Products and sums are separate element-wise operations in client
order, without fused multiply-add, so the bits depend neither on vector widths nor on how threads split the work, nor on
whether the CPU or a GPU does it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def fedavg(global_D: torch.Tensor, updates: Sequence[torch.Tensor], samples: Sequence[int]) -> torch.Tensor:
    """Federated averaging: w + sum_k (n_k / n_S) D_k (McMahan et al. 2017).

    Args:
        global_D: the round's global state w, float32 [D].
        updates: one update D_k per member, float32 [D], in client order; none gives a copy of w.
        samples: n_k > 0 of each member, in the same order.

    Returns:
        A new state [D] that shares no memory with any input; no input is written.

    Raises:
        ValueError: dtypes, sizes or counts do not fit together.
    """
    check_round(global_D, updates, samples)
    if not updates:
        return global_D.clone()
    total = sum(samples)
    step_D = weighted_sum(updates, [n / total for n in samples])
    step_D += global_D
    return step_D


def weighted_sum(updates: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum of at least one update [D] in the given order; a new tensor."""
    step_D = updates[0] * weights[0]
    scaled_D = torch.empty_like(step_D)
    for update_D, weight in zip(updates[1:], weights[1:], strict=True):
        torch.mul(update_D, weight, out=scaled_D)
        step_D += scaled_D
    return step_D


def check_round(global_D: torch.Tensor, updates: Sequence[torch.Tensor], samples: Sequence[int]) -> None:
    """Raise ValueError unless dtypes, sizes and counts fit together; see `fedavg`."""
    if len(updates) != len(samples):
        raise ValueError(f"one sample count per update expected, got {len(updates)} updates and {len(samples)} counts")
    if global_D.ndim != 1 or global_D.dtype != torch.float32:
        raise ValueError(f"a float32 vector expected, got {global_D.dtype} of shape {tuple(global_D.shape)}")
    for k, (update_D, n) in enumerate(zip(updates, samples, strict=True)):
        if update_D.shape != global_D.shape or update_D.dtype != torch.float32:
            raise ValueError(
                f"update {k}: float32 {tuple(global_D.shape)} expected, got {update_D.dtype} {tuple(update_D.shape)}"
            )
        if n <= 0:
            raise ValueError(f"update {k}: a positive sample count expected, got {n}")
