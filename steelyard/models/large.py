"""A CNN of the size that federated-learning studies on MNIST-like images use."""

from __future__ import annotations

from torch import nn

from steelyard.config import Shape


def large_cnn_28(shape: Shape) -> nn.Module:
    """For 28x28 images: 32 and 64 channels of 5x5, two poolings, 128 hidden units; 454,922 parameters with 1 channel.

    The network of McMahan et al. 2017 (arXiv 1602.05629, section 3) with 128 instead of 512 hidden units.
    """
    return nn.Sequential(
        nn.Conv2d(shape.channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (shape.height // 4) * (shape.width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, shape.classes),
    )
