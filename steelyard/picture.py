"""PNG files from arrays of pixels, by the standard library alone; images laid out in a grid. Torch-free.

The format: W3C, Portable Network Graphics (second edition), 2003: a signature, then chunks of length, name, data, CRC.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard.bundle import write_bytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR = 0, 2  # colour types of the format

Pixels = npt.NDArray[np.uint8]


def grid(images: npt.NDArray[Any], *, columns: int, zoom: int, gap: int = 1) -> Pixels:
    """Lay images out row by row with white gaps between them.

    Args:
        images: [n, channels, height, width] in [0, 1]; 1 or 3 channels.
        columns: images in a row.
        zoom: pixels per pixel.
        gap: white pixels between images, and around all.

    Returns:
        uint8 [rows * (height * zoom + gap) + gap, columns * (width * zoom + gap) + gap, channels].
    """
    count, channels, height, width = images.shape
    tall, wide = height * zoom + gap, width * zoom + gap
    page = np.full((-(-count // columns) * tall + gap, columns * wide + gap, channels), 255, np.uint8)
    values = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for number, image in enumerate(values.repeat(zoom, 1).repeat(zoom, 2)):
        top, left = number // columns * tall + gap, number % columns * wide + gap
        page[top : top + height * zoom, left : left + width * zoom] = image
    return page


def png(pixels: Pixels) -> bytes:
    """A PNG file's bytes, of uint8 [height, width, channels] with 1 (grey) or 3 (red, green, blue) channels."""
    height, width, channels = pixels.shape
    assert channels in (1, 3), channels
    header = struct.pack(">IIBBBBB", width, height, 8, GREY if channels == 1 else COLOUR, 0, 0, 0)
    unfiltered = np.zeros((height, 1), np.uint8)  # each row begins with its filter's number: 0, none
    rows = np.concatenate([unfiltered, pixels.reshape(height, -1)], axis=1)
    return (
        SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")
    )


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a PNG file, atomically."""
    write_bytes(path, png(pixels))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
