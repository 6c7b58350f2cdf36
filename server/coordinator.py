"""The run's conductor: feeds the round machine with what happens on the wire and carries out what it decides.

Owns the clock, and the lock, which uploads.py shares. Requests arrive on the service's threads; `run` is the main
thread, which ticks the machine and settles closed rounds outside the lock, so that scoring never blocks a heartbeat.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from server.ledger import Ledger
from server.round_events import (
    Abort,
    Broke,
    CloseRound,
    Event,
    Expired,
    Finish,
    Joined,
    Left,
    OpenRound,
    Phase,
    Settled,
    Tick,
)
from server.rounds import RoundMachine
from server.sessions import Session, Sessions
from server.uploads import Receipt, Uploads
from steelyard.bundle import BundleFile, Manifest, TensorSpec
from steelyard.errors import RefusedError, RunFailedError, SteelyardError
from steelyard.recording import ClosedRound, Recordings
from steelyard.transport.base import TensorPlane, Transfer

MAX_WAIT_S = 1.0  # the longest a thread sleeps before it looks at the clock and its caller again


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Where the run stands for one client, as its watch stream tells it."""

    phase: Phase
    round: int
    participating: bool
    submitted: bool
    incarnation: int
    reason: str


class Coordinator:
    """Connects sessions, tensor plane, round machine, recordings and ledger.

    Args:
        machine: decides everything about rounds; already told what a resumed run holds.
        sessions: who is live.
        recordings: where models and updates lie; the first round's global model is there.
        ledger: the event log.
        specs: names and shapes that an update must have.
        settle: aggregates and scores a closed round and writes it all down.
    """

    def __init__(
        self,
        *,
        machine: RoundMachine,
        sessions: Sessions,
        recordings: Recordings,
        ledger: Ledger,
        specs: tuple[TensorSpec, ...],
        settle: Callable[[ClosedRound], None],
    ) -> None:
        self._machine = machine
        self._sessions = sessions
        self._recordings = recordings
        self._ledger = ledger
        self._settle = settle
        self._plane: TensorPlane | None = None
        self._changed = threading.Condition(threading.RLock())
        self._uploads = Uploads(
            changed=self._changed,
            machine=machine,
            recordings=recordings,
            ledger=ledger,
            specs=specs,
            apply=self._apply,
            fail=self.fail,
        )
        self._offers: dict[int, str] = {}
        self._global: BundleFile | None = None
        self._closing: ClosedRound | None = None

    def attach(self, plane: TensorPlane) -> None:
        """Set the tensor plane; it needs `bytes_arrived`, so it is made after the coordinator."""
        self._plane = self._uploads.plane = plane

    # -- the main thread -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Conduct the run to its end.

        Raises:
            RunFailedError: the machine aborted; the message is its reason.
        """
        while (closed := self._wait_for_close()) is not None:
            self._settle(closed)
            with self._changed:
                self._expire()  # who died meanwhile takes no part in the round that opens now
                if self._machine.phase is Phase.CLOSED:  # else another thread said that the run broke
                    self._apply(Settled())
        if self._machine.phase is Phase.FAILED:
            raise RunFailedError(self._machine.reason)

    def fail(self, reason: str) -> None:
        """End the run because the server itself can't go on; watchers learn the reason."""
        with self._changed:
            if self._machine.phase not in (Phase.FINISHED, Phase.FAILED):
                self._apply(Broke(reason))

    def wait_until_left(self, timeout_s: float) -> None:
        """Give the clients time to learn that the run is over and to leave; returns early when all have."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while self._sessions.live and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def close(self) -> None:
        """End every transfer that is still under way."""
        if self._plane is not None:
            self._plane.close()

    def _wait_for_close(self) -> ClosedRound | None:
        with self._changed:
            while self._machine.phase not in (Phase.FINISHED, Phase.FAILED):
                self._expire()
                self._apply(Tick())
                if self._closing is not None:
                    closed, self._closing = self._closing, None
                    return closed
                now = time.monotonic()
                timers = [t for t in (self._machine.next_timer(), self._sessions.next_expiry()) if t is not None]
                self._changed.wait(min([MAX_WAIT_S, *(max(t - now, 0.0) for t in timers)]))
            return None

    def _expire(self) -> None:
        for client in self._sessions.expire(time.monotonic()):
            self._ledger.counted("expired", client)
            if self._machine.phase not in (Phase.FINISHED, Phase.FAILED) and client in self._machine.live:
                self._apply(Expired(client))

    # -- requests, on the service's threads ----------------------------------------------------------------------

    def join(self, client: int) -> Session:
        """Open a session; see `Sessions.open` for the refusal."""
        with self._changed:
            session = self._sessions.open(client, time.monotonic())
            self._ledger.counted("joined", client)
            if self._machine.phase not in (Phase.FINISHED, Phase.FAILED) and client not in self._machine.live:
                self._apply(Joined(client))
            self._changed.notify_all()  # the stream of a session that this one replaces ends at once
            return session

    def heartbeat(self, client: int, session_id: str) -> None:
        """Renew a session's lease."""
        with self._changed:
            self._sessions.get(session_id, client, time.monotonic())

    def leave(self, client: int, session_id: str) -> None:
        """End a session; the round that is open no longer waits for the client."""
        with self._changed:
            self._sessions.get(session_id, client, time.monotonic())
            self._sessions.close(client)
            self._note("left", client)
            if self._machine.phase not in (Phase.FINISHED, Phase.FAILED) and client in self._machine.live:
                self._apply(Left(client))
            self._changed.notify_all()

    def watch(self, client: int, session_id: str, is_active: Callable[[], bool]) -> Iterator[tuple[State, float]]:
        """The current state and then every change, with the seconds left to the open round's deadline.

        A stream holds a thread, so a session has one: a newer stream ends the older one.
        """
        with self._changed:
            session = self._sessions.get(session_id, client, time.monotonic())
            session.watching += 1
            session.streams += 1
            number = session.streams
            self._changed.notify_all()
        try:
            yield from self._changes(session, lambda: is_active() and session.streams == number)
        finally:
            with self._changed:
                session.watching -= 1

    def fetch(self, client: int, session_id: str, number: int) -> Transfer:
        """Offer the open round's global model on the tensor plane."""
        with self._changed:
            self._sessions.get(session_id, client, time.monotonic())
            self._machine.check_open(client, number)
            assert self._global is not None
            assert self._plane is not None
            if client in self._offers:  # a client that reads slowly, many times, would hold as many threads
                self._plane.cancel(self._offers[client])
            transfer = Transfer(id=secrets.token_hex(16), peer=client, manifest=self._global.manifest)
            self._offers[client] = transfer.id
            started = time.monotonic()
            sent = self._plane.send(transfer, self._global.data)
        sent.add_done_callback(functools.partial(self._sent, client, number, transfer, started))
        return transfer

    def submit(
        self, client: int, session_id: str, number: int, manifest: Manifest, timeout_s: float
    ) -> Transfer | Receipt:
        """Take an announcement of an update: the transfer to send it by, or at once its final receipt.

        Raises:
            RefusedError: EQUIVOCATION, WRONG_ROUND, NOT_PARTICIPATING, BAD_LAYOUT or STALE_SESSION.
            WaitTimeoutError: the file of an update of the same client that came before was at work for too long.
        """
        with self._changed:
            self._sessions.get(session_id, client, time.monotonic())
            receipt = self._uploads.accepted(client, number, manifest.sha256, timeout_s)
            if receipt is not None:
                return receipt
            self._machine.check_open(client, number)
            assert self._global is not None
            base = self._global
            self._uploads.announce(client, manifest)

        def check() -> None:
            self._sessions.get(session_id, client, time.monotonic())
            self._machine.check_open(client, number)

        return self._uploads.expect(client, number, manifest, base, check)

    def receipt(self, client: int, session_id: str, transfer_id: str, timeout_s: float) -> Receipt:
        """Wait for what becomes of an announced update; see `Uploads.awaited` and `Upload.receipt` for the errors."""
        with self._changed:
            self._sessions.get(session_id, client, time.monotonic())
            upload = self._uploads.awaited(client, transfer_id)
        return upload.receipt(timeout_s)

    def bytes_arrived(self, client: int, count: int) -> None:
        """The tensor plane's hook: bytes of an upload renew the lease."""
        with self._changed:
            self._sessions.renew(client, time.monotonic())
            self._uploads.bytes_arrived(client, count)

    def refused(self, client: int | None, request: str, error: RefusedError) -> None:
        """Log a refusal."""
        self._note("refused", client, request=request, refusal=error.refusal, detail=error.detail)

    @property
    def lease_s(self) -> float:
        """Seconds that a session lives without a sign of life."""
        return self._sessions.lease_s

    @property
    def incarnation(self) -> int:
        """How often the server was started on this run."""
        return self._ledger.incarnation

    # -- what the machine decides --------------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        for action in self._machine.apply(event, time.monotonic()):
            if isinstance(action, OpenRound):
                self._open(action)
            elif isinstance(action, CloseRound):
                self._close(action)
            elif isinstance(action, Finish):
                self._ledger.event("finished", reason=action.reason)
            elif isinstance(action, Abort):
                # The log's disk may be what ended the run; watchers and `run` have the reason from the machine.
                with contextlib.suppress(OSError):
                    self._ledger.event("failed", reason=action.reason)
        self._changed.notify_all()

    def _open(self, action: OpenRound) -> None:
        try:
            self._global = BundleFile.open(self._recordings.global_file(action.round))
        except SteelyardError as error:  # our own damaged file: no refusal of the client whose request opens the round
            self.fail(f"opening round {action.round} failed: {error}")
            return
        deadline_s = round(action.deadline - time.monotonic(), 3)
        self._ledger.event(
            "round_opened",
            round=action.round,
            participants=action.participants,
            deadline_s=deadline_s,
            reason=action.reason,
        )

    def _close(self, action: CloseRound) -> None:
        self._uploads.cancel()
        closed = ClosedRound(**asdict(action))
        self._recordings.close(closed)
        self._closing = closed
        self._ledger.tell_held(action.round)
        self._ledger.event("round_closed", **asdict(action))

    def _sent(self, client: int, number: int, transfer: Transfer, started: float, sent: Future[None]) -> None:
        seconds = round(time.monotonic() - started, 6)
        error = sent.exception()
        if error is None:
            self._note("fetched", client, round=number, bytes=transfer.manifest.nbytes, seconds=seconds)
        elif isinstance(error, SteelyardError):
            self._note("fetch_failed", client, round=number, detail=str(error), seconds=seconds)
        else:
            self.fail(f"sending the global model of round {number} to client {client} failed: {error!r}")

    def _note(self, name: str, client: int | None, **fields: Any) -> None:
        """Log what happened where nobody else would notice that the log can't be written, which ends the run."""
        try:
            self._ledger.counted(name, client, **fields)
        except OSError as error:
            self.fail(f"writing the event log failed: {error}")

    def _changes(self, session: Session, is_active: Callable[[], bool]) -> Iterator[tuple[State, float]]:
        last: State | None = None
        while is_active():
            with self._changed:
                if session.left:
                    return
                if not self._sessions.is_current(session):
                    raise RefusedError("STALE_SESSION", f"client {session.client}'s session ended; join again")
                state, left = self._state_for(session.client), self._seconds_left()
                if state == last:
                    self._changed.wait(MAX_WAIT_S)
                    continue
            yield state, left
            if state.phase in (Phase.FINISHED, Phase.FAILED):
                return
            last = state

    def _state_for(self, client: int) -> State:
        machine = self._machine
        return State(
            phase=machine.phase,
            round=machine.round,
            participating=client in machine.participants,
            submitted=client in machine.received,
            incarnation=self.incarnation,
            reason=machine.reason,
        )

    def _seconds_left(self) -> float:
        deadline = self._machine.deadline
        return 0.0 if deadline is None else max(deadline - time.monotonic(), 0.0)
