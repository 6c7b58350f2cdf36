"""One end of a pair of processes that torch.distributed connects: builds it, moves bundles, ends it from any thread.

Any error or timeout breaks a pair for good, and so does `retire`; then nothing touches a transfer's memory any more.
Errors name peer, epoch, operation and seconds. Knows neither gRPC nor rounds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from steelyard.errors import RemoteFault, SteelyardError, UserError, WaitTimeoutError
from steelyard.transport.base import Sink
from steelyard.transport.collective_backends import BUILD_S, LOOK_S, Backend, PairStore, Wait, first_line
from steelyard.transport.rendezvous import Box


class PairEnd:
    """This end of a pair; `build` connects it to the other. One transfer at a time, which holds `busy`.

    Args:
        peer: the other end, for errors, e.g. "client 3".
        epoch: the pair's.
        box: where the ends meet.
        timeout_s: of every operation.
    """

    def __init__(self, peer: str, epoch: int, box: Box, timeout_s: float) -> None:
        self.epoch = epoch
        self.name = f"{peer}, epoch {epoch}"
        self.busy = threading.Lock()
        self._box = box
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._built = threading.Event()
        self._backend: Backend | None = None
        self._store: PairStore | None = None  # torch keeps the C++ half of it alone
        self._fault: Exception | None = None
        self._retired = False

    def build(self, make: Callable[[PairStore, float], Backend]) -> None:
        """Meet the other end; returns when both are there.

        Raises:
            UserError: this host is not set up for it.
            RemoteFault: the other end did not come in time.
        """
        limit = min(self._timeout_s, BUILD_S)
        self._store = PairStore(self._box, self.name, limit)
        try:
            backend = make(self._store, limit)
            with self._lock:
                self._backend = backend
            if self._retired:
                self._abort(backend)
        except UserError as error:
            self._fault = error
            raise
        except (RuntimeError, SteelyardError) as error:  # torch's own, or what the store raised
            self._fault = RemoteFault(f"{self.name}: the two ends did not meet within {limit:g} s: {first_line(error)}")
            raise self._fault from error
        finally:
            self._retired = self._retired or self._backend is None
            self._built.set()

    @property
    def is_retired(self) -> bool:
        """Whether the pair is of no more use."""
        return self._retired

    def send(self, source: memoryview, chunk_bytes: int, seconds: float) -> None:
        """Send bytes; returns when the last is on its way.

        Raises:
            WaitTimeoutError: not within the seconds.
            RemoteFault: the pair broke, or is retired.
        """

        def move(backend: Backend, end: float) -> None:
            flight: deque[Wait] = deque()
            for part in _parts(source, chunk_bytes):
                flight.append(backend.send(part))
                if len(flight) == backend.under_way:
                    flight.popleft()(_left(end))
            while flight:
                flight.popleft()(_left(end))

        self._run(f"sending {source.nbytes} bytes", seconds, move)

    def receive(
        self, sink: Sink, chunk_bytes: int, seconds: float, heard: Callable[[int], None] = lambda _count: None
    ) -> None:
        """Receive a bundle straight into a sink's memory; `heard` is told of every piece.

        Raises:
            WaitTimeoutError: not within the seconds.
            RemoteFault: the pair broke, or is retired.
            BadBundleError: the bytes are not those announced.
        """

        def move(backend: Backend, end: float) -> None:
            flight: deque[tuple[Wait, int]] = deque()

            def land() -> None:
                wait, count = flight.popleft()
                wait(_left(end))
                sink.landed(count)
                heard(count)

            for part in _parts(sink.memory, chunk_bytes):
                flight.append((backend.receive(part), len(part)))
                if len(flight) == backend.under_way:
                    land()
            while flight:
                land()

        self._run(f"receiving {sink.memory.nbytes} bytes", seconds, move)
        sink.finish()

    def retire(self) -> None:
        """Break the pair, from any thread; whatever is under way ends at once, and nothing touches its memory then."""
        with self._lock:
            already, self._retired = self._retired, True
            backend, self._backend = self._backend, None
        self._box.close()
        if backend is not None and not already:
            self._abort(backend)

    def _ready(self, seconds: float) -> Backend:
        if not self._built.wait(min(seconds, self._timeout_s)):
            raise WaitTimeoutError(f"{self.name}: the two ends did not meet within {seconds:g} s")
        with self._lock:
            if self._fault is not None:
                raise self._fault
            if self._backend is None or self._retired:
                raise RemoteFault(f"{self.name}: the pair was retired")
            return self._backend

    def _run(self, what: str, seconds: float, move: Callable[[Backend, float], None]) -> None:
        """Move bytes; an error of torch's becomes one of ours, without its frames, which hold on to the memory."""
        backend = self._ready(seconds)
        end = time.monotonic() + seconds
        try:
            move(backend, end)
        except RuntimeError as error:
            late, line = time.monotonic() >= end, first_line(error)
        except BaseException:
            self.retire()
            raise
        else:
            return
        self.retire()
        if late:
            raise WaitTimeoutError(f"{self.name}: {what} not complete within {seconds:g} s")
        raise RemoteFault(f"{self.name}: the pair broke while {what}: {line}")

    @staticmethod
    def _abort(backend: Backend) -> None:
        try:
            backend.abort()
        except RuntimeError:  # that is how gloo says that it is done
            return


def alias(memory: memoryview) -> torch.Tensor:
    """The bytes of a buffer as a uint8 tensor, without a copy; it keeps the buffer alive.

    torch has no read-only tensors and warns about each; one that is only sent is never written.
    """
    return torch.from_numpy(np.asarray(_Alias(memory)))


def _parts(memory: memoryview, chunk_bytes: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.split(alias(memory), chunk_bytes)) if memory.nbytes else ()


class _Alias:
    def __init__(self, memory: memoryview) -> None:
        self._bytes = np.frombuffer(memory, np.uint8)
        place, _ = self._bytes.__array_interface__["data"]
        self.__array_interface__ = {"shape": (memory.nbytes,), "typestr": "|u1", "data": (place, False), "version": 3}


def _left(end: float) -> float:
    return max(end - time.monotonic(), LOOK_S)
