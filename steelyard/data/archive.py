"""Named files out of a gzipped tar, into memory: nothing is written, so no member can name a place to write to.

It knows no data set. An archive is not trusted: a member's type and size are checked before it is read, and the whole
may not unpack to more than the wanted files and some slack.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from steelyard.errors import UserError

_SLACK_BYTES = 2**24  # headers, and small files beside the wanted ones
_CHUNK_BYTES = 2**18


def read_members(path: Path, names: Collection[str], *, at_most: int) -> dict[str, bytes]:
    """The contents of the members of these names, in whichever folder of the archive they are.

    Args:
        path: a .tar.gz file.
        names: file names without a folder; each must be there once.
        at_most: the most bytes that one of them may have.

    Raises:
        UserError: the archive can't be read, lacks a file or has it twice, or a file is too large or no plain file.
    """
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as unpacked:
            stream = _Bounded(unpacked, path, len(names) * at_most + _SLACK_BYTES)
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]  # it reads, no more
                for member in tar:
                    name = PurePosixPath(member.name).name
                    if name in names:
                        found[name] = _content(tar, member, path, at_most, again=name in found)
            while stream.read(_CHUNK_BYTES):  # the check sum stands at the end
                pass
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path}: a readable tar.gz archive expected: {error}; fetch it anew") from None
    for name in names:
        if name not in found:
            raise UserError(f"{path}: {name} expected inside, it is not there; fetch it anew")
    return found


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, at_most: int, *, again: bool) -> bytes:
    if again:
        raise UserError(f"{path}: {member.name} expected once inside, it came twice; fetch it anew")
    if not member.isreg() or not 0 <= member.size <= at_most:
        kind = "no plain file" if not member.isreg() else f"{member.size} bytes"
        raise UserError(f"{path}: {member.name}: a plain file of at most {at_most} bytes expected, got {kind}")
    file = tar.extractfile(member)
    assert file is not None, "a plain file has contents"
    content = file.read()
    if len(content) != member.size:
        raise UserError(f"{path}: {member.name}: {member.size} bytes expected, got {len(content)}; fetch it anew")
    return content


class _Bounded:
    """A stream that refuses to give more than so many bytes in all."""

    def __init__(self, stream: gzip.GzipFile, path: Path, limit: int) -> None:
        self._stream, self._path, self._limit, self._left = stream, path, limit, limit

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise UserError(f"{self._path}: at most {self._limit} bytes expected after unpacking, got more")
        return chunk
