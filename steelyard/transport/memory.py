"""The in-process tensor plane: the same checks and refusals as on a socket, one copy, no thread.

A client's call runs in the caller's thread and is over when it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from steelyard.errors import RefusedError
from steelyard.transport.base import CHUNK_BYTES, Put, Sink, TensorPlane, Transfer, chunks
from steelyard.transport.pending import Entry, Pending, ServerEnd


class MemoryHub:
    """Pairs one server's plane with its clients' planes."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._server: ServerPlane | None = None

    def server(self, on_bytes: Callable[[int, int], None]) -> TensorPlane:
        """The server's end; `on_bytes(peer, count)` hears of every arriving chunk."""
        assert self._server is None
        self._server = ServerPlane(on_bytes)
        return self._server

    def client(self, k: int) -> TensorPlane:
        """Client k's end; the server's end must exist."""
        assert self._server is not None
        return ClientPlane(self._server, k, self._chunk_bytes)


class ServerPlane(ServerEnd):
    """The server's end: expects transfers, which its clients' planes run."""

    def __init__(self, on_bytes: Callable[[int, int], None]) -> None:
        super().__init__()
        self.on_bytes = on_bytes


class ClientPlane:
    """A client's end: runs transfers that the server expects from this client."""

    def __init__(self, server: ServerPlane, client: int, chunk_bytes: int) -> None:
        self._server = server
        self._client = client
        self._chunk_bytes = chunk_bytes
        self._pending = Pending()

    def send(self, transfer: Transfer, source: memoryview) -> Future[None]:
        """Copy the bytes into the server's memory."""
        return self._run(self._pending.add(transfer, source, incoming=False))

    def receive(self, transfer: Transfer, into: memoryview, put: Put | None = None) -> Future[None]:
        """Copy the server's bytes into `into`."""
        return self._run(self._pending.add(transfer, into, incoming=True, put=put))

    def cancel(self, transfer_id: str) -> None:
        """Forget a transfer; none is pending here for longer than a call."""
        self._pending.cancel(transfer_id)

    def close(self) -> None:
        """Refuse every later transfer."""
        self._pending.close()

    def _run(self, ours: Entry) -> Future[None]:
        if ours.settled:
            return ours.future
        try:
            theirs = self._server.pending.claim(
                ours.transfer.id, self._client, incoming=not ours.incoming, stop=lambda: None
            )
        except RefusedError as refusal:
            self._pending.settle(ours, refusal)
            return ours.future
        if ours.incoming:  # as on a socket, a server that has sent is done, whatever the client thinks of the bytes
            verdict = self._copy(theirs, ours, lambda _count: None)
            self._server.pending.settle(theirs)
        else:  # and the server's verdict is also the sending client's
            verdict = self._copy(ours, theirs, lambda count: self._server.on_bytes(self._client, count))
            verdict = self._server.pending.settle(theirs, verdict)
        self._pending.settle(ours, verdict)
        return ours.future

    def _copy(self, source: Entry, target: Entry, on_bytes: Callable[[int], None]) -> BaseException | None:
        sink = Sink(target.view, target.transfer.manifest, target.put)
        try:
            with sink:
                for chunk in chunks(source.view, self._chunk_bytes):
                    sink.write(chunk)
                    on_bytes(len(chunk))
                sink.finish()
        except Exception as fault:  # noqa: BLE001 - both ends' futures carry it to their owners
            return fault
        return None
