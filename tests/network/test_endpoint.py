"""Listening and dialling: ports, addresses, and who gets in under mutual TLS."""

from __future__ import annotations

import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.app import Client
from deploy.prepare import client_folder
from steelyard.bundle import Manifest, TensorSpec, digest
from steelyard.certificates import ClientTls, ServerTls, client_of_certificate, mistake_of, write_certificates
from steelyard.errors import RefusedError, RemoteFault, UserError
from steelyard.transport.base import SERVER, Transfer
from steelyard.transport.endpoint import bind, dial, server_options
from steelyard.transport.grpc_plane import GrpcClientPlane, GrpcServerPlane

WAIT_S = 30
DATA = b"twelve bytes"
MANIFEST = Manifest((TensorSpec("x", "U8", (12,)),), digest(DATA))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    write_certificates(folder / "ours", 3, [])
    write_certificates(folder / "theirs", 3, [])
    return folder


def test_a_free_port_is_named_and_a_busy_one_is_the_users_mistake(pool: ThreadPoolExecutor) -> None:
    first = grpc.server(pool, options=server_options())
    address = bind(first, "127.0.0.1:0", None)
    first.start()
    host, port = address.split(":")
    assert host == "127.0.0.1"
    assert 0 < int(port) < 65536
    with pytest.raises(UserError, match=f"{address}: a free port on this host expected"):
        bind(grpc.server(pool, options=server_options()), address, None)
    first.stop(None).wait(WAIT_S)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:5000", "fl.example.org:5000"])
def test_beyond_loopback_only_with_tls(pool: ThreadPoolExecutor, address: str) -> None:
    with pytest.raises(UserError, match=r"beyond loopback only with mutual TLS.*steelyard certs"):
        bind(grpc.server(pool, options=server_options()), address, None)
    with pytest.raises(UserError, match=r"beyond loopback only with mutual TLS.*steelyard certs"):
        dial(address, None)


@pytest.mark.parametrize(
    "address", ["", ":", "localhost", "127.0.0.1:", ":5000", "127.0.0.1:http", "127.0.0.1:70000", "::1:5000", "[::1]"]
)
def test_a_malformed_address_is_the_users_mistake(pool: ThreadPoolExecutor, address: str) -> None:
    with pytest.raises(UserError, match=r"HOST:PORT .* expected"):
        bind(grpc.server(pool, options=server_options()), address, None)
    with pytest.raises(UserError, match=r"HOST:PORT .* expected"):
        dial(address, None)


def test_dialling_port_zero_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="the server's port expected, got 0"):
        dial("localhost:0", None)


class TlsServer:
    """A tensor plane over mutual TLS; its clients are who their certificates say."""

    def __init__(self, pool: ThreadPoolExecutor, tls: ServerTls, address: str = "127.0.0.1:0") -> None:
        self.plane = GrpcServerPlane(self._authenticate)
        self.server = grpc.server(pool, handlers=[self.plane.handler()], options=server_options())
        self.address = bind(self.server, address, tls)
        self.server.start()

    @staticmethod
    def _authenticate(context: grpc.ServicerContext) -> int:
        (pem,) = context.auth_context()["x509_pem_cert"]
        client = client_of_certificate(pem)
        if client is None:
            raise RefusedError("UNKNOWN_CLIENT", "a client's certificate expected")
        return client


@pytest.fixture
def tls_server(pool: ThreadPoolExecutor, folder: Path) -> Iterator[TlsServer]:
    made = TlsServer(pool, ServerTls.load(folder / "ours" / "server"))
    yield made
    made.plane.close()
    made.server.stop(None).wait(WAIT_S)


def attempt(channel: grpc.Channel) -> BaseException | None:
    """What comes of pushing transfer "abc"."""
    with channel:
        end = GrpcClientPlane(channel, timeout_s=WAIT_S)
        error = end.send(Transfer(id="abc", peer=SERVER, manifest=MANIFEST), memoryview(DATA)).exception(WAIT_S)
        end.close()
    return error


def test_the_certificate_says_who_a_client_is(tls_server: TlsServer, folder: Path) -> None:
    stored = bytearray(12)
    received = tls_server.plane.receive(Transfer(id="abc", peer=2, manifest=MANIFEST), memoryview(stored))
    other = attempt(dial(tls_server.address, ClientTls.load(folder / "ours" / "client-1")))
    assert isinstance(other, RefusedError)
    assert other.refusal == "BAD_TRANSFER"
    assert "client 1 has no open transfer" in other.detail
    assert attempt(dial(tls_server.address, ClientTls.load(folder / "ours" / "client-2"))) is None
    received.result(WAIT_S)
    assert stored == DATA


def assert_kept_out(error: BaseException | None) -> None:
    assert isinstance(error, RemoteFault)
    assert "UNAVAILABLE" in str(error)


def test_a_client_of_another_authority_cannot_connect(tls_server: TlsServer, folder: Path) -> None:
    theirs = ClientTls.load(folder / "theirs" / "client-2")
    authority = (folder / "ours" / "ca.pem").read_bytes()
    assert_kept_out(attempt(dial(tls_server.address, replace(theirs, authority=authority))))


def test_a_client_without_a_certificate_cannot_connect(tls_server: TlsServer, folder: Path) -> None:
    bare = grpc.ssl_channel_credentials((folder / "ours" / "ca.pem").read_bytes())
    assert_kept_out(attempt(grpc.secure_channel(tls_server.address, bare)))
    assert_kept_out(attempt(dial(tls_server.address, None)))


def test_a_servers_certificate_is_no_clients(tls_server: TlsServer, folder: Path) -> None:
    server = ServerTls.load(folder / "ours" / "server")
    posing = ClientTls(authority=server.authority, certificate=server.certificate, key=server.key)
    assert_kept_out(attempt(dial(tls_server.address, posing)))


def test_a_client_does_not_talk_to_a_server_of_another_authority(pool: ThreadPoolExecutor, folder: Path) -> None:
    impostor = TlsServer(pool, ServerTls.load(folder / "theirs" / "server"))
    assert_kept_out(attempt(dial(impostor.address, ClientTls.load(folder / "ours" / "client-0"))))
    impostor.server.stop(None).wait(WAIT_S)


def test_a_client_posing_as_the_server_is_not_believed(pool: ThreadPoolExecutor, folder: Path) -> None:
    client = ClientTls.load(folder / "ours" / "client-1")
    posing = ServerTls(authority=client.authority, certificate=client.certificate, key=client.key)
    impostor = TlsServer(pool, posing)
    assert_kept_out(attempt(dial(impostor.address, ClientTls.load(folder / "ours" / "client-0"))))
    impostor.server.stop(None).wait(WAIT_S)


def test_a_client_names_the_file_that_does_not_fit_the_servers_certificate(
    folder: Path, make_federation: Callable[..., Any]
) -> None:
    federation = make_federation(transport={"certificates": str(folder / "ours")}, protocol={"join_timeout_s": 60.0})
    role = client_folder(federation.roles, 0)
    shutil.copytree(folder / "theirs" / "client-0", role / "certificates", dirs_exist_ok=True)
    line = rf"{role}/certificates/ca\.pem \(unable to get local issuer certificate\); make all of them"
    with pytest.raises(UserError, match=line):
        Client(role, federation.address).run()


def test_a_server_under_a_name_that_its_certificate_lacks_is_told(pool: ThreadPoolExecutor, folder: Path) -> None:
    server = TlsServer(pool, ServerTls.load(folder / "ours" / "server"), "127.0.0.2:0")
    fault = str(attempt(dial(server.address, ClientTls.load(folder / "ours" / "client-0"))))
    assert "steelyard certs --host" in (mistake_of(fault, folder) or "")
    server.server.stop(None).wait(WAIT_S)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end has closed a connection, or does so soon."""
    connection.settimeout(0.3)
    try:
        return not connection.recv(1)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_connections_leave_a_server_half_of_its_files(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept open and silent, they would end the run: by the first update whose file can't be made."""
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (20, 4096))
    server = grpc.server(pool, options=server_options())
    host, port = bind(server, "127.0.0.1:0", None).split(":")
    server.start()
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((host, int(port)), WAIT_S)) for _ in range(15)]
        assert sum(is_closed(connection) for connection in idle) == 5
    server.stop(None).wait(WAIT_S)
