"""The book of a plane's transfers: which are expected, which run, whose they are. An id is good for one use.

A peer can run a transfer only while it stands in the book, and it leaves the book with its first use. Its owner draws
128 random bits for each, so none comes again; the last ids are remembered to tell an owner that has it wrong, all of
them would let a client that asks for the model in a loop fill the server's memory.

Whoever runs a transfer settles it; `cancel` and `close` only tell a running one to stop, so that a future is done
after the last touch of its memory, never before. Nothing here knows how bytes move.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from steelyard.errors import RefusedError, WaitTimeoutError
from steelyard.transport.base import Put, Transfer

STOP_TIMEOUT_S = 10.0
REMEMBERED = 1000  # ids of the last transfers


@dataclass(eq=False)
class Entry:
    """One transfer in the book: its memory, its direction, what takes chunks there, and how to stop it once it runs."""

    transfer: Transfer
    view: memoryview
    incoming: bool
    put: Put | None = None
    future: Future[None] = field(default_factory=Future)
    stop: Callable[[], object] | None = None
    stopped: RefusedError | None = None
    settled: bool = False


class Pending:
    """The transfers of one plane; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._used: deque[str] = deque(maxlen=REMEMBERED)
        self._closed = False

    def add(self, transfer: Transfer, view: memoryview, *, incoming: bool, put: Put | None = None) -> Entry:
        """Expect a transfer; the entry's future has failed already when the plane is closed or the id was used."""
        assert view.nbytes == transfer.manifest.nbytes or not incoming
        entry = Entry(transfer, view, incoming, put)
        entry.future.set_running_or_notify_cancel()  # an owner ends a transfer by its id, not through the future
        with self._lock:
            if self._closed:
                entry.stopped = RefusedError("LATE", "the tensor plane is closed")
            elif transfer.id in self._entries or transfer.id in self._used:
                entry.stopped = RefusedError("BAD_TRANSFER", f"transfer {transfer.id} was used before")
            else:
                self._used.append(transfer.id)
                self._entries[transfer.id] = entry
        if entry.stopped:
            self.settle(entry)
        return entry

    def claim(self, transfer_id: str, peer: int, *, incoming: bool, stop: Callable[[], object]) -> Entry:
        """The expected transfer that a peer now runs.

        Args:
            transfer_id: as the peer names it.
            peer: who the peer is, by its authentication.
            incoming: whether bytes come from the peer.
            stop: ends the running transfer; called at most once, from another thread.

        Raises:
            RefusedError: BAD_TRANSFER. The line does not say whether another peer has a transfer of that id.
        """
        refusal = RefusedError("BAD_TRANSFER", f"client {peer} has no open transfer {transfer_id[:64]!r}")
        with self._lock:
            entry = self._entries.get(transfer_id)
            if entry is None or (entry.transfer.peer, entry.incoming) != (peer, incoming):
                raise refusal
            if entry.stop or entry.stopped:  # it runs already, or is about to be forgotten
                raise refusal
            entry.stop = stop
        return entry

    def start(self, entry: Entry, stop: Callable[[], object]) -> None:
        """Note how to stop a transfer that its own side runs; stops it at once if it was cancelled meanwhile."""
        with self._lock:
            entry.stop = stop
            stopped = entry.stopped is not None
        if stopped:
            stop()

    def settle(self, entry: Entry, error: BaseException | None = None) -> BaseException | None:
        """Complete a transfer's future, once; returns the error that it really ended with (a stop outranks all)."""
        with self._lock:
            final = entry.stopped or error
            if entry.settled:
                return final
            entry.settled = True
            if self._entries.get(entry.transfer.id) is entry:
                del self._entries[entry.transfer.id]
        if final is None:
            entry.future.set_result(None)
        else:
            entry.future.set_exception(final)
        return final

    def cancel(self, transfer_id: str, why: str = "the transfer was cancelled") -> None:
        """Stop a transfer: at once if nobody runs it, else as soon as its runner notices."""
        with self._lock:
            entry = self._entries.get(transfer_id)
            if entry is None or entry.stopped:
                return
            entry.stopped = RefusedError("LATE", why)
            stop = entry.stop
        if stop is None:
            self.settle(entry)
        else:
            stop()

    def close(self) -> None:
        """Stop everything, refuse everything new, and wait until the runners are done.

        Raises:
            WaitTimeoutError: a running transfer did not stop.
        """
        with self._lock:
            self._closed = True
            entries = list(self._entries.values())
        for entry in entries:
            self.cancel(entry.transfer.id, "the tensor plane was closed")
        running = wait([entry.future for entry in entries], timeout=STOP_TIMEOUT_S).not_done
        if running:
            raise WaitTimeoutError(f"{len(running)} transfers did not stop within {STOP_TIMEOUT_S:g} s of closing")


class ServerEnd:
    """What the servers' ends share: they expect transfers, and what runs one is the client's call."""

    def __init__(self) -> None:
        self.pending = Pending()

    def send(self, transfer: Transfer, source: memoryview) -> Future[None]:
        """Expect the client to fetch these bytes; done when the last one is on its way."""
        return self.pending.add(transfer, source, incoming=False).future

    def receive(self, transfer: Transfer, into: memoryview, put: Put | None = None) -> Future[None]:
        """Expect the client to hand in a bundle; done when it arrived and was verified."""
        return self.pending.add(transfer, into, incoming=True, put=put).future

    def cancel(self, transfer_id: str) -> None:
        """Forget a transfer, pending or running; its future fails with LATE, and so does the client's."""
        self.pending.cancel(transfer_id)

    def close(self) -> None:
        """Fail every pending transfer and wait for the end of those that run."""
        self.pending.close()
