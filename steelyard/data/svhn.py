"""SVHN (Netzer et al. 2011): 99,289 house-number digits in colour, 32x32, cropped; training images come first.

It owns where train_32x32.mat and test_32x32.mat may lie and how the official ones are told from others. Files of the
official size or number of images must have the published check sums; smaller files of the same format, a person's own
subset, are taken as they are. The set "extra" is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steelyard.data.dataset import Dataset, Labels, colour
from steelyard.data.download import fetch, md5_of
from steelyard.data.matlab import read_matlab
from steelyard.data.places import Source, find
from steelyard.errors import UserError

OFFICIAL_URL = "http://ufldl.stanford.edu/housenumbers"
CLASSES = 10
SIDE = 32
_LIMIT_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One official file: its number of images, its size and its published MD5."""

    images: int
    size: int
    md5: str


PARTS: dict[str, Part] = {
    "train_32x32.mat": Part(images=73257, size=182040794, md5="e26dedcc434d2e4c54c9b2d4a06d8373"),
    "test_32x32.mat": Part(images=26032, size=64275384, md5="eb5a983be6a315427106f1b164d9cef3"),
}


def load(folder: str = "", url: str = OFFICIAL_URL) -> Dataset:
    """The images of the first place that has both files; else they are fetched.

    For the places see `find`; below STEELYARD_DATA the folder is svhn or SVHN.

    Raises:
        UserError: no place has them and they cannot be fetched (every place is named); or a file that was found is
            damaged, which is never passed over in silence.
    """

    def fill(cache: Path) -> None:
        for name, part in PARTS.items():
            if not (cache / name).is_file():
                fetch(f"{url}/{name}", cache / name, size=part.size, md5=part.md5, limit_s=_LIMIT_S)

    source = Source(
        name="svhn",
        expected=f"two MATLAB files ({', '.join(PARTS)})",
        folders=("svhn", "SVHN"),
        missing=lambda place: next((name for name in PARTS if not (place / name).is_file()), ""),
        fill=fill,
    )
    place = find(source, folder)
    halves = [_half(place / name, part) for name, part in PARTS.items()]
    images = np.concatenate([half[0] for half in halves])
    return colour(images, np.concatenate([half[1] for half in halves]), white=255, classes=CLASSES)


def _half(path: Path, part: Part) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Images [n, 3, 32, 32] and labels [n] of one file, which is not trusted."""
    try:
        official = path.stat().st_size == part.size
        if official:
            _check_md5(path, part)
        pixels = part.images * 3 * SIDE * SIDE
        arrays = read_matlab(path, {"X": pixels, "y": part.images * 8})
    except OSError as error:
        raise UserError(f"{path}: a readable file expected: {error}") from None
    images, labels = arrays["X"], arrays["y"].reshape(-1)
    if images.shape[:-1] != (SIDE, SIDE, 3) or images.dtype != np.uint8:
        raise UserError(f"{path}: X of bytes [{SIDE}, {SIDE}, 3, n] expected, got {images.dtype} {list(images.shape)}")
    count = images.shape[-1]
    if count == part.images and not official:
        _check_md5(path, part)
    if len(labels) != count:
        raise UserError(f"{path}: as many labels y as images X expected, got {count} images, {len(labels)} labels")
    wrong = labels[~np.isin(labels, np.arange(1, CLASSES + 1))]
    if len(wrong):
        raise UserError(f"{path}: labels y from 1 to {CLASSES} expected ({CLASSES} is the digit 0), got {wrong[0]}")
    return images.transpose(3, 2, 0, 1), labels.astype(np.int64) % CLASSES


def _check_md5(path: Path, part: Part) -> None:
    got = md5_of(path)
    if got != part.md5:
        raise UserError(
            f"{path}: official size, so MD5 {part.md5} expected, got {got}; delete the file and fetch it anew"
        )
