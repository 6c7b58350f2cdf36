"""The seam of the tensor plane: what moves a bundle from one side to the other, whatever the wire.

The control plane announces every transfer first (its id and manifest), so a receiver knows size, layout and digest
before the first byte. `Sink` holds every arriving byte to that announcement. Nothing here knows of rounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from steelyard.bundle import Manifest
from steelyard.errors import BadBundleError

Chunk = bytes | memoryview
Put = Callable[[int, Chunk], None]  # takes a chunk to an offset in bytes

CHUNK_BYTES = 2**20
SERVER = -1


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One bundle on its way.

    Attributes:
        id: names the transfer; unguessable (`secrets.token_hex`), made by the server, good for one use.
        peer: the other end: on the server the client's index in the roster, on a client `SERVER`.
        manifest: what the bundle holds.
    """

    id: str
    peer: int
    manifest: Manifest


class TensorPlane(Protocol):
    """Moves bundles between the server and its clients.

    On the server, `send` and `receive` only expect: the client that the transfer belongs to moves the bytes, and
    the transfer stays pending until it does or until `cancel`. On a client they start at once. A future fails with
    `RefusedError` (the peer's fault, by its name; LATE after `cancel` or `close`), with `WaitTimeoutError` when the
    transfer ran out of time, or with `RemoteFault` when the connection broke. When it is done, no thread touches
    the transfer's memory any more.
    """

    def send(self, transfer: Transfer, source: memoryview) -> Future[None]:
        """Send a bundle's raw bytes; done when the last byte is on its way (a client: when the server has them)."""

    def receive(self, transfer: Transfer, into: memoryview, put: Put | None = None) -> Future[None]:
        """Receive a bundle into `into` (of the manifest's size); done when every byte arrived and was verified.

        A plane that is handed chunks has `put`, if it is given, take them to their offsets in `into`.
        """

    def cancel(self, transfer_id: str) -> None:
        """Forget a transfer, pending or running: its future fails with LATE. An unknown id is left alone."""

    def close(self) -> None:
        """End everything: each pending future fails with LATE, and nothing is left running."""


class Sink:
    """Where a bundle's bytes go as they arrive: bounds-checked, hashed once while streaming.

    A context manager: on leaving it the sink lets go of the memory, which its owner may then unmap.

    Args:
        into: writable memory of exactly the manifest's size.
        manifest: what was announced.
        put: takes a chunk to its place in `into`; None: it is copied there.
    """

    def __init__(self, into: memoryview, manifest: Manifest, put: Put | None = None) -> None:
        self._into = into.cast("B")
        assert len(self._into) == manifest.nbytes
        assert not into.readonly
        self._manifest = manifest
        self._put = put
        self._hash = hashlib.sha256()
        self.received = 0

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._into.release()

    def write(self, chunk: Chunk) -> None:
        """Take the next bytes.

        Raises:
            BadBundleError: TOO_LARGE, more arrives than was announced; none of the chunk is kept.
        """
        end = self.received + len(chunk)
        if end > len(self._into):
            raise size_fault(len(self._into), end)
        if self._put is None:
            self._into[self.received : end] = chunk
        else:
            self._put(self.received, chunk)
        self._hash_chunk(chunk)
        self.received = end

    @property
    def memory(self) -> memoryview:
        """All of the memory, for a plane that has the bytes put there without our help; it tells `landed`."""
        return self._into

    def landed(self, count: int) -> None:
        """Take note that the next bytes are in their place already."""
        end = self.received + count
        assert end <= len(self._into)
        self._hash_chunk(self._into[self.received : end])
        self.received = end

    def finish(self) -> None:
        """Verify the whole.

        Raises:
            BadBundleError: TRUNCATED or BAD_DIGEST.
        """
        if self.received < len(self._into):
            raise size_fault(len(self._into), self.received)
        self._check_digest()

    def _hash_chunk(self, chunk: Chunk) -> None:
        self._hash.update(chunk)

    def _check_digest(self) -> None:
        if self._hash.hexdigest() != self._manifest.sha256:
            raise BadBundleError(
                "BAD_DIGEST", f"SHA-256 {self._manifest.sha256} announced, the bytes have {self._hash.hexdigest()}"
            )


def size_fault(announced: int, sent: int) -> BadBundleError:
    """The refusal of another number of bytes than was announced; of too many, `sent` counts those seen so far."""
    if sent > announced:
        return BadBundleError("TOO_LARGE", f"{announced} bytes announced, at least {sent} sent")
    return BadBundleError("TRUNCATED", f"{announced} bytes announced, {sent} sent")


def chunks(source: memoryview, chunk_bytes: int) -> Iterator[memoryview]:
    """Slices of a buffer, without a copy; none of an empty one."""
    flat = source.cast("B")
    for start in range(0, len(flat), chunk_bytes):
        yield flat[start : start + chunk_bytes]
