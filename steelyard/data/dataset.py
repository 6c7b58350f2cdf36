"""A labelled set of images in memory. It knows neither where they came from nor who will get them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard.config import Shape
from steelyard.errors import UserError, described

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

    Raises:
        UserError: one of them is not as said, or there is no image.
    """

    images: Floats
    labels: Labels
    shape: Shape

    def __post_init__(self) -> None:
        expected = (len(self.labels), self.shape.channels, self.shape.height, self.shape.width)
        if self.images.shape != expected or self.images.dtype != np.float32:
            raise UserError(f"data set: images as float32 {expected} expected, got {described(self.images)}")
        if self.labels.shape != expected[:1] or self.labels.dtype != np.int64:
            raise UserError(f"data set: labels as int64 {expected[:1]} expected, got {described(self.labels)}")
        if not len(self.labels):
            raise UserError("data set: at least one image expected, got none")
        low, high, last = self.labels.min(), self.labels.max(), self.shape.classes - 1
        if low < 0 or high > last:
            raise UserError(f"data set: labels from 0 to {last} expected, got {low} to {high}")
        dark, bright = self.images.min(), self.images.max()
        if not (dark >= 0 and bright <= 1):  # NaN is neither
            raise UserError(f"data set: pixels from 0 to 1 expected, got {dark:g} to {bright:g}; check `white`")

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
    return _scaled(np.asarray(images)[:, None], np.asarray(labels), white=white, classes=classes)


def colour(images: npt.NDArray[Any], labels: npt.NDArray[Any], *, white: float, classes: int) -> Dataset:
    """A data set of colour images.

    Args:
        images: [n, 3, height, width], red, green and blue, values from 0 to `white`.
        labels: [n].
        white: the value that becomes 1.
        classes: number of labels.
    """
    if np.shape(images)[1:2] != (3,):
        raise UserError(f"data set: colour images [n, 3, height, width] expected, got shape {np.shape(images)}")
    return _scaled(np.asarray(images), np.asarray(labels), white=white, classes=classes)


def _scaled(images: npt.NDArray[Any], labels: npt.NDArray[Any], *, white: float, classes: int) -> Dataset:
    if images.ndim != 4:
        raise UserError(f"data set: a width and a height of each image expected, got {described(images)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"data set: integers as labels expected, got {described(labels)}")
    scaled = np.empty(images.shape, np.float32)
    np.divide(images, np.float32(white), out=scaled, casting="same_kind")
    _, channels, height, width = images.shape
    shape = Shape(channels=channels, height=height, width=width, classes=classes)
    return Dataset(images=scaled, labels=labels.astype(np.int64), shape=shape)
