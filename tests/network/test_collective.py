"""What only pairs of torch.distributed can do wrong: never meet, stall, break, listen too widely, send too much."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import federation_pb2_grpc
from steelyard.bundle import Manifest, TensorSpec, digest, raw
from steelyard.errors import RefusedError, RemoteFault, SteelyardError, UserError, WaitTimeoutError
from steelyard.transport.base import SERVER, Transfer
from steelyard.transport.collective import PairEnd
from steelyard.transport.collective_backends import CLIENT_RANK, Gloo, gloo_device, interface_name
from steelyard.transport.collective_client import CollectiveClientPlane
from steelyard.transport.collective_server import CollectiveServerPlane, same_gpu
from steelyard.transport.endpoint import dial
from steelyard.transport.faults import fault_of
from steelyard.transport.rendezvous import MAX_KEYS, RemoteBox
from steelyard.transport.settings import TransportConfig
from steelyard.wire import pb
from tests.network.pairs import authenticate, served

WAIT_S = 30.0
GLOO = TransportConfig(tensors="gloo", trusted_peers=True, timeout_s=WAIT_S)
DATA = raw(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8))
MANIFEST = Manifest((TensorSpec("x", "U8", (len(DATA),)),), digest(DATA))


@dataclass
class World:
    """A server's plane, and clients that follow the protocol or are played by hand."""

    plane: CollectiveServerPlane
    address: str
    stack: ExitStack

    def channel(self) -> grpc.Channel:
        channel = dial(self.address, None)
        self.stack.callback(channel.close)
        return channel

    def client(self, k: int, chunk_bytes: int = 1000) -> CollectiveClientPlane:
        plane = CollectiveClientPlane(GLOO, self.channel(), [("client", str(k))], chunk_bytes=chunk_bytes)
        self.stack.callback(plane.close)
        return plane

    def hand(self, k: int) -> Hand:
        return Hand(federation_pb2_grpc.PairsStub(self.channel()), (("client", str(k)),))

    def expect(self, k: int, manifest: Manifest = MANIFEST) -> tuple[str, bytearray, Future[None]]:
        """Have the server expect a bundle of client k: the transfer's id, its memory, its future."""
        transfer = Transfer(id=secrets.token_hex(16), peer=k, manifest=manifest)
        memory = bytearray(b"x" * manifest.nbytes)
        return transfer.id, memory, self.plane.receive(transfer, memoryview(memory))

    def push(self, client: CollectiveClientPlane, k: int) -> None:
        """A whole update of client k arrives."""
        name, memory, received = self.expect(k)
        client.send(Transfer(id=name, peer=SERVER, manifest=MANIFEST), DATA).result(WAIT_S)
        received.result(WAIT_S)
        assert memory == DATA


@dataclass
class Hand:
    """One client's calls, made one by one."""

    stub: Any
    metadata: tuple[tuple[str, str], ...]

    def call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self.stub, method)(request, metadata=self.metadata, timeout=WAIT_S)
        except grpc.RpcError as error:
            raise fault_of(error, method) from error

    def pair(self) -> PairEnd:
        epoch = self.call("Pair", pb.PairRequest(backend="gloo")).epoch
        end = PairEnd("the server", epoch, RemoteBox(self.stub, self.metadata, epoch, WAIT_S), WAIT_S)
        end.build(lambda store, seconds: Gloo(store, CLIENT_RANK, GLOO.interface, seconds))
        return end

    def begin(self, end: PairEnd, transfer: str) -> Any:
        """Begin to send, and send nothing: the server waits for bytes from here on."""
        request = pb.MoveRequest(
            epoch=end.epoch, transfer=transfer, to_server=True, nbytes=MANIFEST.nbytes, chunk_bytes=1000
        )
        call = self.stub.Move(request, metadata=self.metadata, timeout=WAIT_S)
        assert next(call).nbytes == MANIFEST.nbytes
        return call


@contextmanager
def serving(transport: TransportConfig = GLOO, plane: CollectiveServerPlane | None = None) -> Iterator[World]:
    plane = plane or CollectiveServerPlane(transport, authenticate)
    with served(plane, WAIT_S) as (address, stack):
        yield World(plane, address, stack)


@pytest.fixture
def world() -> Iterator[World]:
    with serving() as made:
        yield made


def test_a_stalled_pair_is_cancelled_at_once_and_replaced_without_disturbing_others(world: World) -> None:
    stalled, other = world.hand(0), world.client(1)
    end = stalled.pair()
    name, memory, received = world.expect(0)
    call = stalled.begin(end, name)
    world.push(other, 1)
    assert not received.done()
    world.plane.cancel(name)
    error = received.exception(WAIT_S / 3)
    assert isinstance(error, RefusedError)
    assert error.refusal == "LATE"
    with pytest.raises(RefusedError, match="LATE"):
        fault_of_end(call)
    with pytest.raises(RemoteFault, match="the server, epoch 1: the pair broke while sending 5000 bytes"):
        end.send(DATA, 1000, WAIT_S)
    assert set(memory) <= {0, ord("x")}, "nothing arrived, and nothing arrives any more"
    world.push(world.client(0), 0)
    assert stalled.call("Pair", pb.PairRequest(backend="gloo")).epoch == 3
    world.push(other, 1)


def fault_of_end(call: Any) -> None:
    try:
        next(call, None)
    except grpc.RpcError as error:
        raise fault_of(error, "the call") from error


def test_a_timeout_names_client_operation_and_seconds() -> None:
    with serving(replace(GLOO, timeout_s=1.0)) as world:
        stalled = world.hand(3)
        name, _, received = world.expect(3)
        end = stalled.pair()  # held, for its sockets close with it
        call = stalled.begin(end, name)
        with pytest.raises(WaitTimeoutError, match="client 3, epoch 1: receiving 5000 bytes not complete within 1 s"):
            received.result(WAIT_S)
        with pytest.raises(WaitTimeoutError):
            fault_of_end(call)


def test_a_client_that_goes_away_frees_the_servers_thread_before_any_timeout(world: World) -> None:
    leaving = world.hand(0)
    name, _, received = world.expect(0)
    leaving.begin(leaving.pair(), name).cancel()
    assert isinstance(received.exception(WAIT_S / 3), RemoteFault)


class Frozen(CollectiveServerPlane):
    """A server that stops dead in the middle of a transfer."""

    def __init__(self) -> None:
        super().__init__(GLOO, authenticate)
        self.begun, self.thaw = threading.Event(), threading.Event()

    def _move(self, *_arguments: Any) -> None:
        self.begun.set()
        self.thaw.wait(WAIT_S)


def test_a_client_ends_a_transfer_with_a_frozen_server_at_once() -> None:
    frozen = Frozen()
    with serving(plane=frozen) as world:
        client = world.client(0)
        sent = client.send(Transfer(id=world.expect(0)[0], peer=SERVER, manifest=MANIFEST), DATA)
        assert frozen.begun.wait(WAIT_S)
        client.close()  # an error of a bounded wait, if the transfer does not end
        frozen.thaw.set()
    error = sent.exception(0)
    assert isinstance(error, RefusedError)
    assert error.refusal == "LATE"


def test_a_client_that_never_meets_its_pair_is_told_so() -> None:
    with serving(replace(GLOO, timeout_s=1.0)) as world:
        absent = world.hand(2)
        epoch = absent.call("Pair", pb.PairRequest(backend="gloo")).epoch
        name, memory, received = world.expect(2)
        request = pb.MoveRequest(epoch=epoch, transfer=name, to_server=True, nbytes=5000, chunk_bytes=1000)
        call = absent.stub.Move(request, metadata=absent.metadata, timeout=WAIT_S)
        assert next(call).nbytes == 5000
        with pytest.raises(SteelyardError, match="client 2, epoch 1: the two ends did not meet within 1 s"):
            received.result(WAIT_S)
        with pytest.raises(SteelyardError):
            fault_of_end(call)
        assert set(memory) == {ord("x")}


@pytest.mark.parametrize("to_server", [True, False])
def test_a_bundle_in_pieces_without_number_is_refused(world: World, *, to_server: bool) -> None:
    """Of a byte each, the tensors that stand for the pieces of a megabyte take the server 800."""
    hand = world.hand(0)
    pair = hand.pair()
    data = memoryview(bytearray(2**16))
    manifest = Manifest((TensorSpec("x", "U8", (len(data),)),), digest(data))
    expected = Transfer(id=secrets.token_hex(16), peer=0, manifest=manifest)
    moved = world.plane.receive(expected, data) if to_server else world.plane.send(expected, data)
    request = pb.MoveRequest(
        epoch=pair.epoch, transfer=expected.id, to_server=to_server, nbytes=len(data), chunk_bytes=1
    )
    with pytest.raises(RefusedError, match="65536 bytes in at most 16384 pieces expected, got 1 in each"):
        fault_of_end(hand.stub.Move(request, metadata=hand.metadata, timeout=WAIT_S))
    assert isinstance(moved.exception(WAIT_S), RefusedError)
    assert not pair.is_retired


def test_a_client_reaches_its_own_pairs_keys_only(world: World) -> None:
    owner, other = world.hand(0), world.hand(1)
    for hand in (owner, other):
        assert hand.call("Pair", pb.PairRequest(backend="gloo")).epoch == 1
    owner.call("Put", pb.PutRequest(epoch=1, key="mine", value=b"secret"))
    assert owner.call("Get", pb.GetRequest(epoch=1, key="mine")).value == b"secret"
    assert not other.call("Get", pb.GetRequest(epoch=1, key="mine")).found
    other.call("Put", pb.PutRequest(epoch=1, key="mine", value=b"other"))
    assert owner.call("Get", pb.GetRequest(epoch=1, key="mine")).value == b"secret"

    assert owner.call("Pair", pb.PairRequest(backend="gloo")).epoch == 2
    for stale in (1, 3):
        with pytest.raises(RefusedError, match="STALE_PAIR"):
            owner.call("Get", pb.GetRequest(epoch=stale, key="mine"))
    assert not owner.call("Get", pb.GetRequest(epoch=2, key="mine")).found, "a new pair begins with nothing"


@pytest.mark.parametrize(("key", "value"), [("k" * 257, b""), ("k", b"v" * (16 * 2**10 + 1))])
def test_keys_and_values_are_bounded(world: World, key: str, value: bytes) -> None:
    hand = world.hand(0)
    hand.call("Pair", pb.PairRequest(backend="gloo"))
    with pytest.raises(RefusedError, match="TOO_LARGE"):
        hand.call("Put", pb.PutRequest(epoch=1, key=key, value=value))


def test_so_is_their_number_and_the_waits(world: World) -> None:
    hand = world.hand(0)
    hand.call("Pair", pb.PairRequest(backend="gloo"))
    with pytest.raises(RefusedError, match="at most 64 keys"):
        fill(hand)
    request = pb.GetRequest(epoch=1, key="never", wait_s=WAIT_S)
    waiting = [hand.stub.Get.future(request, metadata=hand.metadata, timeout=WAIT_S) for _ in range(8)]
    hand.call("Pair", pb.PairRequest(backend="gloo"))  # ends the one that waits
    faults = [fault_of(call.exception(WAIT_S), "Get") for call in waiting]
    names = sorted(fault.refusal for fault in faults if isinstance(fault, RefusedError))
    assert len(names) == 8
    assert set(names) <= {"BAD_TRANSFER", "STALE_PAIR"}


def test_a_wait_of_no_number_is_none(world: World) -> None:
    """A wait until now + NaN never ends, and holds a thread and a processor core, whatever its caller's deadline."""
    hand = world.hand(0)
    hand.call("Pair", pb.PairRequest(backend="gloo"))
    request = pb.GetRequest(epoch=1, key="never", wait_s=float("nan"))
    assert not hand.stub.Get(request, metadata=hand.metadata, timeout=5.0).found


class Late(CollectiveServerPlane):
    """A plane whose builds begin when they are let: as slow as a peer can make them, and more."""

    let = threading.Event()

    def _build(self, end: Any) -> None:
        assert self.let.wait(WAIT_S)
        super()._build(end)


def test_a_client_that_asks_for_many_pairs_at_once_holds_one_thread_and_gets_the_last() -> None:
    with serving(plane=Late(GLOO, authenticate)) as world, ThreadPoolExecutor(6) as pool:
        hand, request = world.hand(0), pb.PairRequest(backend="gloo")
        assert hand.call("Pair", request).epoch == 1
        calls = [pool.submit(hand.call, "Pair", request) for _ in range(6)]
        try:
            ended = list(islice(as_completed(calls, WAIT_S / 2), 5))
            assert world.hand(1).call("Pair", request).epoch == 1, "nobody else waits for it"
        finally:
            Late.let.set()
        for call in ended:
            with pytest.raises(RefusedError, match="STALE_PAIR: client 0 has asked for another pair since"):
                call.result(0)
        (last,) = set(calls) - set(ended)
        assert last.result(WAIT_S).epoch == 2, "of all of them one was built"


def fill(hand: Hand) -> None:
    for number in range(MAX_KEYS + 1):
        hand.call("Put", pb.PutRequest(epoch=1, key=str(number), value=b""))


def test_a_peer_of_another_plane_is_refused(world: World) -> None:
    with pytest.raises(RefusedError, match="tensors by gloo expected, client 4 has 'nccl'"):
        world.hand(4).call("Pair", pb.PairRequest(backend="nccl"))


def test_nothing_listens_beyond_the_interface(world: World) -> None:
    world.push(world.client(0), 0)
    listening = own_listeners()
    assert len(listening) >= 3, "the control plane and both ends of the pair"
    assert {address[-8:] for address in listening} == {"0100007F"}, "127.0.0.1, as IPv4 or mapped into IPv6"


def own_listeners() -> list[str]:
    """The addresses on which this process listens, as the kernel tells it."""
    inodes = {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                found.append(words[1].partition(":")[0])
    return found


def test_nccl_is_told_the_name_of_the_interface_that_has_an_address() -> None:
    assert [interface_name(given) for given in ("lo", "127.0.0.1")] == ["lo", "lo"]
    with pytest.raises(UserError, match=r"interface: one of .*lo.* or its address, expected .*, got '192.0.2.1'"):
        interface_name("192.0.2.1")


def test_an_interface_that_is_not_there_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"interface: one of .*lo.* or an address of this host expected, got 'nope0'"):
        gloo_device("nope0")
    gloo_device("lo")


def in_a_process(lie: str) -> subprocess.CompletedProcess[str]:
    """A server and a client in a process of their own; the client announces 5000 bytes and sends others."""
    code = f"""
from tests.network import test_collective as tests
with tests.serving() as world:
    liar = world.hand(0)
    end = liar.pair()
    name, memory, received = world.expect(0)
    call = liar.begin(end, name)
    {lie}
    error = received.exception(tests.WAIT_S)
    print(type(error).__name__, error.refusal, set(memory[3500:4000]), flush=True)
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_too_few_bytes_leave_zeros_and_fail_the_digest() -> None:
    """gloo reports success and leaves what was in the buffer: it was zeroed before, and the digest is checked after."""
    done = in_a_process(
        "[end.send(tests.DATA[at : at + size], size, 9) for at, size in "
        "((0, 1000), (1000, 1000), (2000, 1000), (3000, 500), (4000, 1000))]"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "BadBundleError BAD_DIGEST {0}"), done.stderr


def test_too_many_bytes_abort_the_receiver_which_is_why_peers_must_be_trusted() -> None:
    """If this fails, gloo has become kinder: `trusted_peers` may not be needed any more."""
    done = in_a_process("end.send(tests.DATA, 2000, 9)")
    assert done.returncode == -signal.SIGABRT
    assert "doesn't match expected size" in done.stderr


def test_one_gpu_for_both_ends_is_told_in_one_line() -> None:
    assert same_gpu(3, "host/GPU-1") == (
        "nccl pairs need two GPUs, the server's and client 3's are both host/GPU-1; set [placement], or use gloo"
    )
