"""IDX files, the format of MNIST and its relatives: unsigned bytes in a box of any rank, plain or gzipped.

Layout: two zero bytes, the type (0x08: unsigned bytes), the rank, one big-endian 32-bit size per dimension, then the
values. It knows no data set. A file is not trusted: its announced size is checked before anything of that size exists.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from steelyard.errors import UserError

_GZIP = b"\x1f\x8b"
_MOST_BYTES = 2**30
_MOST_EXPANSION = 1032  # deflate never makes more of a byte


@dataclass(frozen=True, slots=True, eq=False)
class IdxFile:
    """What an IDX file holds: its values, uint8, and the SHA-256 of its bytes after decompression."""

    values: npt.NDArray[np.uint8]
    sha256: str


def read_idx(path: Path, rank: int) -> IdxFile:
    """Read an IDX file of unsigned bytes.

    Args:
        path: the file; whether it is gzipped is told from its first bytes.
        rank: how many dimensions it must have.

    Raises:
        UserError: it cannot be read, is no such file, or is shorter or longer than it announces.
    """
    try:
        with path.open("rb") as raw:
            stored = path.stat().st_size
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            if not packed:
                return _parse(raw, path, rank, at_most=stored)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _parse(unpacked, path, rank, at_most=stored * _MOST_EXPANSION)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: a readable IDX file expected: {error}; fetch it anew") from None


def _parse(stream: BinaryIO | gzip.GzipFile, path: Path, rank: int, *, at_most: int) -> IdxFile:
    header = stream.read(4 + 4 * rank)
    magic = bytes((0, 0, 8, rank))
    if header[:4] != magic:
        raise UserError(
            f"{path}: an IDX file of unsigned bytes with {rank} dimensions expected (it starts with {magic.hex()}), "
            f"got {header[:4].hex() or 'an empty file'}"
        )
    if len(header) < 4 + 4 * rank:
        raise UserError(f"{path}: {rank} sizes expected after the magic number, the file ends before; fetch it anew")
    sizes = struct.unpack(f">{rank}I", header[4:])
    announced = math.prod(sizes)
    if announced > min(_MOST_BYTES, at_most):
        raise UserError(
            f"{path}: {announced} bytes announced (sizes {sizes}), the file cannot hold more than "
            f"{min(_MOST_BYTES, at_most)}; fetch it anew"
        )
    body = stream.read(announced + 1)
    if len(body) != announced:
        came = "more" if len(body) > announced else str(len(body))
        raise UserError(f"{path}: {announced} bytes of values expected (sizes {sizes}), got {came}; fetch it anew")
    digest = hashlib.sha256(header)
    digest.update(body)
    return IdxFile(values=np.frombuffer(body, np.uint8).reshape(sizes), sha256=digest.hexdigest())
