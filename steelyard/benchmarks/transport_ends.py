"""Both ends of each way of `transport.py`, as processes: `python -m steelyard.benchmarks.transport_ends OPTIONS`.

A process says when it is ready, then does a turn for every line that it is handed, and ends with its standard input.
A client sends the array that it received into; a server has one for each client.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np

from steelyard.bundle import BundleFile, Manifest, TensorSpec, digest, raw
from steelyard.process import keep_freed_memory
from steelyard.transport.base import CHUNK_BYTES, SERVER, Put, Sink, TensorPlane, Transfer, chunks
from steelyard.transport.endpoint import bind, dial, server_options
from steelyard.transport.grpc_plane import GrpcClientPlane, GrpcServerPlane
from steelyard.transport.settings import TransportConfig

TIMEOUT_S = 300.0
PLANES = ("grpc", "gloo-plane")  # kinds that announce digests
BARE = "steelyard.bench.Bare"  # a gRPC service
GLOO = TransportConfig(tensors="gloo", trusted_peers=True, timeout_s=TIMEOUT_S)


class Unhashed(Sink):
    """A sink that leaves the digest out: what the digest costs, and for nothing but this benchmark."""

    def _hash_chunk(self, chunk: bytes | memoryview) -> None:
        """Nothing."""

    def _check_digest(self) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a process is: its way, its role, and the case; `name` is that of this start of it."""

    name: str
    kind: str
    role: str
    nbytes: int
    clients: int
    repeats: int
    folder: Path
    client: int = -1
    address: str = ""
    digest: bool = True
    chunk_bytes: int = CHUNK_BYTES  # of the gRPC plane


class End:
    """One end: `turn` takes what the driver says and returns the answer."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.scratch: list[np.ndarray[Any, Any]] = []
        self.model = np.arange(options.nbytes // 4, dtype=np.float32)
        spec = TensorSpec("model", "F32", self.model.shape)
        self.manifest = Manifest((spec,), digest(raw(self.model)) if options.kind in PLANES else "0" * 64)

    def say(self, **words: Any) -> None:
        """Tell the driver something, and the processor seconds of this process so far."""
        print(json.dumps({**words, "processor": time.process_time()}), flush=True)

    def places(self, *, files: bool, stack: ExitStack) -> list[tuple[memoryview, Put | None]]:
        """Where a server receives each client's bytes: its own recording file, as a run does, or a scratch array."""
        if not files:
            self.scratch = self.scratch or [np.zeros_like(self.model) for _ in range(self.options.clients)]
            return [(raw(array), None) for array in self.scratch]
        made: list[tuple[memoryview, Put | None]] = []
        for client in range(self.options.clients):
            path = self.options.folder / f"{secrets.token_hex(4)}-{client}.part"
            file = BundleFile.create(path, self.manifest)
            stack.callback(path.unlink)
            stack.callback(file.close)
            made.append((file.data, file.put))
        return made


class GrpcServer(End):
    """The gRPC plane as a server has it; who calls is told by plain metadata."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.server = grpc.server(ThreadPoolExecutor(4 * options.clients + 8), options=server_options())
        self.plane = self.offered()
        self.say(address=bind(self.server, "127.0.0.1:0", None))
        self.server.start()

    def offered(self) -> TensorPlane:
        """The plane, added to the gRPC server."""
        plane = GrpcServerPlane(_caller, self.options.chunk_bytes, sink=Sink if self.options.digest else Unhashed)
        self.server.add_generic_rpc_handlers((plane.handler(),))
        return plane

    def turn(self, words: dict[str, Any]) -> None:
        """Announce, wait."""
        count = self.options.repeats
        with ExitStack() as stack:
            places = self.places(files=words["files"], stack=stack)
            plan, futures = [], []
            for client, (place, put) in enumerate(places):
                ids = [(secrets.token_hex(8), secrets.token_hex(8)) for _ in range(count)]
                for pull, push in ids:
                    futures.append(self.plane.send(self._transfer(pull, client), raw(self.model)))
                    futures.append(self.plane.receive(self._transfer(push, client), place, put))
                plan.append(ids)
            self.say(plan=plan)
            _await(futures)
            self.say(done=True)

    def _transfer(self, name: str, client: int) -> Transfer:
        return Transfer(id=name, peer=client, manifest=self.manifest)


class GrpcClient(End):
    """The gRPC plane as a client has it."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.plane = self.made(dial(options.address, None), (("client", str(options.client)),))

    def made(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> TensorPlane:
        """The plane over a channel."""
        sink = Sink if self.options.digest else Unhashed
        return GrpcClientPlane(channel, metadata, self.options.chunk_bytes, TIMEOUT_S, sink)

    def turn(self, words: dict[str, Any]) -> None:
        """Pull and push."""
        for pull, push in words["plan"]:
            _await([self.plane.receive(Transfer(id=pull, peer=SERVER, manifest=self.manifest), raw(self.model))])
            _await([self.plane.send(Transfer(id=push, peer=SERVER, manifest=self.manifest), raw(self.model))])
        self.say(done=True)


class BareServer(End):
    """gRPC's streams by themselves: chunks that lay ready, dropped as they arrive: what any plane over it pays."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.ready, self.arrived = _pieces(self.model, options.chunk_bytes), threading.Semaphore(0)
        self.server = grpc.server(ThreadPoolExecutor(4 * options.clients + 8), options=server_options())
        push = grpc.stream_unary_rpc_method_handler(self._push)
        pull = grpc.unary_stream_rpc_method_handler(lambda _request, _context: iter(self.ready))
        handler = grpc.method_handlers_generic_handler(BARE, {"Push": push, "Pull": pull})
        self.server.add_generic_rpc_handlers((handler,))
        self.say(address=bind(self.server, "127.0.0.1:0", None))
        self.server.start()

    def turn(self, _words: dict[str, Any]) -> None:
        """Wait until every client has pushed."""
        self.say(plan=[[]] * self.options.clients)
        for _ in range(self.options.clients * self.options.repeats):
            assert self.arrived.acquire(timeout=TIMEOUT_S)
        self.say(done=True)

    def _push(self, arriving: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
        _drop(arriving, self.options)
        self.arrived.release()
        return b""


class BareClient(End):
    """The other end."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.ready, channel = _pieces(self.model, options.chunk_bytes), dial(options.address, None)
        self.push = channel.stream_unary(f"/{BARE}/Push", request_serializer=None, response_deserializer=None)
        self.pull = channel.unary_stream(f"/{BARE}/Pull", request_serializer=None, response_deserializer=None)

    def turn(self, _words: dict[str, Any]) -> None:
        """Pull and push."""
        for _ in range(self.options.repeats):
            _drop(self.pull(b"", timeout=TIMEOUT_S), self.options)
            self.push(iter(self.ready), timeout=TIMEOUT_S)
        self.say(done=True)


class GlooPlaneServer(GrpcServer):
    """The gloo plane, whose control plane is gRPC; torch is imported here and for no other way than gloo's."""

    def offered(self) -> TensorPlane:
        """The plane, added to the gRPC server."""
        from steelyard.transport import collective_server

        _choose_sink(collective_server, digest=self.options.digest)
        plane = collective_server.CollectiveServerPlane(GLOO, _caller)
        plane.add_to(self.server)
        return plane


class GlooPlaneClient(GrpcClient):
    """The gloo plane as a client has it."""

    def made(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> TensorPlane:
        """The plane over a channel."""
        from steelyard.transport import collective_client

        _choose_sink(collective_client, digest=self.options.digest)
        return collective_client.CollectiveClientPlane(GLOO, channel, metadata)


class TcpServer(End):
    """A socket and a thread for each client; blocking calls on whole buffers."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        listener = socket.create_server(("127.0.0.1", 0), backlog=options.clients)
        self.say(address="{}:{}".format(*listener.getsockname()))
        self.sockets = [listener.accept()[0] for _ in range(options.clients)]
        for opened in self.sockets:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def turn(self, words: dict[str, Any]) -> None:
        """Send and receive, all clients at once."""

        def serve(opened: socket.socket, place: memoryview) -> None:
            for _ in range(self.options.repeats):
                opened.sendall(raw(self.model))
                _receive(opened, place)

        with ExitStack() as stack:
            places = self.places(files=words["files"], stack=stack)
            self.say(plan=[[]] * self.options.clients)
            _side_by_side([partial(serve, one, place) for one, (place, _) in zip(self.sockets, places, strict=True)])
            self.say(done=True)


class TcpClient(End):
    """The other end."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        host, port = options.address.split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def turn(self, _words: dict[str, Any]) -> None:
        """Receive and send."""
        for _ in range(self.options.repeats):
            _receive(self.socket, raw(self.model))
            self.socket.sendall(raw(self.model))
        self.say(done=True)


class GlooEnd(End):
    """torch.distributed's gloo by itself, a pair of ranks for each client, the server a thread for each."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        import torch
        from torch import distributed

        torch.set_num_threads(1)
        self.tensor, self.torch = torch.from_numpy(self.model), torch

        def pair(client: int, rank: int) -> Any:
            store = distributed.FileStore(str(options.folder / f"gloo-{options.name}-{client}"), 2)  # type: ignore[attr-defined]
            return distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=TIMEOUT_S))

        server = options.role == "server"
        mine = range(options.clients) if server else [options.client]
        with ThreadPoolExecutor(len(mine)) as pool:
            self.pairs = list(pool.map(lambda client: pair(client, 0 if server else 1), mine))

    def turn(self, words: dict[str, Any]) -> None:
        """The server sends first."""
        if self.options.role == "client":
            for _ in range(self.options.repeats):
                self.pairs[0].recv([self.tensor], 0, 0).wait()
                self.pairs[0].send([self.tensor], 0, 0).wait()
            self.say(done=True)
            return

        def serve(pair: Any, place: memoryview) -> None:
            into = self.torch.from_numpy(np.frombuffer(place, dtype=np.float32))
            for _ in range(self.options.repeats):
                pair.send([self.tensor], 1, 0).wait()
                pair.recv([into], 1, 0).wait()

        with ExitStack() as stack:
            places = self.places(files=words["files"], stack=stack)
            self.say(plan=[[]] * self.options.clients)
            _side_by_side([partial(serve, one, place) for one, (place, _) in zip(self.pairs, places, strict=True)])
            self.say(done=True)


ENDS: dict[tuple[str, str], Callable[[Options], Any]] = {
    ("tcp", "server"): TcpServer,
    ("tcp", "client"): TcpClient,
    ("grpc", "server"): GrpcServer,
    ("grpc", "client"): GrpcClient,
    ("grpc-bare", "server"): BareServer,
    ("grpc-bare", "client"): BareClient,
    ("gloo-plane", "server"): GlooPlaneServer,
    ("gloo-plane", "client"): GlooPlaneClient,
    ("gloo", "server"): GlooEnd,
    ("gloo", "client"): GlooEnd,
}


def _caller(context: grpc.ServicerContext) -> int:
    return next(int(value) for key, value in context.invocation_metadata() if key == "client")


def _choose_sink(module: ModuleType, *, digest: bool) -> None:
    """Have a plane of this process take the sink without a digest; the collective ones have no option for it."""
    if not digest:
        vars(module)["Sink"] = Unhashed


def _pieces(model: np.ndarray[Any, Any], chunk_bytes: int) -> list[bytes]:
    return [bytes(chunk) for chunk in chunks(raw(model), chunk_bytes)]


def _drop(arriving: Iterable[bytes], options: Options) -> None:
    """Count what arrives, and hash it if the way does."""
    count, digest_of = 0, hashlib.sha256()
    for chunk in arriving:
        count += len(chunk)
        if options.digest:
            digest_of.update(chunk)
    assert count == options.nbytes // 4 * 4


def _receive(opened: socket.socket, place: memoryview) -> None:
    at = 0
    while at < len(place):
        at += opened.recv_into(place[at:])


def _side_by_side(works: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        _await([pool.submit(work) for work in works])


def _await(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result(TIMEOUT_S)


def main() -> None:
    """Be one end until standard input ends."""
    table = json.loads(sys.argv[1])
    options = Options(**{**table, "folder": Path(table["folder"])})
    keep_freed_memory()
    end = ENDS[options.kind, options.role](options)
    end.say(ready=True)
    for line in sys.stdin:
        end.turn(json.loads(line))


if __name__ == "__main__":
    main()
