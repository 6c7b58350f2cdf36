"""The gradient of the validation loss, for evaluators that look at gradients instead of coalitions.

Legend: E validation examples, P trainable values, D float values of a state.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from steelyard.models import FlatModel
from steelyard.scoring.coalitions import Floats


def validation_gradient(
    model: FlatModel, state_D: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, *, inner_batch: int
) -> Floats:
    """The gradient of the mean cross-entropy at a state with respect to the trainable values, [P].

    In inner batches of a fixed size, single precision within one and double between them, in order: the same bits each
    time. The model is in evaluation mode (BatchNorm uses the state's running statistics); its own state is overwritten.
    """
    model.load(state_D)
    model.module.eval()
    total = np.zeros(model.layout.trainable)
    for x, y in zip(torch.split(images, inner_batch), torch.split(labels, inner_batch), strict=True):
        loss = functional.cross_entropy(model(x), y, reduction="sum")
        parts = torch.autograd.grad(loss, model.parameters)
        total += torch.cat([part.reshape(-1) for part in parts]).numpy().astype(np.float64)
    return total / len(labels)
