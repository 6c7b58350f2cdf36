"""A labelled set of images in memory. It knows neither where they came from nor who will get them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard.config import Shape

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images, their labels, and what a model must know of them.

    Args:
        images: float32 [n, channels, height, width] in [0, 1].
        labels: int64 [n], each in 0..classes-1.
        shape: channels, height, width and classes.
    """

    images: Floats
    labels: Labels
    shape: Shape

    def __post_init__(self) -> None:
        expected = (len(self.labels), self.shape.channels, self.shape.height, self.shape.width)
        assert self.images.shape == expected, f"images {self.images.shape}, expected {expected}"
        assert self.images.dtype == np.float32, self.images.dtype
        assert self.labels.dtype == np.int64, self.labels.dtype

    def __len__(self) -> int:
        return len(self.labels)


def grey(images: npt.NDArray[Any], labels: npt.NDArray[Any], *, white: float, classes: int) -> Dataset:
    """A data set of grey images.

    Args:
        images: [n, height, width], values from 0 to `white`.
        labels: [n].
        white: the value that becomes 1.
        classes: number of labels.
    """
    return _scaled(images[:, None], labels, white=white, classes=classes)


def colour(images: npt.NDArray[Any], labels: npt.NDArray[Any], *, white: float, classes: int) -> Dataset:
    """A data set of colour images.

    Args:
        images: [n, 3, height, width], red, green and blue, values from 0 to `white`.
        labels: [n].
        white: the value that becomes 1.
        classes: number of labels.
    """
    assert images.shape[1] == 3, images.shape
    return _scaled(images, labels, white=white, classes=classes)


def _scaled(images: npt.NDArray[Any], labels: npt.NDArray[Any], *, white: float, classes: int) -> Dataset:
    scaled = np.empty(images.shape, np.float32)
    np.divide(images, np.float32(white), out=scaled, casting="same_kind")
    _, channels, height, width = images.shape
    shape = Shape(channels=channels, height=height, width=width, classes=classes)
    return Dataset(images=scaled, labels=labels.astype(np.int64), shape=shape)
