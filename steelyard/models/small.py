"""Small CNNs for CPU experiments: at most 30,000 parameters, two or three convolutions and one linear layer."""

from __future__ import annotations

from torch import nn

from steelyard.config import Shape
from steelyard.models.sizes import require_side

SMALLEST_NORMALIZED = 8  # two poolings leave 2x2 for the last normalization


def small_cnn_8(shape: Shape) -> nn.Module:
    """For 8x8 images (digits): 16 and 32 channels of 3x3, one pooling; 9,930 parameters with 1 channel, 10 classes."""
    return nn.Sequential(
        nn.Conv2d(shape.channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (shape.height // 2) * (shape.width // 2), shape.classes),
    )


def small_cnn_28(shape: Shape) -> nn.Module:
    """For 28x28 images (FashionMNIST): 8 and 16 channels of 3x3, two poolings; 9,098 parameters with 1 channel."""
    return nn.Sequential(
        nn.Conv2d(shape.channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * (shape.height // 4) * (shape.width // 4), shape.classes),
    )


def small_cnn_32(shape: Shape) -> nn.Module:
    """For 32x32 images (CIFAR-10, SVHN): 16, 32, 32 channels of 3x3, three poolings; 19,466 parameters with 3."""
    return nn.Sequential(
        nn.Conv2d(shape.channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (shape.height // 8) * (shape.width // 8), shape.classes),
    )


def small_cnn_32_normalized(shape: Shape) -> nn.Module:
    """`small_cnn_32` with BatchNorm behind each convolution instead of a bias; 19,546 parameters with 3 channels.

    On it what batch normalization does in a federation can be seen within seconds on a CPU.

    Raises:
        UserError: the images are smaller than 8x8.
    """
    require_side("cnn32_bn", shape, SMALLEST_NORMALIZED)
    layers: list[nn.Module] = []
    inputs = shape.channels
    for outputs in (16, 32, 32):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        inputs = outputs
    head = nn.Linear(32 * (shape.height // 8) * (shape.width // 8), shape.classes)
    return nn.Sequential(*layers, nn.Flatten(), head)
