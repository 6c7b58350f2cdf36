"""PNG files: read back by the format's own rules, byte for byte."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from steelyard.picture import SIGNATURE, grid, png, write_png


def chunks(data: bytes) -> dict[bytes, bytes]:
    assert data.startswith(SIGNATURE)
    found, at = {}, len(SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(name + body)
        found[name] = body
        at += 12 + length
    return found


def test_a_grid_lays_images_out_row_by_row() -> None:
    images = np.array([0.0, 0.5, 1.0, -3.0]).reshape(4, 1, 1, 1)
    page = grid(images, columns=3, zoom=1)[:, :, 0]
    w = 255
    assert page.tolist() == [
        [w, w, w, w, w, w, w],
        [w, 0, w, 128, w, 255, w],
        [w, w, w, w, w, w, w],
        [w, 0, w, w, w, w, w],
        [w, w, w, w, w, w, w],
    ]


def test_zoom_repeats_pixels() -> None:
    page = grid(np.array([[[[0.0, 1.0]]]]), columns=1, zoom=2, gap=0)[:, :, 0]
    assert page.tolist() == [[0, 0, 255, 255]] * 2


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (3, 2)])
def test_a_png_holds_the_pixels(channels: int, colour: int, tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * channels, dtype=np.uint8).reshape(2, 3, channels)
    write_png(tmp_path / "picture.png", pixels)
    found = chunks((tmp_path / "picture.png").read_bytes())
    assert list(found) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", found[b"IHDR"]) == (3, 2, 8, colour, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(2, 1 + 3 * channels)
    assert rows[:, 0].tolist() == [0, 0]
    assert np.array_equal(rows[:, 1:].reshape(pixels.shape), pixels)
    assert png(pixels) == (tmp_path / "picture.png").read_bytes()
