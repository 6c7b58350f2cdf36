"""Wide residual networks: Zagoruyko & Komodakis 2016 (arXiv 1605.07146), in the paper's form without dropout."""

from __future__ import annotations

import torch
from torch import nn

from steelyard.config import Shape
from steelyard.models.sizes import require_side

SMALLEST = 5  # two halvings, rounded up, leave 2x2


class WideBlock(nn.Module):
    """Normalization and activation before each of two 3x3 convolutions; where sizes change, a 1x1 shortcut.

    That shortcut starts behind the first activation, which it shares.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if inputs != outputs else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, inputs, height, width] to [B, outputs, height / stride, width / stride]."""
        active = torch.relu(self.norm1(images))
        beside = images if self.shortcut is None else self.shortcut(active)
        added: torch.Tensor = beside + self.conv2(torch.relu(self.norm2(self.conv1(active))))
        return added


def wrn28_10(shape: Shape) -> nn.Module:
    """WRN-28-10: 36,479,194 parameters with 3 channels, 10 classes.

    28 = 6 * 4 + 4 layers: three stages of four blocks with 160, 320 and 640 channels; global average pooling, so any
    size from 5x5 on.

    Raises:
        UserError: the images are smaller.
    """
    require_side("wrn28_10", shape, SMALLEST)
    layers: list[nn.Module] = [nn.Conv2d(shape.channels, 16, 3, padding=1, bias=False)]
    inputs = 16
    for outputs, stride in ((160, 1), (320, 2), (640, 2)):
        layers += [WideBlock(inputs, outputs, stride), *(WideBlock(outputs, outputs, 1) for _ in range(3))]
        inputs = outputs
    head = [nn.BatchNorm2d(640), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(640, shape.classes)]
    return nn.Sequential(*layers, *head)
