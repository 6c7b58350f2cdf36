"""Shared by all levels: a small federation whose server is a real process, and clients that a test scripts by hand."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deploy.environment import THREADS
from deploy.forks import Fork, start
from deploy.prepare import client_folder, prepare, server_folder
from protos import federation_pb2_grpc
from steelyard.bundle import Manifest, digest, raw
from steelyard.config import Experiment
from steelyard.parsing import parse
from steelyard.recording import read_events
from steelyard.transport.base import SERVER, Transfer
from steelyard.transport.endpoint import dial
from steelyard.transport.faults import refusal_of
from steelyard.transport.grpc_plane import GrpcClientPlane
from steelyard.wire import PROTOCOL_VERSION, manifest_from_wire, manifest_to_wire, pb, refusal_name

os.environ.update(THREADS)  # before torch: on busy cores, its threads would spend the tests waiting for each other
PATIENCE_S = 30.0  # bounds every wait of a test; never what a test measures

SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 2,
    "clients": {"count": 3},
    "data": {"partition": "iid", "samples_per_client": 40, "validation": 60, "test": 60},
    "evaluators": [
        {"name": "fedsv_accuracy", "kind": "fedsv", "utility": "accuracy"},
        {"name": "loo_loss", "kind": "loo", "utility": "loss"},
    ],
    "protocol": {"round_deadline_s": 30.0, "join_timeout_s": 30.0, "lease_s": 5.0, "quorum": 2},
}


@dataclass
class Answer:
    """What the server said: a refusal's name ("" when accepted) and its detail."""

    refusal: str
    detail: str


class Scripted:
    """One client played by hand, over real gRPC, with every message in the test's hands."""

    def __init__(self, address: str, token: str) -> None:
        self.metadata = (("steelyard-token", token),)
        self.channel = dial(address, None)
        self.stub = federation_pb2_grpc.FederationStub(self.channel)
        self.plane = GrpcClientPlane(self.channel, self.metadata, 2**16, PATIENCE_S)
        self.session = ""

    def call(self, method: str, request: Any) -> Any:
        return getattr(self.stub, method)(request, metadata=self.metadata, timeout=PATIENCE_S)

    def join(self, protocol: int = PROTOCOL_VERSION) -> Answer:
        try:
            reply = self.call("Join", pb.JoinRequest(protocol=protocol))
        except grpc.RpcError as error:
            if (refusal := refusal_of(error)) is None:
                raise
            return Answer(refusal.refusal, refusal.detail)
        self.session = reply.session or self.session
        return _answer(reply)

    def states(self) -> Iterator[Any]:
        request = pb.WatchRequest(session=self.session)
        return iter(self.stub.Watch(request, metadata=self.metadata, timeout=PATIENCE_S))

    def wait_for(self, wanted: Callable[[Any], bool]) -> Any:
        return next(state for state in self.states() if wanted(state))

    def fetch(self, number: int) -> np.ndarray[Any, Any]:
        reply = self.call("Fetch", pb.FetchRequest(session=self.session, round=number))
        assert _answer(reply).refusal == "", reply.detail
        manifest = manifest_from_wire(reply.manifest)
        vector = np.empty(manifest.nbytes // 4, np.float32)
        self.plane.receive(Transfer(id=reply.transfer, peer=SERVER, manifest=manifest), raw(vector)).result(PATIENCE_S)
        self.specs = manifest.tensors
        return vector

    def offer(self, number: int, manifest: Manifest) -> Any:
        request = pb.SubmitRequest(session=self.session, round=number, manifest=manifest_to_wire(manifest))
        return self.call("Submit", request)

    def receipt(self, transfer: str) -> Answer:
        return _answer(self.call("GetReceipt", pb.ReceiptRequest(session=self.session, transfer=transfer)))

    def submit(self, number: int, update: np.ndarray[Any, Any], sent: np.ndarray[Any, Any] | None = None) -> Answer:
        """Announce `update`, send `sent` (the same by default), and ask for the receipt."""
        reply = self.send(number, update, sent)
        return self.receipt(reply.transfer) if reply.transfer else _answer(reply.receipt)

    def send(self, number: int, update: np.ndarray[Any, Any], sent: np.ndarray[Any, Any] | None = None) -> Any:
        """The same without the last step; returns what the announcement was answered."""
        manifest = Manifest(self.specs, digest(raw(update)))
        reply = self.offer(number, manifest)
        if reply.transfer:
            transfer = Transfer(id=reply.transfer, peer=SERVER, manifest=manifest)
            future = self.plane.send(transfer, raw(update if sent is None else sent))
            future.exception(PATIENCE_S)  # a refusal on the tensor plane is told by the receipt too
        return reply

    def close(self) -> None:
        self.plane.close()
        self.channel.close()


def _answer(reply: Any) -> Answer:
    return Answer(refusal_name(reply.refusal) if reply.refusal else "", reply.detail)


@dataclass
class Federation:
    """A prepared experiment and its server, a real process; scripted clients join it."""

    roles: Path
    run: Path
    server: subprocess.Popen[bytes] | Fork | None = None
    address: str = ""
    opened: list[Scripted] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """What the server has said, of all its starts."""
        return self.roles / "log.txt"

    def start(self) -> None:
        self.log.touch()  # so that there is one to read before the server says anything
        said = self.log.stat().st_size
        server = self.server = start("server", server_folder(self.roles), ["--run", str(self.run)], self.log)

        def line() -> str:
            ended = server.poll() is not None
            text = self.log.read_text(encoding="utf-8")[said:]
            return text if ended or text.endswith("\n") else ""

        words = await_until(line, "the server's address")
        assert words.startswith("listening on "), words
        self.address = words.removeprefix("listening on ").strip()

    def client(self, k: int) -> Scripted:
        token = (client_folder(self.roles, k) / "token").read_text(encoding="ascii")
        return self.stranger(token)

    def stranger(self, token: str) -> Scripted:
        self.opened.append(Scripted(self.address, token))
        return self.opened[-1]

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        return [e for e in read_events(self.run) if e["event"] == name and fields.items() <= e.items()]

    def await_event(self, name: str, **fields: Any) -> dict[str, Any]:
        return await_until(lambda: self.events(name, **fields), f"event {name} {fields}")[0]

    def kill(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def wait(self) -> int:
        assert self.server is not None
        return self.server.wait(PATIENCE_S)

    def stop(self) -> None:
        for client in self.opened:
            client.close()
        if self.server is not None and self.server.poll() is None:
            self.kill()


def await_until(check: Callable[[], Any], what: str) -> Any:
    """What `check` returns as soon as it is true; the wait is bounded and says what it waited for."""
    end = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not (found := check()):
        assert time.monotonic() < end, f"{what} did not come within {PATIENCE_S:g} s"
        pause.wait(0.05)
    return found


def write_cifar(folder: Path, per_label: int) -> Path:
    """A CIFAR-10 that a network can learn, in the official binary format: labels 0 to 9 in turn, each a colour."""
    generator = np.random.default_rng(0)
    labels = np.arange(10 * per_label, dtype=np.uint8) % 10
    colours = generator.integers(40, 216, (10, 3))[labels]
    pixels = colours[:, :, None] + generator.integers(-40, 40, (len(labels), 3, 1024))
    records = np.concatenate([labels[:, None], pixels.reshape(len(labels), -1).astype(np.uint8)], axis=1)
    folder.mkdir(parents=True)
    names = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
    for name, part in zip(names, np.array_split(records, len(names)), strict=True):
        (folder / name).write_bytes(part.tobytes())
    return folder


@pytest.fixture
def make_cifar(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a small CIFAR-10 of so many images per label; returns its folder."""
    return lambda per_label: write_cifar(tmp_path / "cifar", per_label)


def small_experiment(**changes: Any) -> Experiment:
    table = {**SMALL, **changes}
    return parse(Experiment, table, "test")


@pytest.fixture
def make_federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """Makes federations from changes to the small experiment; ends their processes."""
    made: list[Federation] = []

    def make(**changes: Any) -> Federation:
        roles = tmp_path / f"roles-{len(made)}"
        prepare(small_experiment(**changes), roles)
        federation = Federation(roles, tmp_path / f"run-{len(made)}")
        made.append(federation)
        federation.start()
        return federation

    yield make
    for federation in made:
        federation.stop()
