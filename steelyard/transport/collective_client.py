"""A client's end of the collective tensor plane: makes its pair when it first needs one, and a new one after a break.

Every transfer begins with a call of `Pairs.Move`, whose first reply says that the server takes part and whose end is
the server's verdict; the bytes go over the pair in between. One transfer at a time, in one thread. Knows no rounds.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from protos import federation_pb2_grpc
from steelyard.errors import RefusedError, RemoteFault, SteelyardError
from steelyard.transport.base import Put, Sink, Transfer, size_fault
from steelyard.transport.collective import PairEnd
from steelyard.transport.collective_backends import CLIENT_RANK, backend_maker, make_ready
from steelyard.transport.faults import fault_of
from steelyard.transport.pending import Entry, Pending
from steelyard.transport.rendezvous import RemoteBox
from steelyard.transport.settings import TransportConfig, check_transport
from steelyard.wire import pb

CHUNK_BYTES = 2**24  # measured: docs/transport.md


class CollectiveClientPlane:
    """A client's end, on a channel that it shares with the control plane; the channel stays its owner's.

    Args:
        transport: which backend, where it listens, and how long anything may take.
        channel: to the server.
        metadata: goes with every call, e.g. the join token.
        device: with nccl, the client's GPU.
        chunk_bytes: size of the pieces, both ways.

    Raises:
        UserError: the configuration does not allow it, or this host lacks the interface or GPU.
    """

    def __init__(
        self,
        transport: TransportConfig,
        channel: grpc.Channel,
        metadata: Sequence[tuple[str, str]] = (),
        device: str = "cpu",
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        check_transport(transport, "[transport]")
        self._transport = transport
        self._device = device
        self._gpu = make_ready(transport, device)
        self._stub = federation_pb2_grpc.PairsStub(channel)
        self._metadata = tuple(metadata)
        self._chunk_bytes = chunk_bytes
        self._pending = Pending()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="steelyard-pair")
        self._lock = threading.Lock()
        self._pair: PairEnd | None = None
        self._closed = False

    def send(self, transfer: Transfer, source: memoryview) -> Future[None]:
        """Send a bundle; done when the server has verified it (its durable receipt is the control plane's word)."""
        return self._start(self._pending.add(transfer, source, incoming=False))

    def receive(self, transfer: Transfer, into: memoryview, put: Put | None = None) -> Future[None]:
        """Receive a bundle; done when it arrived and was verified."""
        return self._start(self._pending.add(transfer, into, incoming=True, put=put))

    def cancel(self, transfer_id: str) -> None:
        """End a running transfer, and the pair with it; its future fails with LATE."""
        self._pending.cancel(transfer_id)

    def close(self) -> None:
        """End every running transfer, the pair and the thread."""
        with self._lock:
            self._closed = True
        try:
            self._pending.close()
        finally:
            self._retire()
            self._worker.shutdown()

    def _start(self, entry: Entry) -> Future[None]:
        if not entry.settled:
            self._pending.start(entry, self._retire)
            self._worker.submit(self._run, entry)
        return entry.future

    def _run(self, entry: Entry) -> None:
        error: BaseException | None = None
        try:
            if entry.stopped is None:
                self._move(entry, time.monotonic() + self._transport.timeout_s)
        except SteelyardError as fault:
            stale = isinstance(fault, RefusedError) and fault.refusal == "STALE_PAIR"
            error = RemoteFault(str(fault)) if stale else fault  # a new session makes a new pair
        except BaseException as fault:  # noqa: BLE001 - the future carries it to the owner
            error = fault
        self._pending.settle(entry, error)

    def _move(self, entry: Entry, end: float) -> None:
        pair = self._ready()
        if entry.stopped is not None:
            return
        what = f"{pair.name}: {'receiving' if entry.incoming else 'sending'} {entry.view.nbytes} bytes"
        request = pb.MoveRequest(
            epoch=pair.epoch,
            transfer=entry.transfer.id,
            to_server=not entry.incoming,
            nbytes=0 if entry.incoming else entry.view.nbytes,
            chunk_bytes=self._chunk_bytes,
        )
        call = self._stub.Move(request, metadata=self._metadata, timeout=self._transport.timeout_s)
        self._pending.start(entry, functools.partial(self._stop, call))
        begun = _next(call, what)
        try:
            self._bytes(entry, pair, begun, end)
        except SteelyardError as fault:
            self._give_up(pair, call, fault, what)
        _next(call, what)

    def _bytes(self, entry: Entry, pair: PairEnd, begun: Any, end: float) -> None:
        seconds = max(end - time.monotonic(), 0.0)
        if not entry.incoming:
            pair.send(entry.view, self._chunk_bytes, seconds)
            return
        if begun.nbytes != entry.view.nbytes:
            pair.retire()
            raise size_fault(entry.view.nbytes, begun.nbytes)
        with Sink(entry.view, entry.transfer.manifest) as sink:
            pair.receive(sink, self._chunk_bytes, seconds)

    def _give_up(self, pair: PairEnd, call: Any, fault: SteelyardError, what: str) -> None:
        """Raise why a transfer failed: a refusal by the server says more than a pair that broke."""
        if isinstance(fault, RefusedError):  # our own verdict on what came
            if pair.is_retired:
                call.cancel()
            else:
                _next(call, what)  # the pair serves on as soon as the server is done with this
            raise fault
        try:
            _next(call, what)
        except RefusedError as refusal:
            raise refusal from fault
        except SteelyardError:
            raise fault from None
        raise fault

    def _ready(self) -> PairEnd:
        """The pair, made anew if there is none that works."""
        with self._lock:
            pair = self._pair
        if pair is not None and not pair.is_retired:
            return pair
        request = pb.PairRequest(backend=self._transport.tensors, device=self._gpu)
        timeout_s = self._transport.timeout_s
        try:
            reply = self._stub.Pair(request, metadata=self._metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            raise fault_of(error, "asking for a pair") from error
        box = RemoteBox(self._stub, self._metadata, reply.epoch, timeout_s)
        pair = PairEnd("the server", reply.epoch, box, timeout_s)
        with self._lock:
            if self._closed:
                raise RefusedError("LATE", "the tensor plane was closed")
            self._pair = pair
        pair.build(backend_maker(self._transport, CLIENT_RANK, self._device))
        return pair

    def _stop(self, call: Any) -> None:
        """End the transfer that runs, even if the server is frozen and would never end its call."""
        self._retire()
        call.cancel()

    def _retire(self) -> None:
        with self._lock:
            pair = self._pair
        if pair is not None:
            pair.retire()


def _next(call: Any, what: str) -> Any:
    """The call's next reply, None at its end; a call that failed raises what that means."""
    try:
        return next(call, None)
    except grpc.RpcError as error:
        raise fault_of(error, what) from error
