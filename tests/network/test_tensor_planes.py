"""One suite for every tensor plane: what arrives is what was sent, or a refusal says why.

A further plane is one more context manager in `WORLDS`.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from steelyard.bundle import BundleFile, Manifest, TensorSpec, digest, raw, read_arrays, specs_of
from steelyard.errors import RefusedError
from steelyard.transport.base import SERVER, TensorPlane, Transfer
from steelyard.transport.collective_client import CollectiveClientPlane
from steelyard.transport.collective_server import CollectiveServerPlane
from steelyard.transport.endpoint import bind, dial, server_options
from steelyard.transport.grpc_plane import GrpcClientPlane, GrpcServerPlane
from steelyard.transport.memory import MemoryHub
from steelyard.transport.pending import REMEMBERED
from steelyard.transport.settings import TransportConfig

WAIT_S = 30
CLIENTS = 4
CHUNK = 1000  # small and odd, so that bundles take several and end inside one


@dataclass
class World:
    """A server's plane and a way to make any number of planes for client k; `arrived` notes (peer, bytes)."""

    server: TensorPlane
    client: Callable[[int], TensorPlane]
    arrived: list[tuple[int, int]] = field(default_factory=list)


@contextmanager
def memory_world() -> Iterator[World]:
    hub = MemoryHub(CHUNK)
    arrived: list[tuple[int, int]] = []
    server = hub.server(lambda peer, count: arrived.append((peer, count)))
    yield World(server, hub.client, arrived)
    server.close()


def authenticate(context: grpc.ServicerContext) -> int:
    token = dict(context.invocation_metadata()).get("steelyard-token", "")
    if not str(token).startswith("token-"):
        raise RefusedError("UNKNOWN_CLIENT", "no client has this token")
    return int(str(token).removeprefix("token-"))


@contextmanager
def grpc_world() -> Iterator[World]:
    arrived: list[tuple[int, int]] = []
    plane = GrpcServerPlane(authenticate, CHUNK, lambda peer, count: arrived.append((peer, count)))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(8))
        server = grpc.server(pool, handlers=[plane.handler()], options=server_options())
        address = bind(server, "127.0.0.1:0", None)
        server.start()
        stack.callback(lambda: server.stop(None).wait(WAIT_S))
        stack.callback(plane.close)

        def client(k: int) -> TensorPlane:
            channel = stack.enter_context(dial(address, None))
            end = GrpcClientPlane(channel, [("steelyard-token", f"token-{k}")], CHUNK, WAIT_S)
            stack.callback(end.close)
            return end

        yield World(plane, client, arrived)


@contextmanager
def gloo_world() -> Iterator[World]:
    transport = TransportConfig(tensors="gloo", trusted_peers=True, timeout_s=WAIT_S)
    arrived: list[tuple[int, int]] = []
    plane = CollectiveServerPlane(transport, authenticate, lambda peer, count: arrived.append((peer, count)))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(16))
        server = grpc.server(pool, options=server_options())
        plane.add_to(server)
        address = bind(server, "127.0.0.1:0", None)
        server.start()
        stack.callback(lambda: server.stop(None).wait(WAIT_S))
        stack.callback(plane.close)

        def client(k: int) -> TensorPlane:
            channel = stack.enter_context(dial(address, None))
            end = CollectiveClientPlane(transport, channel, [("steelyard-token", f"token-{k}")], chunk_bytes=CHUNK)
            stack.callback(end.close)
            return end

        yield World(plane, client, arrived)


WORLDS = {"memory": memory_world, "grpc": grpc_world, "gloo": gloo_world}


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with WORLDS[request.param]() as made:
        yield made


def bundle(seed: int, length: int) -> tuple[Manifest, memoryview]:
    data = raw(np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8))
    return Manifest((TensorSpec("x", "U8", (length,)),), digest(data)), data


def transfer(manifest: Manifest, peer: int) -> tuple[Transfer, Transfer]:
    """The same transfer as the server and as the client see it."""
    name = secrets.token_hex(16)
    return Transfer(id=name, peer=peer, manifest=manifest), Transfer(id=name, peer=SERVER, manifest=manifest)


def refusal(future: Future[None]) -> str:
    error = future.exception(WAIT_S)
    assert isinstance(error, RefusedError), error
    return error.refusal


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 7])
def test_a_bundle_goes_there_and_back_unchanged(world: World, length: int) -> None:
    manifest, data = bundle(length, length)
    client = world.client(2)
    theirs, ours = transfer(manifest, 2)
    stored = bytearray(length)
    received = world.server.receive(theirs, memoryview(stored))
    client.send(ours, data).result(WAIT_S)
    received.result(WAIT_S)
    assert stored == data

    theirs, ours = transfer(manifest, 2)
    sent = world.server.send(theirs, memoryview(stored))
    back = bytearray(length)
    client.receive(ours, memoryview(back)).result(WAIT_S)
    sent.result(WAIT_S)
    assert back == data
    assert {peer for peer, _ in world.arrived} <= {2}
    assert sum(count for _, count in world.arrived) == length


def test_scalars_and_zero_sized_tensors_arrive_in_a_mapped_file(world: World, tmp_path: Path) -> None:
    arrays = {
        "scalar": np.array(-0.0, dtype=np.float64),
        "none": np.zeros((3, 0, 2), dtype=np.float32),
        "weight": np.random.default_rng(1).standard_normal((37, 41)).astype(np.float32),
        "count": np.arange(5, dtype=np.int64),
    }
    data = memoryview(b"".join(raw(a) for a in arrays.values()))
    manifest = Manifest(specs_of(arrays), digest(data))
    theirs, ours = transfer(manifest, 0)
    file = BundleFile.create(tmp_path / "update.part", manifest)
    received = world.server.receive(theirs, file.data, file.put)
    world.client(0).send(ours, data).result(WAIT_S)
    received.result(WAIT_S)
    file.commit(tmp_path / "update.safetensors")
    file.close()
    stored = read_arrays(tmp_path / "update.safetensors")
    assert list(stored) == list(arrays)
    for name, array in arrays.items():
        assert stored[name].shape == array.shape
        assert stored[name].tobytes() == array.tobytes()


def test_a_manifest_of_no_tensors(world: World) -> None:
    manifest = Manifest((), digest(b""))
    theirs, ours = transfer(manifest, 0)
    received = world.server.receive(theirs, memoryview(bytearray()))
    world.client(0).send(ours, memoryview(b"")).result(WAIT_S)
    received.result(WAIT_S)


def test_peers_at_once_do_not_mix(world: World) -> None:
    pairs = {k: bundle(k, 20 * CHUNK + k) for k in range(CLIENTS)}
    stored = {k: bytearray(len(pairs[k][1])) for k in pairs}
    transfers = {k: transfer(pairs[k][0], k) for k in pairs}
    received = [world.server.receive(transfers[k][0], memoryview(stored[k])) for k in pairs]
    clients = [world.client(k) for k in pairs]
    for future in [clients[k].send(transfers[k][1], pairs[k][1]) for k in pairs] + received:
        future.result(WAIT_S)
    assert {k: bytes(stored[k]) for k in pairs} == {k: bytes(pairs[k][1]) for k in pairs}
    assert {k: sum(n for peer, n in world.arrived if peer == k) for k in pairs} == {k: 20_000 + k for k in pairs}


def test_one_source_serves_every_peer(world: World) -> None:
    manifest, data = bundle(5, 20 * CHUNK + 1)
    transfers = [transfer(manifest, k) for k in range(CLIENTS)]
    sent = [world.server.send(theirs, data) for theirs, _ in transfers]
    copies = [bytearray(len(data)) for _ in range(CLIENTS)]
    clients = [world.client(k) for k in range(CLIENTS)]
    for k, (_, ours) in enumerate(transfers):
        sent.append(clients[k].receive(ours, memoryview(copies[k])))
    for future in sent:
        future.result(WAIT_S)
    assert all(copy == data for copy in copies)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [(b"a" * 2001, "TOO_LARGE"), (b"a" * 1999, "TRUNCATED"), (b"", "TRUNCATED"), (b"a" * 1999 + b"b", "BAD_DIGEST")],
)
def test_bytes_that_do_not_keep_the_announcement_are_refused_on_both_ends(
    world: World, sent: bytes, expected: str
) -> None:
    announced = Manifest((TensorSpec("x", "U8", (2000,)),), digest(b"a" * 2000))
    theirs, ours = transfer(announced, 1)
    memory = bytearray(b"." * 2010)
    received = world.server.receive(theirs, memoryview(memory)[:2000])
    pushed = world.client(1).send(ours, memoryview(sent))
    assert refusal(received) == expected
    assert refusal(pushed) == expected
    error, told = received.exception(), pushed.exception()
    assert isinstance(error, RefusedError)
    assert isinstance(told, RefusedError)
    assert told.detail == error.detail
    assert memory[2000:] == b"." * 10
    assert refusal(world.client(1).send(ours, memoryview(b"a" * 2000))) == "BAD_TRANSFER"


@pytest.mark.parametrize("kind", ["memory", "grpc"])  # gloo puts bytes into memory by itself
def test_a_disk_that_takes_no_more_ends_the_transfer_at_both_ends(kind: str) -> None:
    manifest, data = bundle(1, 2000)

    def put(at: int, chunk: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, f"no space left for {len(chunk)} bytes at {at}")

    with WORLDS[kind]() as made:
        theirs, ours = transfer(manifest, 1)
        received = made.server.receive(theirs, memoryview(bytearray(2000)), put)
        sent = made.client(1).send(ours, data)
        assert isinstance(received.exception(WAIT_S), OSError)
        assert sent.exception(WAIT_S) is not None


@pytest.mark.parametrize(("sent", "expected"), [(b"a" * 2001, "TOO_LARGE"), (b"a" * 1999, "TRUNCATED")])
def test_a_client_checks_what_the_server_sends(world: World, sent: bytes, expected: str) -> None:
    announced = Manifest((TensorSpec("x", "U8", (2000,)),), digest(b"a" * 2000))
    theirs, ours = transfer(announced, 1)
    world.server.send(theirs, memoryview(sent))
    assert refusal(world.client(1).receive(ours, memoryview(bytearray(2000)))) == expected


def test_an_unknown_transfer_is_refused(world: World) -> None:
    manifest, data = bundle(1, 10)
    assert refusal(world.client(0).send(transfer(manifest, 0)[1], data)) == "BAD_TRANSFER"
    into = memoryview(bytearray(10))
    assert refusal(world.client(0).receive(transfer(manifest, 0)[1], into)) == "BAD_TRANSFER"


def test_another_peers_transfer_is_refused_and_stays_open(world: World) -> None:
    manifest, data = bundle(1, 10)
    theirs, ours = transfer(manifest, 1)
    stored = bytearray(10)
    received = world.server.receive(theirs, memoryview(stored))
    assert refusal(world.client(0).send(ours, data)) == "BAD_TRANSFER"
    assert not received.done()
    assert world.arrived == []
    world.client(1).send(ours, data).result(WAIT_S)
    received.result(WAIT_S)
    assert stored == data


def test_a_transfer_has_one_direction(world: World) -> None:
    manifest, data = bundle(1, 10)
    theirs, ours = transfer(manifest, 1)
    sent = world.server.send(theirs, data)
    assert refusal(world.client(1).send(ours, data)) == "BAD_TRANSFER"
    assert not sent.done()


def test_an_id_is_good_for_one_use(world: World) -> None:
    manifest, data = bundle(1, 10)
    theirs, ours = transfer(manifest, 0)
    client = world.client(0)
    received = world.server.receive(theirs, memoryview(bytearray(10)))
    client.send(ours, data).result(WAIT_S)
    received.result(WAIT_S)
    assert refusal(client.send(ours, data)) == "BAD_TRANSFER"
    assert refusal(world.client(0).send(ours, data)) == "BAD_TRANSFER"
    untouched = bytearray(10)
    assert refusal(world.server.receive(theirs, memoryview(untouched))) == "BAD_TRANSFER"
    assert untouched == bytes(10)


def test_a_plane_remembers_the_last_ids_and_what_is_still_open() -> None:
    """A client that asks for the model in a loop may not fill the server's memory with ids."""
    with memory_world() as world:
        manifest, data = bundle(1, 10)
        still_open, ours = transfer(manifest, 0)
        sent = world.server.send(still_open, data)
        for _ in range(3 * REMEMBERED):
            last, _ = transfer(manifest, 0)
            world.server.send(last, data)
            world.server.cancel(last.id)
        for known in (still_open, last):
            assert refusal(world.server.send(known, data)) == "BAD_TRANSFER"
        assert len(world.server.pending._used) == REMEMBERED  # type: ignore[attr-defined]
        world.client(0).receive(ours, memoryview(bytearray(10))).result(WAIT_S)
        sent.result(WAIT_S)


def test_a_cancelled_transfer_is_late(world: World) -> None:
    manifest, data = bundle(1, 10)
    theirs, ours = transfer(manifest, 0)
    received = world.server.receive(theirs, memoryview(bytearray(10)))
    world.server.cancel(theirs.id)
    world.server.cancel("never heard of")
    assert refusal(received) == "LATE"
    assert refusal(world.client(0).send(ours, data)) == "BAD_TRANSFER"
    assert world.arrived == []


def test_closing_fails_what_is_pending_and_refuses_the_rest(world: World) -> None:
    manifest, data = bundle(1, 10)
    pending = [
        world.server.receive(transfer(manifest, 0)[0], memoryview(bytearray(10))),
        world.server.send(transfer(manifest, 1)[0], data),
    ]
    world.server.close()
    assert [refusal(future) for future in pending] == ["LATE", "LATE"]
    assert refusal(world.server.send(transfer(manifest, 0)[0], data)) == "LATE"
    client = world.client(0)
    client.close()
    assert refusal(client.send(transfer(manifest, 0)[1], data)) == "LATE"
