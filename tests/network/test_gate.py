"""Calls that would hold a thread and say nothing: what they may not do to others, and what an honest client may."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest

import client.session
from client.session import DisconnectedError, Session
from deploy.forks import start
from deploy.prepare import client_folder
from steelyard.errors import RefusedError
from steelyard.transport.endpoint import STREAMS, bind, dial, server_options
from steelyard.transport.faults import refusal_of
from steelyard.transport.gate import CALLS_PER_CLIENT, LONGEST_CALL_S, Gate
from steelyard.transport.grpc_plane import GrpcClientPlane
from steelyard.transport.rendezvous import GRACE_S
from steelyard.transport.settings import MAX_TIMEOUT_S
from steelyard.wire import pb

MakeFederation = Callable[..., Any]
PATIENCE_S = 30.0
MANY = 3  # connections, each with as many calls as it may have open: twice the threads of a server of three clients
METHODS = ("Federation/Heartbeat", "Federation/Watch", "Federation/GetReceipt", "Tensors/Push", "Tensors/Pull")


@contextmanager
def silent_calls(address: str, metadata: Any, connections: int, methods: tuple[str, ...]) -> Iterator[list[Any]]:
    """As many calls as the connections take, in turn of each method; they never send a message."""
    over = threading.Event()

    def never() -> Iterator[bytes]:
        over.wait(2 * PATIENCE_S)
        yield from ()

    with ExitStack() as stack:
        calls = []
        for number in range(connections * STREAMS):
            if number % STREAMS == 0:
                channel = stack.enter_context(dial(address, None))
            name = f"/steelyard.v1.{methods[number % len(methods)]}"
            call = channel.stream_stream(name, request_serializer=bytes, response_deserializer=None)
            calls.append(call(never(), metadata=metadata, timeout=2 * PATIENCE_S))
        yield calls
        over.set()


def finish(federation: Any, clients: tuple[int, ...]) -> None:
    """Have clients of their own processes take part to the end of the run."""
    logs = {k: client_folder(federation.roles, k) / "log.txt" for k in clients}
    started = [start("client", log.parent, ["--server", federation.address], log) for log in logs.values()]
    try:
        codes = [process.wait(2 * PATIENCE_S) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * len(clients), [log.read_text(encoding="utf-8") for log in logs.values()]
    assert federation.wait() == 0
    assert [event["received"] for event in federation.events("round_closed")] == [list(clients)] * 2


def test_a_strangers_silent_calls_keep_nobody_from_the_run(make_federation: MakeFederation) -> None:
    federation = make_federation()
    with silent_calls(federation.address, (), MANY, METHODS) as calls:
        for call in calls:
            with pytest.raises(grpc.RpcError) as refused:
                next(call)
            assert refusal_of(refused.value).refusal == "UNKNOWN_CLIENT"  # type: ignore[union-attr]
    with silent_calls(federation.address, (), MANY, METHODS):
        finish(federation, (0, 1, 2))
    assert {event["client"] for event in federation.events("refused")} == {None}


def test_a_clients_silent_calls_keep_no_other_from_the_run(make_federation: MakeFederation) -> None:
    protocol = {"round_deadline_s": 30.0, "join_timeout_s": 4.0, "lease_s": 5.0, "quorum": 2}
    federation = make_federation(protocol=protocol)
    with silent_calls(federation.address, federation.client(2).metadata, MANY, METHODS) as calls:
        federation.await_event("refused", client=2, refusal="TOO_MANY_CALLS", number=20)
        assert sum(call.is_active() for call in calls) >= CALLS_PER_CLIENT
        finish(federation, (0, 1))


def session_of(federation: Any, k: int) -> Session:
    scripted = federation.client(k)
    return Session(
        dial(federation.address, None),
        scripted.metadata,
        lambda channel: GrpcClientPlane(channel, scripted.metadata, timeout_s=PATIENCE_S),
        PATIENCE_S,
    )


def test_a_client_with_too_many_calls_may_join_once_they_have_ended(make_federation: MakeFederation) -> None:
    federation = make_federation()
    with silent_calls(federation.address, federation.client(0).metadata, 1, METHODS[:1]):
        federation.await_event("refused", refusal="TOO_MANY_CALLS")
        with pytest.raises(DisconnectedError, match=f"client 0 has {CALLS_PER_CLIENT} calls open already"):
            session_of(federation, 0).join()
    client.session.connect(lambda: session_of(federation, 0), PATIENCE_S).__exit__(None, None, None)
    assert len(federation.events("left", client=0)) == 1


def test_a_wrong_token_is_refused_for_good(make_federation: MakeFederation) -> None:
    federation = make_federation()
    stranger = federation.stranger("not a token")
    session = Session(dial(federation.address, None), stranger.metadata, GrpcClientPlane, PATIENCE_S)
    with pytest.raises(RefusedError, match="UNKNOWN_CLIENT: a join token of this roster expected"):
        session.join()


def test_a_watch_stream_whose_time_is_up_is_followed_by_another(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.session, "WATCH_S", 0.2)
    federation = make_federation()
    others = [federation.client(k) for k in (1, 2)]
    session = session_of(federation, 0)
    session.join()
    with session:
        session.wait_for(lambda s: s.phase == pb.WAITING)
        threading.Event().wait(0.8)
        for other in others:
            other.join()
        session.wait_for(lambda s: s.phase == pb.OPEN)
    assert len(federation.events("joined", client=0)) == 1


# -- the gate alone ---------------------------------------------------------------------------------------------------


class Served:
    """Client 3, or with the metadata "stranger" nobody, before a server whose one method waits to be let go."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.refused: list[tuple[int | None, str, str]] = []
        self.go = threading.Event()
        gate = Gate(self._identify, lambda client, method, error: self.refused.append((client, method, error.refusal)))
        self.server = grpc.server(pool, interceptors=[gate], options=server_options())
        methods = {
            "Wait": grpc.unary_unary_rpc_method_handler(self._wait),
            "Echo": grpc.unary_stream_rpc_method_handler(self._echo),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
        self.channel = dial(bind(self.server, "127.0.0.1:0", None), None)
        self.server.start()

    @staticmethod
    def _identify(context: grpc.ServicerContext) -> int:
        if ("stranger", "1") in tuple(context.invocation_metadata()):
            raise RefusedError("UNKNOWN_CLIENT", "client 3 expected")
        return 3

    def _wait(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        self.go.wait(PATIENCE_S)
        return request

    def _echo(self, request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from (request, request)


@pytest.fixture
def served() -> Iterator[Served]:
    with ThreadPoolExecutor(8) as pool:
        made = Served(pool)
        yield made
        made.go.set()
        made.channel.close()
        made.server.stop(None).wait(PATIENCE_S)


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        act()
    found = refusal_of(caught.value)
    assert found is not None, caught.value
    return str(found)


def test_a_call_needs_a_deadline_that_is_not_too_far_away(served: Served) -> None:
    echo = served.channel.unary_stream("/test/Echo")
    for timeout in (None, LONGEST_CALL_S + 60.0):
        assert refusal(lambda timeout=timeout: next(echo(b"x", timeout=timeout))) == (  # type: ignore[misc]
            "BAD_CALL: Echo: a deadline of at most 3720 s expected"
        )
    longest = MAX_TIMEOUT_S + GRACE_S  # that of a call that waits; gRPC rounds it up to a minute
    assert list(echo(b"x", timeout=longest)) == [b"x", b"x"]
    assert served.refused == [(3, "Echo", "BAD_CALL")] * 2


def test_who_is_unknown_learns_nothing_else(served: Served) -> None:
    echo = served.channel.unary_stream("/test/Echo")
    assert refusal(lambda: next(echo(b"x", metadata=(("stranger", "1"),)))) == "UNKNOWN_CLIENT: client 3 expected"
    assert served.refused == [(None, "Echo", "UNKNOWN_CLIENT")]


def test_a_call_without_a_message_is_refused(served: Served) -> None:
    empty = served.channel.stream_unary("/test/Wait")
    told = refusal(lambda: empty(iter(()), timeout=PATIENCE_S))
    assert told == "BAD_CALL: Wait: a message expected, the call ended without one"


def test_a_method_that_nobody_serves_is_told_so(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.channel.unary_unary("/test/Other")(b"", timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_client_has_its_share_of_calls_and_has_it_again(served: Served) -> None:
    wait = served.channel.unary_unary("/test/Wait")
    for _ in range(3):
        served.go.clear()
        calls = [wait.future(b"y", timeout=PATIENCE_S) for _ in range(CALLS_PER_CLIENT + 1)]
        late = next(call for call in iter_done(calls))
        assert refusal(late.result) == f"TOO_MANY_CALLS: client 3 has {CALLS_PER_CLIENT} calls open already"
        served.go.set()
        assert [call.result(PATIENCE_S) for call in calls if call is not late] == [b"y"] * CALLS_PER_CLIENT


def test_a_call_that_its_peer_gave_up_counts_while_its_thread_is_at_work(served: Served) -> None:
    wait = served.channel.unary_unary("/test/Wait")
    for call in [wait.future(b"y", timeout=0.3) for _ in range(CALLS_PER_CLIENT)]:
        with pytest.raises(grpc.RpcError):
            call.result()
    assert "TOO_MANY_CALLS" in refusal(lambda: wait(b"y", timeout=PATIENCE_S))


def iter_done(calls: list[Any]) -> Iterator[Any]:
    """The calls that are done, as they become it."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        yield from (call for call in calls if call.done())
        pause.wait(0.05)
