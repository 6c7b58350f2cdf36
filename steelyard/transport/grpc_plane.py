"""The gRPC tensor plane: raw byte chunks in the streams /steelyard.v1.Tensors/Push and /Pull, no protobuf around them.

A call's metadata names its transfer; who calls comes from the server's `authenticate`, never from a message. One
copy per side beyond gRPC's own. Every call has a deadline, which bounds the server's thread too. Knows no rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc

from steelyard.errors import RefusedError, UserError
from steelyard.transport.base import CHUNK_BYTES, Put, Sink, Transfer, chunks
from steelyard.transport.endpoint import MESSAGE_BYTES, channel_options, server_options
from steelyard.transport.faults import fault_of, refuse
from steelyard.transport.pending import Entry, Pending, ServerEnd
from steelyard.transport.settings import LONGEST_CALL_S, MAX_TIMEOUT_S

__all__ = ["GrpcClientPlane", "GrpcServerPlane", "channel_options", "server_options"]

SERVICE = "steelyard.v1.Tensors"
TRANSFER_KEY = "steelyard-transfer"


class GrpcServerPlane(ServerEnd):
    """The server's end. Add `handler()` to the gRPC server that also serves the control plane.

    A running transfer holds one of that server's threads, until its call's deadline at the latest; a client can have
    as many running as the server announced to it, so size the pool by that.

    Args:
        authenticate: the calling client's index in the roster, or `RefusedError`.
        chunk_bytes: size of outgoing chunks.
        on_bytes: hears of every arriving chunk: the client's index and the number of bytes.
        sink: checks what arrives; only a benchmark has reason to name another.
    """

    def __init__(
        self,
        authenticate: Callable[[grpc.ServicerContext], int],
        chunk_bytes: int = CHUNK_BYTES,
        on_bytes: Callable[[int, int], None] = lambda _peer, _count: None,
        sink: type[Sink] = Sink,
    ) -> None:
        super().__init__()
        _prepare(chunk_bytes)
        self._sink = sink
        self._authenticate = authenticate
        self._chunk_bytes = chunk_bytes
        self._on_bytes = on_bytes

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Serves Push and Pull, as raw bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Push": grpc.stream_unary_rpc_method_handler(self._push),
                "Pull": grpc.unary_stream_rpc_method_handler(self._pull, response_serializer=bytes),
            },
        )

    def _push(self, arriving: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        entry = self._claim(context, incoming=True)
        sink = self._sink(entry.view, entry.transfer.manifest, entry.put)
        error: BaseException | None = None
        try:
            with sink:
                for chunk in arriving:
                    sink.write(chunk)
                    if chunk:
                        self._on_bytes(entry.transfer.peer, len(chunk))
                sink.finish()
        except RefusedError as fault:
            error = fault
        except grpc.RpcError:
            total = entry.transfer.manifest.nbytes
            error = RefusedError("TRUNCATED", f"{total} bytes announced, the call ended after {sink.received}")
        except BaseException as fault:
            self.pending.settle(entry, fault)
            raise
        error = self.pending.settle(entry, error)
        if isinstance(error, RefusedError):
            refuse(context, error)
        return b""

    def _pull(self, _request: bytes, context: grpc.ServicerContext) -> Iterator[memoryview]:
        entry = self._claim(context, incoming=False)

        def ended() -> None:  # without effect once every chunk is on its way
            error = RefusedError("TRUNCATED", "the call ended before the client had the whole bundle")
            self.pending.settle(entry, error)

        if not context.add_callback(ended):
            ended()
        yield from chunks(entry.view, self._chunk_bytes)
        self.pending.settle(entry)

    def _claim(self, context: grpc.ServicerContext, *, incoming: bool) -> Entry:
        try:
            peer = self._authenticate(context)
            if not context.time_remaining() <= LONGEST_CALL_S:  # gRPC rounds a call's deadline up
                raise RefusedError("BAD_TRANSFER", f"a call with a deadline of at most {LONGEST_CALL_S:g} s expected")
            name = next((str(value) for key, value in context.invocation_metadata() if key == TRANSFER_KEY), "")
            return self.pending.claim(name, peer, incoming=incoming, stop=context.cancel)
        except RefusedError as refusal:
            refuse(context, refusal)


class GrpcClientPlane:
    """A client's end, on a channel that it shares with the control plane; the channel stays its owner's.

    Args:
        channel: to the server.
        metadata: goes with every call, e.g. the join token.
        chunk_bytes: size of outgoing chunks.
        timeout_s: of each transfer; at most an hour.
        sink: as for the server's end.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        metadata: Sequence[tuple[str, str]] = (),
        chunk_bytes: int = CHUNK_BYTES,
        timeout_s: float = 600.0,
        sink: type[Sink] = Sink,
    ) -> None:
        _prepare(chunk_bytes)
        self._sink = sink
        self._push = channel.stream_unary(f"/{SERVICE}/Push", request_serializer=bytes, response_deserializer=None)
        self._pull = channel.unary_stream(f"/{SERVICE}/Pull", request_serializer=None, response_deserializer=None)
        self._metadata = tuple(metadata)
        self._chunk_bytes = chunk_bytes
        self._timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        self._pending = Pending()
        self._workers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="steelyard-pull")

    def send(self, transfer: Transfer, source: memoryview) -> Future[None]:
        """Push a bundle; done when the server has verified it (its durable receipt is the control plane's word)."""
        entry = self._pending.add(transfer, source, incoming=False)
        if not entry.settled:
            call = self._push.future(
                chunks(source, self._chunk_bytes), timeout=self._timeout_s, metadata=self._metadata_of(transfer)
            )
            self._pending.start(entry, call.cancel)
            call.add_done_callback(partial(self._pushed, entry))
        return entry.future

    def receive(self, transfer: Transfer, into: memoryview, put: Put | None = None) -> Future[None]:
        """Pull a bundle; done when it arrived and was verified."""
        entry = self._pending.add(transfer, into, incoming=True, put=put)
        if not entry.settled:
            call = self._pull(b"", timeout=self._timeout_s, metadata=self._metadata_of(transfer))
            self._pending.start(entry, call.cancel)
            self._workers.submit(self._drain, entry, call)
        return entry.future

    def cancel(self, transfer_id: str) -> None:
        """End a running transfer; its future fails with LATE."""
        self._pending.cancel(transfer_id)

    def close(self) -> None:
        """End every running transfer and the worker threads."""
        self._pending.close()
        self._workers.shutdown()

    def _metadata_of(self, transfer: Transfer) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, (TRANSFER_KEY, transfer.id))

    def _pushed(self, entry: Entry, call: Any) -> None:
        error = None if call.code() is grpc.StatusCode.OK else fault_of(call, "sending a bundle")
        self._pending.settle(entry, error)

    def _drain(self, entry: Entry, call: Any) -> None:
        error: BaseException | None = None
        sink = self._sink(entry.view, entry.transfer.manifest, entry.put)
        try:
            with sink:
                for chunk in call:
                    sink.write(chunk)
                sink.finish()
        except grpc.RpcError as broken:
            error = fault_of(broken, "receiving a bundle")
        except BaseException as fault:  # noqa: BLE001 - the future carries it to the owner
            call.cancel()
            error = fault
        self._pending.settle(entry, error)


def _prepare(chunk_bytes: int) -> None:
    if not 0 < chunk_bytes <= MESSAGE_BYTES:
        raise UserError(f"[transport] chunk_bytes: 1 to {MESSAGE_BYTES} expected, got {chunk_bytes}")
