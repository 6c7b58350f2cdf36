"""A client whose server goes away, for good or while something is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from client.app import Client
from client.session import DisconnectedError, Session
from deploy.forks import start
from deploy.prepare import client_folder
from protos import federation_pb2_grpc
from steelyard.bundle import Manifest, TensorSpec
from steelyard.transport.endpoint import bind, dial, server_options
from steelyard.transport.grpc_plane import GrpcClientPlane
from steelyard.wire import manifest_to_wire, pb
from tests.conftest import await_until

MakeFederation = Callable[..., Any]
PATIENCE_S = 30.0
MANIFEST = Manifest((TensorSpec("weight", "F32", (3,)),), "0" * 64)


class Vanishing(federation_pb2_grpc.FederationServicer):
    """A server of one client: offers a round, and is gone for good while the model is on its way."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.joined = False

    def Join(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        if self.joined:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        self.joined = True
        return pb.JoinReply(session="s", client=0, lease_s=60.0, incarnation=1)

    def Watch(self, _request: Any, _context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802 - gRPC's name
        yield pb.RoundState(phase=pb.OPEN, round=1, participating=True)
        self.over.wait(PATIENCE_S)
        yield pb.RoundState(phase=pb.FINISHED, round=1, reason="all 1 round settled")

    def Fetch(self, _request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        return pb.FetchReply(transfer="t", manifest=manifest_to_wire(MANIFEST))

    def Leave(self, _request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        return pb.LeaveReply()

    def pull(self, _request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.over.set()
        threading.Event().wait(0.5)  # the state is there before the connection breaks
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield b""


@contextmanager
def serving(servicer: Vanishing) -> Iterator[str]:
    """The address of such a server."""
    server = grpc.server(ThreadPoolExecutor(8), options=server_options())
    federation_pb2_grpc.add_FederationServicer_to_server(servicer, server)
    pull = grpc.unary_stream_rpc_method_handler(servicer.pull)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("steelyard.v1.Tensors", {"Pull": pull}),))
    address = bind(server, "127.0.0.1:0", None)
    server.start()
    yield address
    servicer.over.set()
    server.stop(None).wait(PATIENCE_S)


@pytest.fixture
def vanishing() -> Iterator[str]:
    """The address of a server that vanishes."""
    with serving(Vanishing()) as address:
        yield address


def test_a_connection_that_breaks_under_a_transfer_means_join_again(vanishing: str) -> None:
    session = Session(dial(vanishing, None), (), GrpcClientPlane, PATIENCE_S)
    session.join()
    with pytest.raises(DisconnectedError, match="Socket closed"), session:
        session.fetch(1)


class Frozen(Vanishing):
    """A server that answers no heartbeat."""

    def Join(self, _request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        return pb.JoinReply(session="s", client=0, lease_s=0.3, incarnation=1)

    def Heartbeat(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        self.over.set()
        while context.is_active():
            threading.Event().wait(0.1)


def test_a_session_ends_at_once_whatever_its_server_does_not_answer() -> None:
    frozen = Frozen()
    with serving(frozen) as address:
        session = Session(dial(address, None), (), GrpcClientPlane, PATIENCE_S)
        session.join()
        assert frozen.over.wait(PATIENCE_S)
        began = time.monotonic()
        lost = DisconnectedError("as from a transfer that took too long")
        session.__exit__(DisconnectedError, lost, None)
        assert time.monotonic() - began < PATIENCE_S / 3


def test_a_client_waits_for_a_server_as_long_as_that_may_want_it(make_federation: MakeFederation) -> None:
    """Longer than a call may take: the server may still hold a session or a round open for it."""
    federation = make_federation(transport={"timeout_s": 1.0})
    folder = client_folder(federation.roles, 0)
    process = start("client", folder, ["--server", federation.address], folder / "log.txt")
    try:
        federation.await_event("joined", client=0)
        federation.kill()
        await_until(lambda: "trying to join for 30 s" in (folder / "log.txt").read_text(), "the client's first try")
        threading.Event().wait(1.5)
        half = federation.roles / "server" / "half.json"
        half.write_text(half.read_text().replace('"127.0.0.1:0"', f'"{federation.address}"'))
        federation.start()
        assert len(await_until(lambda: federation.events("joined", client=0)[1:], "the client's return")) == 1
    finally:
        process.kill()


def test_a_late_client_of_a_finished_run_ends_well(vanishing: str, make_federation: MakeFederation) -> None:
    roles = make_federation(transport={"timeout_s": 3.0}).roles
    Client(client_folder(roles, 0), vanishing).run()
