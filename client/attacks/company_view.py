"""How the evaluator `company` would see an update, on data of the attacker's: what an attacker that knows it optimizes.

It knows the rule and its parameters, not the validation data nor the others: each of these it takes for one that sends
the last global step again. Accuracy cannot be differentiated, so labels' cross-entropies stand for it. All our choice.

Legend: P trainable parameters, K labels.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from client.attacks.base import LabelledImages
from client.attacks.unroll import call
from steelyard.models import FlatModel

OTHERS = (1, 3, 9)  # sizes of the simulated coalitions that the client joins
LOSSES = 0.75  # the evaluator's default


def company_loss(
    model: FlatModel, start_P: torch.Tensor, update_P: torch.Tensor, step_P: torch.Tensor, data: LabelledImages
) -> torch.Tensor:
    """Minus the simulated score, a scalar differentiable in the update [P]: gains of labels whole, losses in part."""
    score = torch.zeros((), device=update_P.device)
    with torch.no_grad():
        without_K = _by_label(model, start_P + step_P, data)
    for size in OTHERS:
        gain_K = without_K - _by_label(model, start_P + (size * step_P + update_P) / (size + 1), data)
        score = score + torch.where(gain_K > 0, gain_K, LOSSES * gain_K).mean()
    return -score / len(OTHERS)


def _by_label(model: FlatModel, state_P: torch.Tensor, data: LabelledImages) -> torch.Tensor:
    images, labels = data
    loss = functional.cross_entropy(call(model, state_P, images), labels, reduction="none")
    return torch.stack([loss[labels == label].mean() for label in sorted(set(labels.tolist()))])
