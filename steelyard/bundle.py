"""Tensor bundles: a manifest (names, dtypes, shapes, digest) and raw little-endian bytes; on disk, safetensors.

A bundle file is the safetensors layout (8-byte header length, JSON header, data), so any safetensors reader opens
it. The data region is memory-mapped on both ends: an update is received straight into its file, and the arrays
handed out are views of the mapping. There is no pickle. Torch-free: `torch.from_numpy` of a view copies nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from steelyard.errors import BadBundleError, UserError, described

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_BYTES = 2**63 - 1  # no array can be addressed beyond that, not even an empty one with another size of 2**63
MAX_RANK = 32  # the product of a peer's million sizes would take minutes
METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor's place in a bundle: its name, dtype (a key of `DTYPES`) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes; Python integers, so no size overflows."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds, in order, and the SHA-256 (hex) of its raw bytes."""

    tensors: tuple[TensorSpec, ...]
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(spec.nbytes for spec in self.tensors)

    def check(self) -> None:
        """Raise `BadBundleError` unless the manifest is well-formed; allocates nothing."""
        check_number(len(self.tensors))
        if len({spec.name for spec in self.tensors}) != len(self.tensors):
            raise BadBundleError("BAD_LAYOUT", "tensor names are expected to differ, got one twice")
        for spec in self.tensors:
            if spec.dtype not in DTYPES:
                raise BadBundleError(
                    "BAD_LAYOUT", f"dtype of {spec.name!r}: one of {', '.join(DTYPES)} expected, got {spec.dtype!r}"
                )
            if spec.name == METADATA:
                raise BadBundleError("BAD_LAYOUT", f"a tensor's name expected, got {METADATA}, a file's own")
            if len(spec.shape) > MAX_RANK or any(not 0 <= size <= MAX_BYTES for size in spec.shape):
                raise BadBundleError(
                    "BAD_LAYOUT", f"shape of {spec.name!r}: up to {MAX_RANK} sizes >= 0 expected, got {spec.shape[:40]}"
                )
            if prod(size or 1 for size in spec.shape) * DTYPES[spec.dtype].itemsize > MAX_BYTES:
                raise BadBundleError("BAD_LAYOUT", f"shape of {spec.name!r}: at most {MAX_BYTES} bytes expected")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise BadBundleError("BAD_DIGEST", f"64 lower-case hex digits expected, got {self.sha256[:80]!r}")


def check_number(tensors: int) -> None:
    """Raise `BadBundleError` if a bundle may not have so many tensors."""
    if tensors > MAX_TENSORS:
        raise BadBundleError("BAD_LAYOUT", f"at most {MAX_TENSORS} tensors expected, got {tensors}")


def digest(data: memoryview | bytes) -> str:
    """SHA-256 of raw bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def raw(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a C-contiguous little-endian array, without a copy."""
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8).data


def specs_of(arrays: Mapping[str, np.ndarray[Any, Any]]) -> tuple[TensorSpec, ...]:
    """The specs of named arrays, in the mapping's order; their dtypes, byte order included, are those of `DTYPES`."""
    return tuple(TensorSpec(name, NAMES[a.dtype], tuple(a.shape)) for name, a in arrays.items())


def check_arrays(arrays: object, where: str) -> None:
    """Raise UserError unless these are named arrays that a bundle can hold; `where` names them in an error."""
    if not isinstance(arrays, Mapping) or not all(isinstance(name, str) for name in arrays):
        raise UserError(f"{where}: a dict of arrays by name expected, got {described(arrays)}")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype not in NAMES:
            kinds = ", ".join(dtype.name for dtype in NAMES)
            raise UserError(f"{where}: {name!r} as an array of {kinds} expected, got {described(array)}")


class BundleFile:
    """A bundle in a memory-mapped safetensors file.

    `data` is the raw data region, writable for a file made by `create` or opened `private`; `arrays()` are views of it.
    The file stays mapped, and one made by `create` open, until `close`, and the views must not outlive that.
    """

    def __init__(
        self, path: Path, mapped: mmap.mmap, start: int, manifest: Manifest, file: BinaryIO | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._mapped = mapped
        self._start = start
        self._file = file  # of one made by `create`, until it is closed
        self._view = memoryview(mapped)
        self.data = self._view[start : start + manifest.nbytes]

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> BundleFile:
        """A new file of the manifest's full size, zero-filled and open for writing.

        Raises:
            BadBundleError: the manifest is malformed.
            OSError: the disk has no room for it; then there is no file.
        """
        manifest.check()
        header = _header(manifest)
        size = len(header) + manifest.nbytes
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("w+b"))
            stack.callback(path.unlink, missing_ok=True)  # one that did not fit would keep the disk full
            file.write(header)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a signal on the first write
            mapped = mmap.mmap(file.fileno(), size)
            stack.pop_all()  # it stays open
        return cls(path, mapped, len(header), manifest, file)

    @classmethod
    def open(cls, path: Path, *, private: bool = False) -> BundleFile:
        """An existing file, which is never changed.

        Args:
            path: the file.
            private: whether what is written to its views is kept by this process alone (copy on write: torch has no
                read-only tensors); otherwise they are read-only.

        Raises:
            UserError: there is no such file.
            BadBundleError: the file is not a bundle, or its size does not fit its header.
        """
        try:
            opened = path.open("rb")
        except FileNotFoundError:
            raise UserError(f"a tensor bundle expected at {path}, there is none") from None
        with opened as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise BadBundleError("TRUNCATED", f"{path.name}: at least 8 bytes expected, got {size}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if private else mmap.ACCESS_READ)
        length = int.from_bytes(mapped[:8], "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise BadBundleError(
                "TRUNCATED", f"{path.name}: a header of {length} bytes announced, {size - 8} bytes there"
            )
        manifest = _parse_header(path, mapped[8 : 8 + length])
        if size != 8 + length + manifest.nbytes:
            raise BadBundleError("TRUNCATED", f"{path.name}: {8 + length + manifest.nbytes} bytes expected, got {size}")
        return cls(path, mapped, 8 + length, manifest)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Named views of the data, in the manifest's order."""
        views, at = {}, 0
        for spec in self.manifest.tensors:
            flat = np.frombuffer(self.data, dtype=DTYPES[spec.dtype], count=prod(spec.shape), offset=at)
            views[spec.name] = flat.reshape(spec.shape)
            at += spec.nbytes
        return views

    def flat(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The whole bundle as one float32 vector [D] (a view).

        Raises:
            BadBundleError: a tensor is not float32.
        """
        if any(spec.dtype != "F32" for spec in self.manifest.tensors):
            raise BadBundleError("BAD_LAYOUT", f"{self.path.name}: float32 tensors expected, got others too")
        return np.frombuffer(self.data, dtype=np.float32)

    def put(self, at: int, chunk: bytes | memoryview) -> None:
        """Write bytes to the data of a file made by `create`, `at` bytes from its start; `data` shows them.

        The kernel fills a page with zeros before it is first written to through the mapping, which takes longer than
        the copy itself; and a copy through the mapping keeps Python's other threads waiting meanwhile.

        Raises:
            OSError: the system can't write there.
            ValueError: the file was closed.
        """
        assert self._file is not None
        left = memoryview(chunk)
        assert 0 <= at <= self.manifest.nbytes - len(left)
        while left:
            written = os.pwrite(self._file.fileno(), left, self._start + at)
            at, left = at + written, left[written:]

    def fill(self, parts: Iterable[memoryview]) -> None:
        """`put` parts one behind the other."""
        at = 0
        for part in parts:
            self.put(at, part)
            at += len(part)

    def commit(self, final: Path) -> None:
        """Make a created file durable under its final name: contents, then name, then folder reach the disk."""
        assert self._file is not None
        self._mapped.flush()
        os.fsync(self._file.fileno())
        self.path.replace(final)
        self.path = final
        sync_folder(final.parent)

    def close(self) -> None:
        """Close the file, and release the mapping if no view of it is left; otherwise it goes with the last view."""
        if self._file is not None:
            self._file.close()
        try:
            self.data.release()
            self._view.release()
            self._mapped.close()
        except BufferError:  # arrays handed out are still alive: the mapping ends with the last of them
            return


def write(path: Path, specs: tuple[TensorSpec, ...], *parts: memoryview) -> Manifest:
    """Write raw bytes, in parts of any size, as a bundle file, atomically and durably.

    Returns:
        The manifest with its digest.
    """
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    manifest = Manifest(specs, hasher.hexdigest())
    assert sum(map(len, parts)) == manifest.nbytes, "the parts are the manifest's bytes"
    with contextlib.closing(BundleFile.create(path.with_name(path.name + ".part"), manifest)) as file:
        file.fill(parts)
        file.commit(path)
    return manifest


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Manifest:
    """Write named arrays as a bundle file, atomically and durably."""
    return write(path, specs_of(arrays), *(raw(np.ascontiguousarray(array)) for array in arrays.values()))


def hand_over(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Path:
    """Write named arrays for a process beside this one to open: not durable, and without a digest, which cost time."""
    with contextlib.closing(BundleFile.create(path, Manifest(specs_of(arrays), "0" * 64))) as file:
        file.fill(raw(np.ascontiguousarray(array)) for array in arrays.values())
    return path


def read_arrays(path: Path, *, private: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Read a bundle file, verify its digest, and return views of it; `private` as for `BundleFile.open`.

    Raises:
        BadBundleError: the file is malformed, or its bytes do not match their digest.
    """
    file = BundleFile.open(path, private=private)
    if digest(file.data) != file.manifest.sha256:
        raise BadBundleError("BAD_DIGEST", f"{path.name}: the bytes do not match the digest in the header")
    return file.arrays()


def sync_folder(folder: Path) -> None:
    """Make a folder's entries (a rename, a new file) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and durably: a reader sees the old contents or the new, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as `write_text` does."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # of a full disk the system does not say where
        raise
    finally:
        part.unlink(missing_ok=True)  # what did not fit would keep the disk full
    sync_folder(path.parent)


def _header(manifest: Manifest) -> bytes:
    entries: dict[str, Any] = {METADATA: {"sha256": manifest.sha256}}
    at = 0
    for spec in manifest.tensors:
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes]}
        at += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # data aligned to a cache line, so that views are aligned too
    return len(text).to_bytes(8, "little") + text


def _parse_header(path: Path, text: bytes) -> Manifest:
    try:
        table = json.loads(text, object_pairs_hook=_without_twins)
        metadata = table.pop(METADATA, {})
        sha256 = metadata.get("sha256", "")
        entries = sorted((_entry(name, e) for name, e in table.items()), key=lambda entry: entry[1:])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadBundleError("BAD_LAYOUT", f"{path.name}: a safetensors header expected, got {text[:60]!r}") from error
    manifest = Manifest(tuple(spec for spec, _, _ in entries), sha256 if isinstance(sha256, str) else "")
    manifest.check()
    at = 0
    for spec, start, end in entries:
        if (start, end) != (at, at + spec.nbytes):
            raise BadBundleError(
                "BAD_LAYOUT", f"{path.name}: {spec.name!r} is expected at byte {at}, its header says {start}"
            )
        at = end
    return manifest


def _entry(name: str, entry: Mapping[str, Any]) -> tuple[TensorSpec, int, int]:
    """A tensor's spec, start and end; exactly these types, since `int()` would take 1.5, True and "1" for a size."""
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or type(shape) is not list or any(type(n) is not int for n in (*shape, start, end)):
        raise TypeError(f"dtype a string, shape and offsets integers expected, got {entry}")
    return TensorSpec(name, dtype, tuple(shape)), start, end


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name that comes twice would otherwise silently hide the first."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name came twice")
    return table
