"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images, 32x32, ten labels, in its binary version; training images first.

It owns where the six .bin files or their archive may lie and how the official ones are told from others. Nothing is
unpickled: the binary version is records of one label and 1,024 red, green and blue bytes. The authors publish a check
sum of the archive alone, so an archive of official size must have it; of .bin files with the official number of images
the labels are counted, which are balanced. Smaller ones, a person's own subset, are taken as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from steelyard.data.archive import read_members
from steelyard.data.dataset import Dataset, colour
from steelyard.data.download import fetch, md5_of
from steelyard.data.places import Source, find
from steelyard.errors import UserError

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz"
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_BYTES = 170052171
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
UNPACKED = "cifar-10-batches-bin"  # the folder inside the archive
TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
FILES = (*TRAINING, TEST)
CLASSES = 10
SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
IMAGES_PER_FILE = 10000
_LIMIT_S = 1800.0


def load(folder: str = "", url: str = OFFICIAL_URL) -> Dataset:
    """The images of the first place that has the six files or their archive; else the archive is fetched.

    A place has the files itself, in a folder cifar-10-batches-bin, or packed in cifar-10-binary.tar.gz, which is read
    without unpacking it on disk. For the places see `find`; below STEELYARD_DATA the folder is cifar10 or cifar-10.

    Raises:
        UserError: no place has them and they cannot be fetched (every place is named); or a file that was found is
            damaged, which is never passed over in silence.
    """

    def fill(cache: Path) -> None:
        fetch(f"{url}/{ARCHIVE}", cache / ARCHIVE, size=ARCHIVE_BYTES, md5=ARCHIVE_MD5, limit_s=_LIMIT_S)

    source = Source(
        name="cifar10",
        expected=f"six files ({', '.join(FILES)}), or {ARCHIVE}, which holds them,",
        folders=("cifar10", "cifar-10"),
        missing=lambda place: "" if _unpacked(place) or (place / ARCHIVE).is_file() else f"{FILES[0]}, nor {ARCHIVE}",
        fill=fill,
    )
    place = find(source, folder)
    unpacked = _unpacked(place)
    return _from_files(unpacked) if unpacked else _from_archive(place / ARCHIVE)


def _unpacked(place: Path) -> Path | None:
    """The folder of a place that has all six files."""
    return next((at for at in (place, place / UNPACKED) if all((at / name).is_file() for name in FILES)), None)


def _from_files(folder: Path) -> Dataset:
    contents = {}
    for name in FILES:
        path = folder / name
        try:
            _check_size(str(path), path.stat().st_size)
            contents[name] = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: a readable file expected: {error}") from None
    return _dataset(str(folder), contents)


def _from_archive(path: Path) -> Dataset:
    try:
        official = path.stat().st_size == ARCHIVE_BYTES
        got = md5_of(path) if official else ""
    except OSError as error:
        raise UserError(f"{path}: a readable file expected: {error}") from None
    if official and got != ARCHIVE_MD5:
        raise UserError(f"{path}: official size, so MD5 {ARCHIVE_MD5} expected, got {got}; delete it and fetch it anew")
    return _dataset(str(path), read_members(path, FILES, at_most=IMAGES_PER_FILE * RECORD_BYTES))


def _dataset(where: str, contents: dict[str, bytes]) -> Dataset:
    records = {name: _records(f"{where}: {name}", contents[name]) for name in FILES}
    _check_balance(where, "training", [records[name] for name in TRAINING])
    _check_balance(where, "test", [records[TEST]])
    whole = np.concatenate([records[name] for name in FILES])
    return colour(whole[:, 1:].reshape(-1, 3, SIDE, SIDE), whole[:, 0], white=255, classes=CLASSES)


def _records(where: str, content: bytes) -> npt.NDArray[np.uint8]:
    """Records [n, 3073] of a file: label, then the image's bytes."""
    _check_size(where, len(content))
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    if len(records) and records[:, 0].max() >= CLASSES:
        raise UserError(f"{where}: labels from 0 to {CLASSES - 1} expected, got {records[:, 0].max()}; fetch it anew")
    return records


def _check_size(where: str, size: int) -> None:
    if size % RECORD_BYTES or size > IMAGES_PER_FILE * RECORD_BYTES:
        raise UserError(
            f"{where}: up to {IMAGES_PER_FILE} records of {RECORD_BYTES} bytes expected, got {size} bytes; "
            f"fetch it anew"
        )


def _check_balance(where: str, half: str, files: list[npt.NDArray[np.uint8]]) -> None:
    """The official halves have as many images of each label."""
    if any(len(records) != IMAGES_PER_FILE for records in files):
        return
    each = len(files) * IMAGES_PER_FILE // CLASSES
    counts = np.bincount(np.concatenate([records[:, 0] for records in files]), minlength=CLASSES).tolist()
    if counts != [each] * CLASSES:
        raise UserError(
            f"{where}: official size, so {each} {half} images of each label expected, got {counts}; "
            f"delete the files and fetch them anew"
        )
