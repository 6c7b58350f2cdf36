"""Shared by the tests of attacks: what a client has, of real digits, and the global models that it fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

from client.attacks import Resources
from steelyard.config import Shape, TrainingConfig
from steelyard.models import FlatModel
from steelyard.seeding import torch_generator

QUICK: dict[str, Any] = {"samples": 8, "decoder": {"hidden": 16, "steps": 20}}
TABLES: list[dict[str, Any]] = [
    {"name": "honest"},
    {"name": "latent", **QUICK, "steps": 2},
    {"name": "latent", **QUICK, "steps": 2, "decoder_source": "public", "reference": "public", "granularity": "class"},
    {"name": "latent", **QUICK, "steps": 2, "reference": "own", "align": "batch"},
    {"name": "latent", **QUICK, "steps": 2, "reference": "decoder"},
    {"name": "latent", **QUICK, "steps": 2, "align": "update", "labels": "all", "tilt": 0.0},
    {"name": "decoder_samples", **QUICK},
    {"name": "label_flip"},
    {"name": "random_noise"},
    {"name": "random_noise", "target": "update"},
    {"name": "free_rider", "noise": 1.0},
    {"name": "own_repeat"},
    {"name": "real_samples"},
    {"name": "public_honest"},
    {"name": "public_honest", "samples": 20},
    {"name": "shadow", "models": 2, "steps": 2},
    {"name": "shadow", "models": 2, "steps": 2, "reference": "public"},
    {"name": "outlier"},
    {"name": "outlier", "method": "simba", "queries": 20},
    {"name": "ace"},
    {"name": "ace", "honest_rounds": 1, "window": 2},
    {"name": "self_promotion", "steps": 2, "clients": 2, "coalitions": 2},
    {"name": "self_promotion", "steps": 2, "clients": 2, "coalitions": 2, "others": "public", "validation": "public"},
    {"name": "self_promotion", "steps": 2, "clients": 2, "coalitions": 2, "others": "previous_step"},
    {"name": "scaling"},
    {"name": "sign_flip"},
    {"name": "alie"},
    {"name": "alie", "rule": "quantile"},
    {"name": "ipm"},
]
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


@pytest.fixture
def tables() -> list[dict[str, Any]]:
    """Every attack but `sybil`, in every variant that has code of its own."""
    return TABLES


@pytest.fixture(params=TABLES, ids=str)
def table(request: pytest.FixtureRequest) -> Any:
    """Each of `tables` in turn."""
    return request.param
