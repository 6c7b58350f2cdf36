"""VGG with batch normalization: Simonyan & Zisserman 2015 (arXiv 1409.1556), configuration D, for small images."""

from __future__ import annotations

from torch import nn

from steelyard.config import Shape
from steelyard.models.sizes import require_side

SMALLEST = 17  # four halvings, rounded up, leave 2x2 for the last stage
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


def vgg16_bn(shape: Shape) -> nn.Module:
    """VGG-16 with BatchNorm behind each of its 13 convolutions: 14,728,266 parameters with 3 channels, 10 classes.

    The head is the one usual on CIFAR: global average pooling (of one pixel, at 32x32) and a single linear layer from
    512 to the classes, instead of the original's three layers with 4,096. Max-pooling rounds up, which changes nothing
    at 32x32 and lets 28x28 through.

    Raises:
        UserError: the images are smaller than 17x17.
    """
    require_side("vgg16_bn", shape, SMALLEST)
    layers: list[nn.Module] = []
    inputs = shape.channels
    for outputs, convolutions in STAGES:
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, shape.classes))
