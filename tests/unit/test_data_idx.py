"""IDX files: what is read, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from steelyard.data.idx import read_idx
from steelyard.errors import UserError

# two 1x3 images, byte by byte: magic, 2, 1, 3, values
IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 20, 30, 40, 50, 255])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some-images-idx3-ubyte"


@pytest.mark.parametrize("stored", [IMAGES, gzip.compress(IMAGES)], ids=["plain", "gzip"])
def test_values_and_digest_are_those_of_the_content_however_it_is_stored(path: Path, stored: bytes) -> None:
    path.write_bytes(stored)
    file = read_idx(path, 3)
    np.testing.assert_array_equal(file.values, [[[10, 20, 30]], [[40, 50, 255]]])
    assert file.values.dtype == np.uint8
    assert file.sha256 == hashlib.sha256(IMAGES).hexdigest()


def test_a_file_of_no_samples_is_a_valid_file(path: Path) -> None:
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 0]))
    assert read_idx(path, 1).values.shape == (0,)


WRONG = {
    "empty": (b"", "got an empty file"),
    "no IDX": (b"<html>not found</html>", r"starts with 00000803\), got 3c68746d"),
    "floats": (bytes([0, 0, 13]) + IMAGES[3:], "got 00000d03"),
    "another rank": (bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]), "with 3 dimensions expected"),
    "cut in the sizes": (IMAGES[:9], "3 sizes expected"),
    "one value short": (IMAGES[:-1], r"6 bytes of values expected \(sizes \(2, 1, 3\)\), got 5"),
    "one value too many": (IMAGES + b"\0", "6 bytes of values expected .* got more"),
    "announces 2**96 bytes": (IMAGES[:4] + b"\xff" * 12 + b"\0" * 100, "cannot hold more than 116"),
    "gzip, announces 1032 times its size": (
        gzip.compress(IMAGES[:4] + b"\0\1\0\0" + b"\0\0\0\1" * 2 + b"\0"),
        "65536 bytes announced",
    ),
    "gzip, announces more than 1 GiB": (
        gzip.compress(IMAGES[:4] + b"\x40\0\0\1" + b"\0\0\0\1" * 2, 0) + b"\0" * 2**20,
        "cannot hold more than 1073741824",
    ),
    "gzip, cut": (gzip.compress(IMAGES)[:-9], "a readable IDX file expected"),
    "gzip, wrong check sum": (gzip.compress(IMAGES)[:-8] + b"\0" * 8, "a readable IDX file expected"),
    "gzip, no deflate stream": (gzip.compress(IMAGES)[:10] + b"\xff" * 30, "a readable IDX file expected"),
}


@pytest.mark.parametrize(("stored", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_refused_with_its_name_and_the_reason(path: Path, stored: bytes, message: str) -> None:
    path.write_bytes(stored)
    with pytest.raises(UserError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_the_users_to_mend(path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_idx(path, 3)
