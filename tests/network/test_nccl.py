"""Pairs by nccl on one GPU, which two processes share that nccl takes for two hosts: between them it uses sockets.

NCCL_HOSTID tells it so. What two GPUs of a host add, direct access to each other's memory, needs two:
tests/system/test_gpu.py.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from steelyard.bundle import Manifest, TensorSpec, digest, raw
from steelyard.errors import RefusedError, SteelyardError
from steelyard.transport.base import Transfer
from steelyard.transport.collective_server import CollectiveServerPlane
from steelyard.transport.settings import TransportConfig
from tests.network.pairs import authenticate, served

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(180),
]
WAIT_S = 40.0
NCCL = TransportConfig(tensors="nccl", trusted_peers=True, timeout_s=WAIT_S)
CLIENT = """
import os, sys
address, k, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.environ["NCCL_HOSTID"] = f"host of client {k}"
import numpy as np
from steelyard.bundle import Manifest, TensorSpec, digest, raw
from steelyard.errors import SteelyardError
from steelyard.transport import collective_backends, collective_client
from steelyard.transport.base import SERVER, Transfer
from steelyard.transport.endpoint import dial
from steelyard.transport.settings import TransportConfig
from steelyard.wire import pb
collective_backends.gpu_name = lambda device: f"a GPU of host {k}"
nccl = TransportConfig(tensors="nccl", trusted_peers=True, timeout_s=40.0)
plane = collective_client.CollectiveClientPlane(nccl, dial(address, None), [("client", k)], "cuda:0")
data = raw(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
manifest = Manifest((TensorSpec("x", "U8", (size,)),), digest(data))
for line in sys.stdin:
    word, name = line.split()
    transfer = Transfer(id=name, peer=SERVER, manifest=manifest)
    try:
        if word == "send":
            plane.send(transfer, data).result(60)
        elif word == "receive":
            memory = bytearray(size)
            plane.receive(transfer, memoryview(memory)).result(60)
            assert memory == data
        elif word == "ask":  # for a pair, and then not come
            plane._stub.Pair(pb.PairRequest(backend="nccl", device="another"), metadata=plane._metadata, timeout=40)
        elif word == "stall":  # begin, and send nothing
            request = pb.MoveRequest(
                epoch=plane._ready().epoch, transfer=name, to_server=True, nbytes=size, chunk_bytes=2**24
            )
            call = plane._stub.Move(request, metadata=plane._metadata, timeout=40)
            assert next(call).nbytes == size
        print("done", flush=True)
    except SteelyardError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


@dataclass
class World:
    plane: CollectiveServerPlane
    address: str
    stack: ExitStack

    def client(self, k: int, size: int) -> Client:
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, self.address, str(k), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        return Client(process, self.plane, k, size)


@dataclass
class Client:
    process: subprocess.Popen[str]
    plane: CollectiveServerPlane
    k: int
    size: int

    def say(self, word: str, name: str = "-") -> None:
        assert self.process.stdin is not None
        print(word, name, file=self.process.stdin, flush=True)

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    @property
    def data(self) -> memoryview:
        return raw(np.random.default_rng(0).integers(0, 256, self.size, dtype=np.uint8))

    def transfer(self) -> Transfer:
        manifest = Manifest((TensorSpec("x", "U8", (self.size,)),), digest(self.data))
        return Transfer(id=secrets.token_hex(16), peer=self.k, manifest=manifest)

    def begin(self, word: str) -> tuple[str, bytearray, Future[None]]:
        """Have the server expect what the client is told to do: the transfer's id, its memory, its future."""
        transfer, memory = self.transfer(), bytearray(self.size)
        received = self.plane.receive(transfer, memoryview(memory))
        self.say(word, transfer.id)
        return transfer.id, memory, received

    def sends(self) -> None:
        """A bundle arrives."""
        _, memory, received = self.begin("send")
        assert self.answer() == "done"
        received.result(WAIT_S)
        assert memory == self.data


@pytest.fixture
def world() -> Iterator[World]:
    os.environ["NCCL_HOSTID"] = "host of the server"  # for good: nccl reads it once
    plane = CollectiveServerPlane(NCCL, authenticate, device="cuda:0")
    with served(plane, WAIT_S) as (address, stack):
        yield World(plane, address, stack)


@pytest.mark.parametrize("size", [5000, 47_000_000])
def test_bundles_go_there_and_back_unchanged(world: World, size: int) -> None:
    client = world.client(3, size)
    client.sends()
    for _ in range(2):
        transfer = client.transfer()
        sent = world.plane.send(transfer, client.data)
        client.say("receive", transfer.id)
        assert client.answer() == "done"
        sent.result(WAIT_S)
        client.sends()


def test_a_stalled_transfer_is_cancelled_at_once_and_the_pair_replaced(world: World) -> None:
    stalled, other = world.client(0, 5000), world.client(1, 5000)
    name, _, received = stalled.begin("stall")
    assert stalled.answer() == "done"
    other.sends()
    assert not received.done()
    world.plane.cancel(name)
    error = received.exception(WAIT_S / 4)
    assert isinstance(error, RefusedError)
    assert error.refusal == "LATE"
    other.sends()
    name, _, received = stalled.begin("send")
    assert stalled.answer().startswith(("RemoteFault", "WaitTimeoutError")), "it learns that its pair is gone"
    world.plane.cancel(name)
    stalled.sends()


def test_a_killed_client_ends_its_transfer_and_no_other(world: World) -> None:
    killed, other = world.client(0, 5000), world.client(1, 5000)
    _, _, received = killed.begin("stall")
    assert killed.answer() == "done"
    killed.process.kill()
    assert isinstance(received.exception(WAIT_S / 4), SteelyardError)
    other.sends()
    again = world.client(0, 5000)
    again.sends()


def test_a_client_that_asks_for_a_pair_and_does_not_come_may_ask_again(world: World) -> None:
    client = world.client(0, 5000)
    client.say("ask")
    assert client.answer() == "done"
    client.sends()
