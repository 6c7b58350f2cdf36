"""Residual networks for small images: He et al. 2016 (arXiv 1512.03385), with the stem that is usual on CIFAR."""

from __future__ import annotations

import torch
from torch import nn

from steelyard.config import Shape
from steelyard.models.sizes import require_side

SMALLEST = 9  # three halvings, rounded up, leave 2x2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each normalized, beside a shortcut: the identity, or a normalized 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, inputs, height, width] to [B, outputs, height / stride, width / stride]."""
        hidden = torch.relu(self.norm1(self.conv1(images)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(images))


def resnet18(shape: Shape) -> nn.Module:
    """ResNet-18 with a 3x3 stem of stride 1 and no max-pooling: 11,173,962 parameters with 3 channels, 10 classes.

    Four stages of two blocks with 64, 128, 256 and 512 channels; global average pooling, so any size from 9x9 on.

    Raises:
        UserError: the images are smaller.
    """
    require_side("resnet18", shape, SMALLEST)
    layers: list[nn.Module] = [
        nn.Conv2d(shape.channels, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, shape.classes))
