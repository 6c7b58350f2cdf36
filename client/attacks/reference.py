"""What the synthetic gradient is measured against: a direction to take and a length to have.

Where they come from is the threat model: each source is a named choice, and each needs only what its name says.
Legend: P trainable parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from client.attacks.base import LabelledImages
from steelyard.models import FlatModel


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A gradient [P] whose opposite the evaluator is thought to reward; per label too where the source knows labels.

    `data` are the labelled images behind it, where there are any: an evaluator can be simulated on them.
    """

    direction_P: torch.Tensor
    by_label: dict[int, torch.Tensor]
    data: LabelledImages | None = None

    def of(self, label: int) -> torch.Tensor:
        """The direction [P] for one label; the common one where the source has none of its own."""
        return self.by_label.get(label, self.direction_P)


def gradient(model: FlatModel, images: torch.Tensor, labels: torch.Tensor, *, graph: bool = False) -> torch.Tensor:
    """Gradient [P] of the loaded model's mean cross-entropy; `graph` keeps it differentiable in the images."""
    loss = functional.cross_entropy(model(images), labels)
    parts = torch.autograd.grad(loss, model.parameters, create_graph=graph)
    return torch.cat([part.flatten() for part in parts])


def from_data(model: FlatModel, images: torch.Tensor, labels: torch.Tensor) -> Reference:
    """The gradients of labelled images: of each label, and their mean, every label counting the same."""
    present = sorted(set(labels.tolist()))
    by_label = {label: gradient(model, images[labels == label], labels[labels == label]) for label in present}
    mean_P = torch.stack(list(by_label.values())).mean(0)
    return Reference(direction_P=mean_P, by_label=by_label, data=(images, labels))


def from_step(step_P: torch.Tensor) -> Reference:
    """Minus a global step: the gradient that would have made it; one direction for all labels."""
    return Reference(direction_P=-step_P, by_label={})


def honest_norm(model: FlatModel, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> float:
    """Mean norm of the loaded model's mini-batch gradients, the mini-batches taken in order."""
    batches = zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    norms = [float(gradient(model, x, y).norm()) for x, y in batches]
    return sum(norms) / len(norms)
