"""FashionMNIST (Xiao, Rasul, Vollgraf 2017): 70,000 images of clothes, 28x28, ten labels; training images come first.

It owns where the four IDX files may lie and how the official ones are told from others. Files with the official
dimensions must have the official content; smaller files of the same format, a person's own subset, are taken as they
are. Content is checked after decompression, since Debian's package holds the official data recompressed without the
gzip header's file name and time: other MD5s than the published ones, the same bytes inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steelyard.data.dataset import Dataset, grey
from steelyard.data.download import fetch
from steelyard.data.idx import read_idx
from steelyard.data.places import Source, find
from steelyard.errors import UserError

OFFICIAL_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = 10
SIDE = 28
_LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One official file: its dimensions, the SHA-256 of its content, and the size and published MD5 of its .gz."""

    dimensions: tuple[int, ...]
    sha256: str
    gz_bytes: int
    gz_md5: str


PARTS: dict[str, Part] = {
    "train-images-idx3-ubyte": Part(
        dimensions=(60000, SIDE, SIDE),
        sha256="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        gz_bytes=26421880,
        gz_md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    ),
    "train-labels-idx1-ubyte": Part(
        dimensions=(60000,),
        sha256="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        gz_bytes=29515,
        gz_md5="25c81989df183df01b3e8a0aad5dffbe",
    ),
    "t10k-images-idx3-ubyte": Part(
        dimensions=(10000, SIDE, SIDE),
        sha256="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        gz_bytes=4422102,
        gz_md5="bef4ecab320f06d8554ea6380940ec79",
    ),
    "t10k-labels-idx1-ubyte": Part(
        dimensions=(10000,),
        sha256="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        gz_bytes=5148,
        gz_md5="bb300cfdad3c16e7a12a480ee83cd310",
    ),
}


def load(folder: str = "", url: str = OFFICIAL_URL) -> Dataset:
    """The images of the first place that has all four files, plain or gzipped; else they are fetched.

    For the places see `find`; below STEELYARD_DATA the folder is fashion-mnist or fashion_mnist, and Debian's package
    dataset-fashion-mnist is looked for too.

    Raises:
        UserError: no place has them and they cannot be fetched (every place is named); or a file that was found is
            damaged, which is never passed over in silence.
    """
    source = Source(
        name="fashion_mnist",
        expected=f"four IDX files ({', '.join(PARTS)}, plain or .gz)",
        folders=("fashion-mnist", "fashion_mnist"),
        missing=lambda place: next((f"{name}[.gz]" for name in PARTS if _find(place, name) is None), ""),
        fill=lambda cache: _fill(cache, url),
        installed=(DEBIAN_FOLDER,),
        hint="install Debian's (`apt-get install dataset-fashion-mnist`)",
    )
    return _read(find(source, folder))


def _find(place: Path, name: str) -> Path | None:
    return next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None)


def _fill(cache: Path, url: str) -> None:
    for name, part in PARTS.items():
        if _find(cache, name) is None:
            target = cache / f"{name}.gz"
            fetch(f"{url}/{name}.gz", target, size=part.gz_bytes, md5=part.gz_md5, limit_s=_LIMIT_S)


def _read(place: Path) -> Dataset:
    halves = [_half(place, half) for half in ("train", "t10k")]
    images = np.concatenate([half[0] for half in halves])
    labels = np.concatenate([half[1] for half in halves])
    return grey(images, labels, white=255, classes=CLASSES)


def _half(place: Path, half: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    images = _values(place, f"{half}-images-idx3-ubyte")
    labels = _values(place, f"{half}-labels-idx1-ubyte")
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(f"{place}: {half} images of {SIDE}x{SIDE} pixels expected, got {images.shape[1:]}")
    if len(images) != len(labels):
        raise UserError(
            f"{place}: as many {half} labels as images expected, got {len(images)} images, {len(labels)} labels"
        )
    if len(labels) and labels.max() >= CLASSES:
        raise UserError(f"{place}: {half} labels from 0 to {CLASSES - 1} expected, got {labels.max()}")
    return images, labels


def _values(place: Path, name: str) -> npt.NDArray[np.uint8]:
    path, part = _find(place, name), PARTS[name]
    assert path is not None
    file = read_idx(path, len(part.dimensions))
    if file.values.shape == part.dimensions and file.sha256 != part.sha256:
        raise UserError(
            f"{path}: official dimensions, so content of SHA-256 {part.sha256} expected, got {file.sha256}; "
            f"delete the file and fetch it anew"
        )
    return file.values
