"""The server's end of the collective tensor plane: one pair per (client, epoch), all of them independent.

A client asks for its pair and runs its transfers by calls of the service `Pairs`, so that who it is, what was announced
and whether it is still there are the control plane's word, and torch.distributed only carries bytes. Knows no rounds.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import grpc

from protos import federation_pb2_grpc
from steelyard.errors import RefusedError, RemoteFault, SteelyardError, WaitTimeoutError
from steelyard.transport.base import Sink, size_fault
from steelyard.transport.collective import PairEnd
from steelyard.transport.collective_backends import SERVER_RANK, backend_maker, make_ready
from steelyard.transport.faults import refuse
from steelyard.transport.pending import Entry, ServerEnd
from steelyard.transport.rendezvous import Mailbox
from steelyard.transport.settings import TransportConfig, check_transport
from steelyard.wire import pb

MAX_CHUNK_BYTES = 2**30
MAX_PIECES = 2**14  # of a bundle: each costs time and memory, whatever its size; of 16 MiB they make 256 GiB


@dataclass(eq=False, kw_only=True)
class _Held:
    """This end of a client's current pair, and whether a thread still builds it."""

    pair: PairEnd
    box: Mailbox
    builds: bool = True


class CollectiveServerPlane(ServerEnd, federation_pb2_grpc.PairsServicer):
    """The server's end. Add it to the gRPC server that also serves the control plane.

    A running transfer holds one of that server's threads, for `timeout_s` at most. Cancelled, it takes its pair along.

    Args:
        transport: which backend, where it listens, and how long anything may take.
        authenticate: the calling client's index in the roster, or `RefusedError`.
        on_bytes: hears of every piece that arrived: the client's index and the number of bytes.
        device: with nccl, the server's GPU.

    Raises:
        UserError: the configuration does not allow it, or this host lacks the interface or GPU.
    """

    def __init__(
        self,
        transport: TransportConfig,
        authenticate: Callable[[grpc.ServicerContext], int],
        on_bytes: Callable[[int, int], None] = lambda _peer, _count: None,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        check_transport(transport, "[transport]")
        self._transport = transport
        self._device = device
        self._gpu = make_ready(transport, device)  # refuses here, not in a pair's thread
        self._authenticate = authenticate
        self._on_bytes = on_bytes
        self._changed = threading.Condition()
        self._ends: dict[int, _Held] = {}
        self._asked: dict[int, int] = {}  # how often each client has asked for a pair
        self._closed = False

    def add_to(self, server: grpc.Server) -> None:
        """Have a gRPC server offer this plane."""
        federation_pb2_grpc.add_PairsServicer_to_server(self, server)

    # -- the seam ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Fail every pending transfer and retire every pair."""
        with self._changed:
            self._closed = True
            ends = list(self._ends.values())
            self._changed.notify_all()
        try:
            self.pending.close()
        finally:
            for end in ends:
                end.pair.retire()
            with self._changed:
                self._changed.wait_for(lambda: not any(end.builds for end in ends), self._transport.timeout_s)

    # -- the service ---------------------------------------------------------------------------------------------

    def Pair(self, request: pb.PairRequest, context: grpc.ServicerContext) -> pb.PairReply:  # noqa: N802 - gRPC's name
        """Retire the caller's pair and begin another one."""
        with _refusing(context):
            client = self._authenticate(context)
            self._check_fit(client, request)
            return pb.PairReply(epoch=self._renew(client))

    def Put(self, request: pb.PutRequest, context: grpc.ServicerContext) -> pb.PutReply:  # noqa: N802
        """Write into the caller's own box."""
        with _refusing(context):
            self._end(self._authenticate(context), request.epoch).box.put(request.key, request.value)
            return pb.PutReply()

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> pb.GetReply:  # noqa: N802
        """Read from the caller's own box."""
        with _refusing(context):
            end = self._end(self._authenticate(context), request.epoch)
            wait_s = min(request.wait_s, self._transport.timeout_s)
            value = end.box.serve(request.key, wait_s if wait_s > 0 else 0.0)  # NaN is not: its wait would never end
            return pb.GetReply(found=value is not None, value=value or b"")

    def Move(self, request: pb.MoveRequest, context: grpc.ServicerContext) -> Iterator[pb.MoveReply]:  # noqa: N802
        """Run one transfer over the caller's pair."""
        with _refusing(context):
            client = self._authenticate(context)
            end = self._end(client, request.epoch)
            if not 0 < request.chunk_bytes <= MAX_CHUNK_BYTES:
                raise RefusedError("BAD_TRANSFER", f"pieces of 1 to {MAX_CHUNK_BYTES} bytes expected")
            with _alone(end.pair):
                entry = self.pending.claim(request.transfer, client, incoming=request.to_server, stop=end.pair.retire)
                yield from self._run(entry, end.pair, request, context)

    # -- below ---------------------------------------------------------------------------------------------------

    def _run(
        self, entry: Entry, pair: PairEnd, request: pb.MoveRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.MoveReply]:
        """Say that it begins, move the bytes, settle the entry; the caller's going away breaks the pair."""
        error: BaseException | None = RefusedError("TRUNCATED", "the call ended before the transfer")
        over = threading.Event()

        def ended() -> None:
            if not over.is_set():
                pair.retire()

        try:
            announced = entry.transfer.manifest.nbytes
            if entry.incoming and request.nbytes != announced:
                raise size_fault(announced, request.nbytes)
            if announced > MAX_PIECES * request.chunk_bytes:
                detail = f"{announced} bytes in at most {MAX_PIECES} pieces expected, got {request.chunk_bytes} in each"
                raise RefusedError("BAD_TRANSFER", detail)
            if not context.add_callback(ended):
                return
            yield pb.MoveReply(nbytes=entry.view.nbytes)
            self._move(entry, pair, request.chunk_bytes, min(context.time_remaining(), self._transport.timeout_s))
            error = None
        except SteelyardError as fault:
            error = fault
        except GeneratorExit:
            raise
        except BaseException as fault:
            error = fault
            raise
        finally:
            over.set()
            error = self.pending.settle(entry, error)
        if error is not None:
            raise error

    def _move(self, entry: Entry, pair: PairEnd, chunk_bytes: int, seconds: float) -> None:
        if not entry.incoming:
            pair.send(entry.view, chunk_bytes, seconds)
            return
        with Sink(entry.view, entry.transfer.manifest) as sink:
            pair.receive(sink, chunk_bytes, seconds, functools.partial(self._on_bytes, entry.transfer.peer))

    def _check_fit(self, client: int, request: pb.PairRequest) -> None:
        ours = self._transport.tensors
        if request.backend != ours:
            raise RefusedError("WRONG_PROTOCOL", f"tensors by {ours} expected, client {client} has {request.backend!r}")
        if ours == "nccl" and request.device == self._gpu:
            raise RefusedError("WRONG_PROTOCOL", same_gpu(client, self._gpu))

    def _renew(self, client: int) -> int:
        """Begin a client's next pair once the build of the last one has ended; a newer call ends this wait.

        The wait holds one of the server's threads, so a client has one, and one build, however often it asks.
        """
        with self._changed:
            turn = self._asked[client] = self._asked.get(client, 0) + 1
            held = self._ends.get(client)
            self._changed.notify_all()
        if held is not None:
            held.pair.retire()

        def is_due() -> bool:
            return held is None or not held.builds or self._closed or self._asked[client] != turn

        with self._changed:
            in_time = self._changed.wait_for(is_due, self._transport.timeout_s)
            if self._closed:
                raise RefusedError("LATE", "the tensor plane is closed")
            if self._asked[client] != turn:
                raise RefusedError("STALE_PAIR", f"client {client} has asked for another pair since")
            if held is not None and not in_time:
                raise WaitTimeoutError(f"{held.pair.name}: the pair did not end within {self._transport.timeout_s:g} s")
            epoch = 1 if held is None else held.pair.epoch + 1
            box = Mailbox(f"client {client}, epoch {epoch}")
            pair = PairEnd(f"client {client}", epoch, box, self._transport.timeout_s)
            self._ends[client] = end = _Held(pair=pair, box=box)
        try:
            threading.Thread(target=self._build, args=(end,), name=f"pair of {pair.name}", daemon=True).start()
        except RuntimeError:  # no thread to be had just now: the next call is a new chance
            self._built(end)
            raise
        return epoch

    def _build(self, end: _Held) -> None:
        try:
            end.pair.build(backend_maker(self._transport, SERVER_RANK, self._device))
        except SteelyardError:  # the pair keeps it for whoever comes to use it
            return
        finally:
            self._built(end)

    def _built(self, end: _Held) -> None:
        with self._changed:
            end.builds = False
            self._changed.notify_all()

    def _end(self, client: int, epoch: int) -> _Held:
        with self._changed:
            end = self._ends.get(client)
        if end is None or end.pair.epoch != epoch:
            raise RefusedError("STALE_PAIR", f"client {client} has no pair of epoch {epoch}")
        return end


def same_gpu(client: int, gpu: str) -> str:
    """Why nccl can't connect two processes on one GPU, for a person."""
    return f"nccl pairs need two GPUs, the server's and client {client}'s are both {gpu}; set [placement], or use gloo"


@contextmanager
def _alone(pair: PairEnd) -> Iterator[None]:
    if not pair.busy.acquire(blocking=False):
        raise RefusedError("BAD_TRANSFER", f"{pair.name}: the pair is busy with another transfer")
    try:
        yield
    finally:
        pair.busy.release()


@contextmanager
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """End a call that met an error of ours with the status that says so."""
    try:
        yield
    except RefusedError as error:
        refuse(context, error)
    except WaitTimeoutError as error:
        _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, error)
    except RemoteFault as error:
        _abort(context, grpc.StatusCode.UNAVAILABLE, error)


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, error: SteelyardError) -> NoReturn:
    context.abort(code, str(error))
    raise AssertionError  # abort raises
