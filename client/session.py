"""The client's end of the control plane: join, follow the run, fetch, submit; every wait is bounded.

Foreign errors are mapped here once: gRPC's become `DisconnectedError` (join again) and the wire's refusals become
`RefusedError`. Knows nothing of models or attacks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from protos import federation_pb2_grpc
from steelyard.bundle import Manifest, digest, raw
from steelyard.errors import RefusedError, RemoteFault, RunFailedError, SteelyardError, WaitTimeoutError
from steelyard.transport.base import TensorPlane, Transfer
from steelyard.transport.faults import refusal_of
from steelyard.wire import PROTOCOL_VERSION, manifest_from_wire, manifest_to_wire, pb, raise_if_refused

log = logging.getLogger("client")

Vector = npt.NDArray[np.float32]
T = TypeVar("T")
SERVER = -1  # the tensor plane's name for the one peer that a client has
RETRY_S = 0.3  # between two tries to reach or join the server
WATCH_S = 1800.0  # of one watch stream, since every call has a deadline; the next one follows it
LOST = ("STALE_SESSION", "TOO_MANY_CALLS")  # refusals that a new session mends


class DisconnectedError(SteelyardError):
    """The server can't be reached just now, or no longer knows the session: join again."""


class Session:
    """One session with the server: `join` it, then use it as a context manager that leaves on exit.

    Args:
        channel: to the server; closed on exit.
        metadata: identifies the client where no certificate does.
        make_plane: makes the client's tensor plane over the channel.
        timeout_s: bounds each call and transfer.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        metadata: tuple[tuple[str, str], ...],
        make_plane: Callable[[grpc.Channel], TensorPlane],
        timeout_s: float,
    ) -> None:
        self._channel = channel
        self._stub = federation_pb2_grpc.FederationStub(channel)
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._plane = make_plane(channel)
        self._changed = threading.Condition()
        self._state: pb.RoundState | None = None
        self._fault: SteelyardError | None = None
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def join(self) -> None:
        """Open the session and start following the run.

        Raises:
            DisconnectedError: the server can't be reached.
            RefusedError: it does not take us, e.g. ALREADY_LIVE or UNKNOWN_CLIENT.
        """
        try:
            with _mapped_errors():
                reply = self._call(self._stub.Join, pb.JoinRequest(protocol=PROTOCOL_VERSION))
                raise_if_refused(reply)
        except BaseException:
            self._plane.close()
            self._channel.close()
            raise
        self.client = int(reply.client)
        self.incarnation = int(reply.incarnation)
        self._id = str(reply.session)
        self._stream = self._watch()
        for work in (self._follow, lambda: self._beat(reply.lease_s / 3)):
            thread = threading.Thread(target=self._guard, args=(work,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        try:
            if not isinstance(error, DisconnectedError):
                with _mapped_errors():
                    self._call(self._stub.Leave, pb.LeaveRequest(session=self._id), timeout_s=2.0)
        except (DisconnectedError, RefusedError) as lost:
            log.info("leaving: %s", lost)
        finally:
            with self._changed:
                self._stream.cancel()
            try:
                self._plane.close()
            finally:
                self._channel.close()  # ends every call, so that no thread waits for a server that does not answer
                for thread in self._threads:
                    thread.join(self._timeout_s)

    @property
    def state(self) -> pb.RoundState | None:
        """What the server said last about the run."""
        with self._changed:
            return self._state

    def wait_for(self, wanted: Callable[[pb.RoundState], bool]) -> pb.RoundState:
        """The run's state as soon as it is a wanted one. Heartbeats bound the wait: a silent server is an error.

        Raises:
            DisconnectedError: the connection or the session is lost.
            RunFailedError: this process can't follow the run, e.g. since it may start no more threads.
        """
        with self._changed:
            while True:
                if self._fault is not None:
                    raise self._fault
                if self._state is not None and wanted(self._state):
                    return self._state
                self._changed.wait(self._timeout_s)

    def fetch(self, number: int) -> Vector:
        """The global model of a round as a float32 vector [D].

        Raises:
            RefusedError: the round is not open, or the bytes do not match their digest.
            DisconnectedError: the connection or the session is lost.
        """
        with _mapped_errors():
            reply = self._call(self._stub.Fetch, pb.FetchRequest(session=self._id, round=number))
            raise_if_refused(reply)
            manifest = manifest_from_wire(reply.manifest)
            vector = np.empty(manifest.nbytes // 4, np.float32)
            self._wait(self._plane.receive(Transfer(id=reply.transfer, peer=SERVER, manifest=manifest), raw(vector)))
            self._layout = manifest.tensors
            return vector

    def submit(self, number: int, update_D: Vector) -> None:
        """Send an update and wait for its receipt: on return the server has it durably.

        Raises:
            RefusedError: the server refused it; names the fault.
            DisconnectedError: the connection or the session is lost; the update may be submitted again.
        """
        manifest = Manifest(self._layout, digest(raw(update_D)))
        with _mapped_errors():
            request = pb.SubmitRequest(session=self._id, round=number, manifest=manifest_to_wire(manifest))
            reply = self._call(self._stub.Submit, request)
            if not reply.transfer:
                raise_if_refused(reply.receipt)
                return
            transfer = Transfer(id=reply.transfer, peer=SERVER, manifest=manifest)
            self._wait(self._plane.send(transfer, raw(update_D)))
            raise_if_refused(
                self._call(self._stub.GetReceipt, pb.ReceiptRequest(session=self._id, transfer=reply.transfer))
            )

    def _call(self, method: Callable[..., T], request: object, timeout_s: float | None = None) -> T:
        return method(request, timeout=timeout_s or self._timeout_s, metadata=self._metadata)

    def _wait(self, moved: Future[None]) -> None:
        moved.result(self._timeout_s + 5.0)  # the plane's own timeout comes first and says more

    def _watch(self) -> Any:  # grpc's stub has no type for an iterable call
        return self._stub.Watch(pb.WatchRequest(session=self._id), timeout=WATCH_S, metadata=self._metadata)

    def _follow(self) -> None:
        while True:
            try:
                self._read_stream()
                break
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
            with self._changed:
                if self._closing.is_set():
                    return
                self._stream = self._watch()
        if self._state is None or self._state.phase not in (pb.FINISHED, pb.FAILED):
            raise DisconnectedError("the server ended the watch stream")

    def _read_stream(self) -> None:
        for state in self._stream:
            with self._changed:
                self._state = state
                self._changed.notify_all()

    def _beat(self, every_s: float) -> None:
        while not self._closing.wait(every_s):
            raise_if_refused(self._call(self._stub.Heartbeat, pb.HeartbeatRequest(session=self._id)))

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; what ends it early is raised to whoever waits."""
        try:
            with _mapped_errors():
                work()
        except Exception as error:  # noqa: BLE001 - e.g. no thread to be had: whoever waits would wait for good
            what = f"following the server failed: {type(error).__name__}: {error}"
            fault = error if isinstance(error, SteelyardError) else RunFailedError(what)
            with self._changed:
                self._fault = self._fault or fault
                self._changed.notify_all()


@contextmanager
def _mapped_errors() -> Iterator[None]:
    """Turn gRPC's errors, and refusals that mean the session is gone, into `DisconnectedError`."""
    try:
        yield
    except grpc.RpcError as error:
        refusal = refusal_of(error)
        if refusal is not None and refusal.refusal not in LOST:
            raise refusal from error
        raise DisconnectedError(f"{error.code().name}: {error.details()}") from error
    except (WaitTimeoutError, TimeoutError) as error:
        raise DisconnectedError(f"no answer in time: {error}") from error
    except RemoteFault as error:  # a refusal, or the connection broke while tensors moved
        if not isinstance(error, RefusedError) or error.refusal in LOST:
            raise DisconnectedError(str(error)) from error
        raise


def connect(make: Callable[[], Session], patience_s: float, check: Callable[[str], None] | None = None) -> Session:
    """Join a session, trying again while the server can't be reached or still holds an earlier session of ours.

    Args:
        make: a fresh session, not yet joined.
        patience_s: how long to try.
        check: hears why a try failed; raises if no other will be better.

    Raises:
        RunFailedError: the time ran out; says what the last try met.
        RefusedError: the server refused us for good, e.g. UNKNOWN_CLIENT.
    """
    end = time.monotonic() + patience_s
    pause = threading.Event()
    told = False
    while True:
        session = make()
        try:
            session.join()
        except (DisconnectedError, RefusedError) as error:
            if isinstance(error, RefusedError) and error.refusal != "ALREADY_LIVE":
                raise
            if check is not None:
                check(str(error))
            if time.monotonic() > end:
                raise RunFailedError(f"the server could not be joined within {patience_s:g} s: {error}") from error
            if not told:
                log.info("trying to join for %g s: %s", patience_s, error)
                told = True
            pause.wait(RETRY_S)
        else:
            return session
