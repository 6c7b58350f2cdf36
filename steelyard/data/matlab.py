"""Arrays of numbers out of a MATLAB 5 file (.mat, plain or compressed), and nothing else of it.

Layout: 128 bytes of header; then elements, each a type, a size and that many bytes, padded to 8; a matrix element holds
elements for flags, sizes, name and values; a compressed element is the zlib stream of one. It knows no data set. A file
is not trusted: scipy's reader, which takes many more kinds, crashes the process on some damaged files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard.errors import UserError

_HEADER_BYTES = 128
_LITTLE_ENDIAN_5 = b"\x00\x01IM"  # version and byte order, the header's last four bytes
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_STORED = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_COMPLEX = 0x800
_MOST_DIMENSIONS = 32
_SLACK_BYTES = 2**16  # flags, sizes and name around the values


def read_matlab(path: Path, at_most: Mapping[str, int]) -> dict[str, npt.NDArray[Any]]:
    """The named variables of a file.

    Args:
        path: the file.
        at_most: the wanted names, and the most bytes that each one's values may have.

    Returns:
        The arrays, in MATLAB's order of memory (the first index runs fastest); they may be read-only.

    Raises:
        UserError: it can't be read, is no such file, or lacks a variable or has one twice; or a variable is too large
            or no array of real numbers.
    """
    limit = max(at_most.values()) + _SLACK_BYTES
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        for element in _elements(_content(path, sum(at_most.values())), limit):
            name, values = _matrix(element)
            if name not in at_most:
                continue
            if name in arrays:
                raise ValueError(f"{name} came twice")
            arrays[name] = _array(name, *values)
            if arrays[name].nbytes > at_most[name]:
                raise ValueError(f"{name} of at most {at_most[name]} bytes expected, got {arrays[name].nbytes}")
        for name in at_most:
            if name not in arrays:
                raise ValueError(f"it has no {name}")
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise UserError(
            f"{path}: a readable MATLAB 5 file with {' and '.join(at_most)} expected: {error}; fetch it anew"
        ) from None
    return arrays


Parts = tuple[int, tuple[int, ...], int, memoryview]  # flags, sizes, stored type, values


def _content(path: Path, values: int) -> memoryview:
    size, most = path.stat().st_size, 2 * values + 2**20  # compression makes nothing twice as large
    if size > most:
        raise ValueError(f"at most {most} bytes expected, got {size}")
    content = path.read_bytes()
    if content[_HEADER_BYTES - 4 : _HEADER_BYTES] != _LITTLE_ENDIAN_5:
        raise ValueError(f"its header starts with {content[:20]!r}")
    return memoryview(content)[_HEADER_BYTES:]


def _elements(content: memoryview, limit: int) -> Iterator[memoryview]:
    """The matrix elements of a file, unpacked."""
    at = 0
    while at < len(content):
        kind, body, at = _element(content, at)
        if kind == _COMPRESSED:
            kind, body, _ = _element(_unpack(body, limit), 0)
        if kind == _MATRIX:
            yield body


def _unpack(packed: memoryview, limit: int) -> memoryview:
    stream = zlib.decompressobj()
    unpacked = stream.decompress(packed, limit)
    if not stream.eof and len(unpacked) == limit:
        raise ValueError(f"at most {limit} bytes expected after unpacking, got more")
    if not stream.eof:
        raise ValueError("a compressed variable ends before its stream does")
    return memoryview(unpacked)


def _element(content: memoryview, at: int) -> tuple[int, memoryview, int]:
    """Type and bytes of the element at a place, and the place after it; up to four bytes stand in its second half."""
    kind, size = struct.unpack_from("<II", content, at)
    if kind >> 16:
        kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if size > 4:
            raise ValueError(f"a short element of up to 4 bytes expected, got {size}")
    else:
        start = at + 8
        end = start + size if kind == _COMPRESSED else start + size + -size % 8
    if start + size > len(content):
        raise ValueError(f"{size} bytes announced, {len(content) - start} are there")
    return kind, content[start : start + size], end


def _matrix(element: memoryview) -> tuple[str, Parts]:
    """Name and parts of a matrix element."""
    flags_kind, flags, at = _element(element, 0)
    sizes_kind, sizes, at = _element(element, at)
    name_kind, name, at = _element(element, at)
    if (flags_kind, sizes_kind, name_kind) != (_UINT32, _INT32, _INT8) or len(flags) != 8 or len(sizes) % 4:
        raise ValueError("a matrix's flags, sizes and name are malformed")
    dimensions = struct.unpack(f"<{len(sizes) // 4}i", sizes)
    stored, values, _ = _element(element, at) if at < len(element) else (0, memoryview(b""), at)
    return bytes(name).decode("ascii"), (struct.unpack("<II", flags)[0], dimensions, stored, values)


def _array(name: str, flags: int, dimensions: tuple[int, ...], stored: int, values: memoryview) -> npt.NDArray[Any]:
    kind = flags & 0xFF
    if kind not in _CLASSES or stored not in _STORED or flags & _COMPLEX:
        raise ValueError(f"{name}: real numbers expected, got class {kind}, stored as type {stored}")
    dtype = np.dtype(_STORED[stored])
    if len(dimensions) > _MOST_DIMENSIONS or min(dimensions, default=-1) < 0:
        raise ValueError(f"{name}: sizes of at least 0 expected, got {dimensions[:_MOST_DIMENSIONS]}")
    if prod(dimensions) * dtype.itemsize != len(values):
        raise ValueError(f"{name}: values of sizes {dimensions} expected, got {len(values)} bytes")
    return np.frombuffer(values, dtype).reshape(dimensions, order="F").astype(_CLASSES[kind], copy=False)
