"""Local SGD, deterministic: the same start, data and generator give the same bits on the same processor type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from steelyard.config import TrainingConfig
from steelyard.models import FlatModel


def train(
    model: FlatModel,
    start_D: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    config: TrainingConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Train from a state and return the update.

    Args:
        model: the network; its own state is overwritten.
        start_D: the round's global state [D]; not the model's own vector, which training overwrites.
        images: [n, channels, height, width], float32 in [0, 1].
        labels: [n], int64.
        config: epochs, batch size and SGD's settings.
        generator: shuffles each epoch; nothing else is random.

    Returns:
        The trained state minus the start, [D].
    """
    assert start_D.data_ptr() != model.state.data_ptr()
    model.load(start_D)
    model.module.train()
    velocities: list[torch.Tensor] = []
    for _ in range(config.epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch in torch.split(order, config.batch_size):
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            _step(model.parameters, torch.autograd.grad(loss, model.parameters), velocities, config)
    return model.state - start_D


def _step(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    velocities: list[torch.Tensor],
    config: TrainingConfig,
) -> None:
    """One step of SGD in place, with torch.optim.SGD's bits; the first one fills `velocities`, if there is momentum.

    By hand because the first step of any of torch's optimizers loads its compiler: half a second of processor time in
    every client's first round.
    """
    with torch.no_grad():
        if config.weight_decay:
            gradients = [g.add(p, alpha=config.weight_decay) for p, g in zip(parameters, gradients, strict=True)]
        if config.momentum and velocities:
            for velocity, gradient in zip(velocities, gradients, strict=True):
                velocity.mul_(config.momentum).add_(gradient)
            gradients = velocities
        elif config.momentum:
            velocities += [gradient.clone() for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(gradient, alpha=-config.learning_rate)


def evaluate(
    model: FlatModel, state_D: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a state on labelled images, in inner batches of 500."""
    model.load(state_D)
    model.module.eval()
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for x, y in zip(torch.split(images, 500), torch.split(labels, 500), strict=True):
            logits = model(x)
            correct += int((logits.argmax(1) == y).sum())
            loss += float(functional.cross_entropy(logits, y, reduction="sum"))
    return correct / len(labels), loss / len(labels)
