"""Shared by the tests of attacks: what a client has, of real digits, and the global models that it fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from client.attacks import Resources
from steelyard.config import Shape, TrainingConfig
from steelyard.models import FlatModel
from steelyard.seeding import torch_generator

SHAPE = Shape(channels=1, height=8, width=8, classes=10)


@pytest.fixture
def resources(tmp_path: Path) -> Resources:
    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(targets, dtype=torch.int64)
    own = (labels[:200] < 4).nonzero().flatten()[:40]
    return Resources(
        model=FlatModel("cnn8", SHAPE),
        images=images[own],
        labels=labels[own],
        public=(images[300:360], labels[300:360]),
        training=TrainingConfig(learning_rate=0.1),
        seed=7,
        folder=tmp_path / "state",
    )


@pytest.fixture
def states(resources: Resources) -> list[torch.Tensor]:
    """Global models of rounds 1 to 4."""
    start = resources.model.initial_state(torch_generator(1, "initial"))
    return [start + 0.01 * t * torch.randn(start.shape, generator=torch_generator(1, "step", t)) for t in range(4)]
