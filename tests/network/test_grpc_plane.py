"""What only a real gRPC stream can do: stall, break, run over its deadline or its message size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from steelyard.bundle import Manifest, TensorSpec, digest
from steelyard.errors import RefusedError, RemoteFault, UserError, WaitTimeoutError
from steelyard.transport.base import SERVER, Transfer
from steelyard.transport.endpoint import MESSAGE_BYTES, bind, channel_options, dial, server_options
from steelyard.transport.faults import fault_of
from steelyard.transport.grpc_plane import GrpcClientPlane, GrpcServerPlane

WAIT_S = 30
DATA = bytes(range(200))
MANIFEST = Manifest((TensorSpec("x", "U8", (200,)),), digest(DATA))
AT_SERVER = Transfer(id="abc", peer=0, manifest=MANIFEST)
AT_CLIENT = Transfer(id="abc", peer=SERVER, manifest=MANIFEST)
METADATA = (("steelyard-transfer", "abc"),)


class Served:
    """A server plane that takes every caller for client 0; `heard` gets the size of each arriving chunk."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.heard: SimpleQueue[int] = SimpleQueue()
        self.plane = GrpcServerPlane(lambda _context: 0, 50, lambda _peer, count: self.heard.put(count))
        self.server = grpc.server(pool, handlers=[self.plane.handler()], options=server_options())
        self.address = bind(self.server, "127.0.0.1:0", None)
        self.server.start()


class StalledPush:
    """A hand-made Push of one 60-byte chunk that never ends by itself."""

    def __init__(self, channel: grpc.Channel, timeout_s: float | None = WAIT_S) -> None:
        self.go_on = threading.Event()
        push = channel.stream_unary("/steelyard.v1.Tensors/Push", None, None)
        self.call: Any = push.future(self._chunks(), metadata=METADATA, timeout=timeout_s)

    def _chunks(self) -> Iterator[bytes]:
        yield DATA[:60]
        self.go_on.wait(WAIT_S)

    def fault(self) -> Exception:
        error = self.call.exception(WAIT_S)
        self.go_on.set()
        return fault_of(error, "pushing")


@pytest.fixture
def served() -> Iterator[Served]:
    with ThreadPoolExecutor(4) as pool:
        made = Served(pool)
        yield made
        made.plane.close()
        made.server.stop(None).wait(WAIT_S)


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with dial(served.address, None) as made:
        yield made


def refusal(error: BaseException | None) -> str:
    assert isinstance(error, RefusedError), error
    return error.refusal


def test_cancelling_ends_a_stalled_push_on_both_ends(served: Served, channel: grpc.Channel) -> None:
    received = served.plane.receive(AT_SERVER, memoryview(bytearray(200)))
    push = StalledPush(channel)
    assert served.heard.get(timeout=WAIT_S) == 60
    served.plane.cancel("abc")
    assert refusal(received.exception(WAIT_S)) == "LATE"
    assert refusal(push.fault()) == "LATE"


def test_closing_ends_a_stalled_push(served: Served, channel: grpc.Channel) -> None:
    received = served.plane.receive(AT_SERVER, memoryview(bytearray(200)))
    push = StalledPush(channel)
    served.heard.get(timeout=WAIT_S)
    served.plane.close()
    assert received.done()
    assert refusal(received.exception()) == "LATE"
    assert refusal(push.fault()) == "LATE"


def test_a_running_transfer_cannot_be_run_twice(served: Served, channel: grpc.Channel) -> None:
    received = served.plane.receive(AT_SERVER, memoryview(bytearray(200)))
    push = StalledPush(channel)
    served.heard.get(timeout=WAIT_S)
    with dial(served.address, None) as other:
        end = GrpcClientPlane(other)
        assert refusal(end.send(AT_CLIENT, memoryview(DATA)).exception(WAIT_S)) == "BAD_TRANSFER"
        end.close()
    assert not received.done()
    push.call.cancel()
    assert refusal(received.exception(WAIT_S)) == "TRUNCATED"


def test_a_stalled_peer_is_gone_at_its_calls_deadline(served: Served, channel: grpc.Channel) -> None:
    received = served.plane.receive(AT_SERVER, memoryview(bytearray(200)))
    push = StalledPush(channel, timeout_s=0.5)
    assert refusal(received.exception(WAIT_S)) == "TRUNCATED"
    assert isinstance(push.fault(), WaitTimeoutError)


@pytest.mark.parametrize("timeout_s", [None, 1e6])
def test_a_call_without_a_sane_deadline_is_refused(
    served: Served, channel: grpc.Channel, timeout_s: float | None
) -> None:
    received = served.plane.receive(AT_SERVER, memoryview(bytearray(200)))
    fault = StalledPush(channel, timeout_s).fault()
    assert refusal(fault) == "BAD_TRANSFER"
    assert "a deadline of at most 3720 s expected" in str(fault)
    assert not received.done()


def test_a_client_that_vanishes_mid_stream_leaves_a_truncated_transfer(served: Served) -> None:
    received = served.plane.receive(AT_SERVER, memoryview(bytearray(200)))
    channel = dial(served.address, None)
    push = StalledPush(channel)
    served.heard.get(timeout=WAIT_S)
    channel.close()
    push.go_on.set()
    assert refusal(received.exception(WAIT_S)) == "TRUNCATED"


def test_a_message_above_the_limit_ends_its_call_alone(served: Served, channel: grpc.Channel) -> None:
    received = served.plane.receive(AT_SERVER, memoryview(bytearray(200)))
    push = channel.stream_unary("/steelyard.v1.Tensors/Push", None, None)
    call: Any = push.future(iter([bytes(MESSAGE_BYTES + 1)]), metadata=METADATA, timeout=WAIT_S)
    fault = fault_of(call.exception(WAIT_S), "pushing")
    assert refusal(fault) == "TOO_LARGE"
    assert str(MESSAGE_BYTES) in str(fault)
    assert refusal(received.exception(WAIT_S)) == "TRUNCATED"

    again = Transfer(id="def", peer=0, manifest=MANIFEST)
    received = served.plane.receive(again, memoryview(bytearray(200)))
    end = GrpcClientPlane(channel)
    end.send(Transfer(id="def", peer=SERVER, manifest=MANIFEST), memoryview(DATA)).result(WAIT_S)
    received.result(WAIT_S)
    end.close()


def test_cancelling_ends_a_pull_that_nobody_reads(served: Served, channel: grpc.Channel) -> None:
    """64 MiB cannot all be on their way unread: the flow control window is smaller."""
    size = 64 * 2**20
    manifest = Manifest((TensorSpec("x", "U8", (size,)),), "0" * 64)
    stuck = served.plane.send(Transfer(id="abc", peer=0, manifest=manifest), memoryview(bytes(size)))
    pull = channel.unary_stream("/steelyard.v1.Tensors/Pull", None, None)
    call: Any = pull(b"", metadata=METADATA, timeout=WAIT_S)
    assert len(next(call)) == 50
    assert not stuck.done()
    served.plane.cancel("abc")
    assert refusal(stuck.exception(WAIT_S)) == "LATE"
    call.cancel()


def test_the_clients_end_stops_its_calls_and_threads() -> None:
    hold, entered = threading.Event(), threading.Event()

    def slow(_request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield DATA[:1]
        entered.set()
        hold.wait(WAIT_S)

    handlers = {"Pull": grpc.unary_stream_rpc_method_handler(slow)}
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, options=server_options())
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("steelyard.v1.Tensors", handlers)])
        with dial(bind(server, "127.0.0.1:0", None), None) as slow_channel:
            server.start()
            end = GrpcClientPlane(slow_channel)
            received: Future[None] = end.receive(AT_CLIENT, memoryview(bytearray(200)))
            assert entered.wait(WAIT_S)
            end.close()
            assert refusal(received.exception()) == "LATE"
            assert not [t.name for t in threading.enumerate() if t.name.startswith("steelyard-pull")]
            hold.set()
        server.stop(None).wait(WAIT_S)


def test_a_server_that_is_not_there_is_a_remote_fault() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, options=server_options())
        address = bind(server, "127.0.0.1:0", None)
        server.start()
        server.stop(None).wait(WAIT_S)
    with dial(address, None) as channel:
        end = GrpcClientPlane(channel, timeout_s=WAIT_S)
        error = end.send(AT_CLIENT, memoryview(DATA)).exception(WAIT_S)
        end.close()
    assert isinstance(error, RemoteFault)
    assert not isinstance(error, RefusedError)
    assert "UNAVAILABLE" in str(error)


def test_a_refusal_in_authentication_reaches_the_client() -> None:
    def nobody(_context: grpc.ServicerContext) -> int:
        raise RefusedError("UNKNOWN_CLIENT", "no client of the roster has this token: ä")

    plane = GrpcServerPlane(nobody)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[plane.handler()], options=server_options())
        with dial(bind(server, "127.0.0.1:0", None), None) as channel:
            server.start()
            end = GrpcClientPlane(channel)
            for future in (
                end.send(AT_CLIENT, memoryview(DATA)),
                end.receive(Transfer(id="def", peer=SERVER, manifest=MANIFEST), memoryview(bytearray(200))),
            ):
                error = future.exception(WAIT_S)
                assert isinstance(error, RefusedError)
                assert (error.refusal, error.detail) == (
                    "UNKNOWN_CLIENT",
                    "no client of the roster has this token: ä",
                )
            end.close()
        server.stop(None).wait(WAIT_S)


def test_chunks_that_no_message_can_hold_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="chunk_bytes: 1 to 8388608 expected, got 8388609"):
        GrpcServerPlane(lambda _context: 0, MESSAGE_BYTES + 1)
    assert dict(channel_options())["grpc.max_receive_message_length"] == MESSAGE_BYTES
