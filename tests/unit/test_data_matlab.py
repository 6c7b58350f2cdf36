"""MATLAB files as scipy writes them, read with the same result as by scipy, and every way in which one can be wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from steelyard.data.matlab import read_matlab
from steelyard.errors import UserError

BOX = np.arange(2 * 3 * 1 * 4, dtype=np.uint8).reshape(2, 3, 1, 4)
COLUMN = np.array([[1], [10]], np.uint8)
LIMITS = {"X": 1000, "y": 100}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.mat"


def write(path: Path, *, compressed: bool = True, **arrays: Any) -> bytes:
    savemat(path, arrays, do_compression=compressed)
    return path.read_bytes()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"])
def test_arrays_are_those_that_scipy_wrote_and_reads(path: Path, compressed: bool, dtype: str) -> None:
    write(path, compressed=compressed, note="a text between", X=BOX.astype(dtype), other=np.zeros((9, 9)), y=COLUMN)
    arrays, theirs = read_matlab(path, LIMITS), loadmat(path)
    for name, expected in (("X", BOX.astype(dtype)), ("y", COLUMN)):
        np.testing.assert_array_equal(arrays[name], expected)
        np.testing.assert_array_equal(arrays[name], theirs[name])
        assert arrays[name].dtype == theirs[name].dtype
        assert arrays[name].shape == expected.shape


def test_an_array_without_values_is_a_valid_one(path: Path) -> None:
    write(path, X=np.zeros((32, 32, 3, 0), np.uint8), y=COLUMN)
    assert read_matlab(path, LIMITS)["X"].shape == (32, 32, 3, 0)


def test_doubles_that_matlab_packs_into_bytes_are_doubles(path: Path) -> None:
    """MATLAB stores whole numbers in the smallest type; class 6 is double, type 2 bytes. Written by hand."""
    parts = struct.pack("<IIII", 6, 8, 6, 0) + struct.pack("<IIii", 5, 8, 1, 3) + struct.pack("<HH4s", 1, 1, b"y")
    parts += struct.pack("<HH4s", 2, 3, bytes([7, 8, 9]))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    path.write_bytes(header + struct.pack("<II", 14, len(parts)) + parts)
    values = read_matlab(path, {"y": 24})["y"]
    assert values.tolist() == [[7.0, 8.0, 9.0]]
    assert (values.dtype, values.shape) == (np.float64, (1, 3))
    np.testing.assert_array_equal(loadmat(path)["y"], values)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": COLUMN}, "it has no X"),
        ({"X": BOX}, "it has no y"),
        ({"X": BOX, "y": "text"}, "y: real numbers expected, got class 4"),
        ({"X": BOX * 1j, "y": COLUMN}, "X: real numbers expected, got class 6"),
        ({"X": {"a": 1}, "y": COLUMN}, "X: real numbers expected, got class 2"),
        ({"X": np.zeros((10, 101), np.uint8), "y": COLUMN}, "X of at most 1000 bytes expected, got 1010"),
        ({"X": BOX, "y": np.zeros(2**20)}, "at most 66536 bytes expected after unpacking, got more"),
    ],
)
def test_other_variables_than_wanted_are_refused(path: Path, arrays: dict[str, Any], message: str) -> None:
    write(path, **arrays)
    assert message in refused(path)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_matlab(path, LIMITS)
    assert str(caught.value).startswith(f"{path}: a readable MATLAB 5 file with X and y expected: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_another_kind_are_refused(path: Path) -> None:
    good = write(path, X=BOX, y=COLUMN)
    for content, message in [
        (b"", "its header starts with b''"),
        (b"<html>not found</html>", "its header starts with b'<html>not found</htm'"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM", "its header starts with b'MATLAB 7.3 MAT-file '"),
        (good[:124] + b"\1\0MI" + good[128:], "its header starts"),
        (good + good[128:], "X came twice"),
        (good + bytes(2**22), "at most 1050776 bytes expected, got"),
    ]:
        path.write_bytes(content)
        assert message in refused(path)
    path.unlink()
    assert "No such file" in refused(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_cut_file_is_refused_wherever_it_is_cut(path: Path, compressed: bool) -> None:
    good = write(path, compressed=compressed, X=BOX, y=COLUMN)
    for end in range(len(good) - 8):  # the last eight may be padding
        path.write_bytes(good[:end])
        refused(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_with_a_wrong_byte_is_refused_or_read(path: Path, compressed: bool) -> None:
    """Never anything else: no crash, no other error, no endless read. With check sums no wrong value passes either."""
    good = write(path, compressed=compressed, X=BOX, y=COLUMN)
    outcomes = set()
    for at in range(120, len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        try:
            arrays = read_matlab(path, LIMITS)
        except UserError as error:
            outcomes.add(str(error).count("\n"))
        else:
            assert not compressed or (arrays["X"] == BOX).all(), f"byte {at}"
            outcomes.add(arrays["X"].ndim + 10)
    assert 0 in outcomes
    assert outcomes <= {0, *range(11, 50)}


def test_a_stream_with_a_wrong_check_sum_is_refused(path: Path) -> None:
    good = write(path, X=BOX, y=COLUMN)
    size = struct.unpack_from("<I", good, 132)[0]
    packed = bytearray(good[136 : 136 + size])
    assert zlib.decompress(packed)
    packed[-1] ^= 1
    path.write_bytes(good[:136] + packed + good[136 + size :])
    assert "incorrect data check" in refused(path)
