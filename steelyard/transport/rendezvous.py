"""How the two ends of a pair find each other: a small mailbox on the server, reached over the control plane.

torch.distributed's own TCPStore listens on every interface and asks nobody who they are. Here nothing listens: a
client's reads and writes are control-plane calls, and the server scopes them to that client's current pair. Torch-free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import grpc

from steelyard.errors import RefusedError, WaitTimeoutError
from steelyard.transport.faults import fault_of
from steelyard.wire import pb

MAX_KEY_BYTES, MAX_VALUE_BYTES, MAX_KEYS = 256, 16 * 2**10, 64
GRACE_S = 2.0  # by which a call may outlast the wait that it asks for


class Box(Protocol):
    """Values by key, which both ends of one pair see."""

    def put(self, key: str, value: bytes) -> None:
        """Write a value."""

    def get(self, key: str, wait_s: float) -> bytes | None:
        """A value as soon as it is there; None when it is not within `wait_s` seconds."""

    def close(self) -> None:
        """End every wait, with STALE_PAIR."""


class Mailbox:
    """The box of one pair, in the server's memory.

    Args:
        name: whose it is, for a person, e.g. "client 3, epoch 2".
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._values: dict[str, bytes] = {}
        self._waits = 0
        self._closed = False

    def put(self, key: str, value: bytes) -> None:
        """Write a value.

        Raises:
            RefusedError: TOO_LARGE: key, value or number of keys; STALE_PAIR.
        """
        if len(key.encode()) > MAX_KEY_BYTES or len(value) > MAX_VALUE_BYTES:
            limits = f"{MAX_KEY_BYTES} and {MAX_VALUE_BYTES} bytes"
            detail = (
                f"{self._name}: key and value of at most {limits} expected, got {len(key.encode())} and {len(value)}"
            )
            raise RefusedError("TOO_LARGE", detail)
        with self._changed:
            self._check_open()
            if key not in self._values and len(self._values) >= MAX_KEYS:
                raise RefusedError("TOO_LARGE", f"{self._name}: at most {MAX_KEYS} keys expected")
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str, wait_s: float) -> bytes | None:
        """A value as soon as it is there.

        Raises:
            RefusedError: STALE_PAIR: the pair was retired, meanwhile perhaps.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or key in self._values, wait_s)
            self._check_open()
            return self._values.get(key)

    def serve(self, key: str, wait_s: float) -> bytes | None:
        """`get` for the client at the other end, whose wait holds one of the server's threads: one at a time.

        Raises:
            RefusedError: BAD_TRANSFER: it waits already; STALE_PAIR.
        """
        with self._changed:
            if self._waits:
                raise RefusedError("BAD_TRANSFER", f"{self._name}: waits for a key already")
            self._waits += 1
        try:
            return self.get(key, wait_s)
        finally:
            with self._changed:
                self._waits -= 1

    def close(self) -> None:
        """End every wait, with STALE_PAIR."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise RefusedError("STALE_PAIR", f"{self._name}: the pair was retired")


class RemoteBox:
    """The same box as its client reaches it.

    Args:
        stub: of the service `Pairs`.
        metadata: identifies the client.
        epoch: names the pair.
        timeout_s: bounds each call, together with the wait that it asks for.
    """

    def __init__(self, stub: Any, metadata: Sequence[tuple[str, str]], epoch: int, timeout_s: float) -> None:
        self._stub = stub
        self._metadata = tuple(metadata)
        self._epoch = epoch
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._call: Any = None

    def put(self, key: str, value: bytes) -> None:
        """Write a value.

        Raises:
            RemoteFault: the server refuses or can't be reached.
        """
        self._run(self._stub.Put, pb.PutRequest(epoch=self._epoch, key=key, value=value), self._timeout_s)

    def get(self, key: str, wait_s: float) -> bytes | None:
        """A value as soon as it is there.

        Raises:
            RemoteFault: the server refuses or can't be reached.
        """
        end = time.monotonic() + wait_s
        while True:  # the server answers each look within its own bound, which may be shorter than ours
            left = max(end - time.monotonic(), 0.0)
            reply = self._run(self._stub.Get, pb.GetRequest(epoch=self._epoch, key=key, wait_s=left), left + GRACE_S)
            if reply.found:
                return bytes(reply.value)
            if time.monotonic() >= end:
                return None

    def close(self) -> None:
        """End a call that waits, and refuse every later one."""
        with self._lock:
            self._closed = True
            call = self._call
        if call is not None:
            call.cancel()

    def _run(self, method: Any, request: object, timeout_s: float) -> Any:
        with self._lock:
            if self._closed:
                raise RefusedError("STALE_PAIR", f"epoch {self._epoch}: the pair was retired")
            self._call = call = method.future(request, metadata=self._metadata, timeout=timeout_s)
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise RefusedError("STALE_PAIR", f"epoch {self._epoch}: the pair was retired") from None
        except grpc.RpcError as error:
            raise fault_of(error, f"epoch {self._epoch}: meeting the server") from error


def found(value: bytes | None, key: str, name: str, wait_s: float) -> bytes:
    """What a `get` must have found.

    Raises:
        WaitTimeoutError: it was not there in time.
    """
    if value is None:
        raise WaitTimeoutError(f"{name}: the other end did not write {key!r} within {wait_s:g} s")
    return value
