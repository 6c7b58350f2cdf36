"""The round machine: which round is open, who takes part, when it closes, how the run ends.

Pure: events go in with the time at which they happened, actions come out. It knows no socket, clock, thread or tensor;
the app feeds it and carries out what it decides. Two rules stand above the table:

1. A handler only notes a fact, after checking that the fact is possible; `_decide` alone draws conclusions from it.
2. An event that the table or its handler does not allow raises `IllegalEventError` and changes nothing.

A round expects the clients whose stay covers it, and they alone take part: one outside its rounds may be live, but only
watches. A round whose stays begin with it is worth a wait for those that come, even where a quorum is there already.

A round that closes with fewer updates than the quorum is void: the model stays as it is and every value is 0. A void
round counts as a round: it is settled and recorded under its number, and the next number follows. `max_void_rounds` of
them in a row are tolerated; one more, once it is settled, fails the run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from server.round_events import (
    Abort,
    Action,
    Broke,
    CloseRound,
    Event,
    Expired,
    Finish,
    Joined,
    Left,
    OpenRound,
    Phase,
    Received,
    Refused,
    Settled,
    Tick,
)
from steelyard.errors import IllegalEventError, RefusedError, UserError
from steelyard.participation import Stay, check_rounds, expected

ALWAYS: dict[type[Event], str] = {Joined: "_joined", Left: "_left", Expired: "_expired", Tick: "_ticked"}
TRANSITIONS: dict[Phase, dict[type[Event], str]] = {
    Phase.WAITING: {**ALWAYS, Broke: "_broke"},
    Phase.OPEN: {**ALWAYS, Broke: "_broke", Received: "_update_received", Refused: "_update_refused"},
    Phase.CLOSED: {**ALWAYS, Broke: "_broke", Settled: "_settled"},
    Phase.FINISHED: {**ALWAYS},  # sessions come and go until the process ends; nothing follows from it
    Phase.FAILED: {**ALWAYS},
}


def default_quorum(clients: int) -> int:
    """All but a third of the clients (rounded down), at least 1."""
    return max(1, clients - clients // 3)


class RoundMachine:
    """The run's rounds, one event at a time.

    Times are seconds of one monotonic clock of the caller's. The run starts, or starts again, by waiting for clients:
    until all that the round expects are live, or until `join_timeout_s` is over, when a quorum is enough.

    Args:
        clients: the roster's client indices.
        rounds: number of the last round; rounds count from 1.
        quorum: updates that a round needs to count (0: `default_quorum` of the clients that it expects).
        round_deadline_s: how long a round stays open at most.
        join_timeout_s: how long to wait for clients at most.
        max_void_rounds: void rounds in a row that are tolerated.
        now: the time of construction.
        next_round: the round to open first; on a restart the one that was not settled (`rounds + 1`: none is left).
        void_rounds: void rounds in a row just before `next_round`.
        received: clients whose update of `next_round` is durable from before a restart; they take part in it whether
            or not they are live again when it opens.
        stays: in which rounds each client takes part (None: all in every round).

    Raises:
        UserError: more updates are asked for than there are clients, or than some round expects.
    """

    def __init__(
        self,
        *,
        clients: tuple[int, ...],
        rounds: int,
        quorum: int,
        round_deadline_s: float,
        join_timeout_s: float,
        max_void_rounds: int,
        now: float,
        next_round: int = 1,
        void_rounds: int = 0,
        received: Collection[int] = (),
        stays: Mapping[int, Stay] | None = None,
    ) -> None:
        assert len(set(clients)) == len(clients) > 0, "a roster of distinct clients"
        assert 1 <= next_round <= rounds + 1, "the next round is one of the run's"
        stays = dict.fromkeys(clients, Stay()) if stays is None else stays
        assert set(stays) == set(clients), "a stay for every client"
        assert set(received) <= expected(stays, next_round), "updates come from those that the round expects"
        if not 0 <= quorum <= len(clients):
            raise UserError(f"[protocol] quorum: at most the number of clients ({len(clients)}) expected, got {quorum}")
        check_rounds(stays, rounds, quorum, "[clients] schedule")
        self._roster = frozenset(clients)
        self._stays = dict(stays)
        self._rounds = rounds
        self._quorum_asked_for = quorum
        self._round_deadline_s = round_deadline_s
        self._join_timeout_s = join_timeout_s
        self._max_void_rounds = max_void_rounds
        self._live: frozenset[int] = frozenset()
        self._round = next_round - 1
        self._void_rounds = void_rounds
        self._participants: frozenset[int] = frozenset()
        self._received = frozenset(received)
        self._departed: frozenset[int] = frozenset()  # not live, and said so
        self._refused: frozenset[int] = frozenset()  # of the round, whose update holds what no update may
        self._closed_because = ""
        self._broken = ""
        self._wait(now)

    @property
    def phase(self) -> Phase:
        """Where the run stands."""
        return self._phase

    @property
    def round(self) -> int:
        """The open or closed round, or else the last one that was; 0 before the first."""
        return self._round

    @property
    def participants(self) -> tuple[int, ...]:
        """Who takes part in the open or closed round, in client order: fixed when it opened. Empty between rounds."""
        return tuple(sorted(self._participants))

    @property
    def received(self) -> tuple[int, ...]:
        """Whose update of the round is durable; after a restart, of the round that is about to open again."""
        return tuple(sorted(self._received))

    @property
    def missing(self) -> tuple[int, ...]:
        """The participants without an update so far."""
        return tuple(sorted(self._participants - self._received))

    @property
    def deadline(self) -> float | None:
        """When the open round closes at the latest; None when none is open."""
        return self._timer if self._phase is Phase.OPEN else None

    @property
    def live(self) -> tuple[int, ...]:
        """The clients with a live session."""
        return tuple(sorted(self._live))

    @property
    def reason(self) -> str:
        """Why the run stands where it stands: the last decision's reason."""
        return self._reason

    def next_timer(self) -> float | None:
        """When the next `Tick` matters: the end of a wait or the round's deadline; None while no time is running."""
        return self._timer if math.isfinite(self._timer) else None

    def check_open(self, client: int, number: int) -> None:
        """Check that a round is open and that a client takes part in it.

        Raises:
            RefusedError: WRONG_ROUND, another one is current; LATE, it closed; NOT_PARTICIPATING, it opened without
                the client.
        """
        if number != self._round or self._phase not in (Phase.OPEN, Phase.CLOSED):
            raise RefusedError("WRONG_ROUND", f"round {self._round} ({self._phase.name}) is current, {number} came")
        if self._phase is Phase.CLOSED:
            raise RefusedError("LATE", f"round {number} is closed: {self._reason}")
        if client not in self._participants:
            raise RefusedError("NOT_PARTICIPATING", f"round {number} opened without client {client}; wait for the next")

    def apply(self, event: Event, now: float) -> tuple[Action, ...]:
        """Take note of an event and decide what follows.

        Whatever is due at `now` happens with any event, not with a `Tick` alone.

        Returns:
            What to do, in this order; often nothing.

        Raises:
            IllegalEventError: this phase does not allow the event, or its client cannot have caused it.
        """
        handler = TRANSITIONS[self._phase].get(type(event))
        if handler is None:
            raise self._illegal(event, "this phase does not allow it")
        getattr(self, handler)(event, now)
        actions: list[Action] = []
        while action := self._decide(now):
            actions.append(action)
        return tuple(actions)

    # Facts: a handler checks that the event is possible before it changes anything.

    def _joined(self, event: Joined, _now: float) -> None:
        if event.client not in self._roster:
            raise self._illegal(event, "the roster has no such client")
        if event.client in self._live:
            raise self._illegal(event, "the client is live already")
        self._live |= {event.client}
        self._departed -= {event.client}

    def _left(self, event: Left, now: float) -> None:
        self._expired(event, now)
        self._departed |= {event.client}

    def _expired(self, event: Left | Expired, _now: float) -> None:
        if event.client not in self._live:
            raise self._illegal(event, "the client is not live")
        self._live -= {event.client}

    def _update_received(self, event: Received, _now: float) -> None:
        if event.client not in self._participants:
            raise self._illegal(event, "the client is no participant of this round")
        if event.client in self._received:
            raise self._illegal(event, "its update was received before")
        self._received |= {event.client}

    def _update_refused(self, event: Refused, _now: float) -> None:
        if event.client not in self._participants:
            raise self._illegal(event, "the client is no participant of this round")
        self._refused |= {event.client}

    def _settled(self, _event: Settled, now: float) -> None:
        self._participants = self._received = self._refused = frozenset()
        self._wait(now)

    def _broke(self, event: Broke, _now: float) -> None:
        self._broken = event.reason or "the server broke and left no word"

    def _ticked(self, _event: Tick, _now: float) -> None:
        """Nothing to note: `_decide` looks at the time after every event."""

    def _illegal(self, event: Event, why: str) -> IllegalEventError:
        return IllegalEventError(f"{event} in phase {self._phase.name} of round {self._round}: {why}")

    # Decisions: one at a time, until nothing more follows.

    def _wait(self, now: float) -> None:
        """Between two rounds: who is waited for, and how long at most.

        A quorum of live clients waits for those alone whose stay begins with the next round, and else goes on at once,
        as does a run that is over. After a restart nobody waits for a client whose update of the round is durable and
        whose stay ends with it: it did its part, and may be gone for good.
        """
        number = self._round + 1
        self._expected = expected(self._stays, number)
        self._quorum = self._quorum_asked_for or default_quorum(len(self._expected))
        done = self._received - expected(self._stays, number + 1)
        self._awaited = self._expected - done
        if self._run_is_over:
            self._awaited = frozenset()
        elif len(self._live & self._expected) >= self._quorum:
            self._awaited = self._expected - expected(self._stays, number - 1)
        missing = self._awaited - self._live
        self._waiting_s = self._join_timeout_s if missing else 0.0
        self._phase, self._timer = Phase.WAITING, now + self._waiting_s
        self._reason = f"waiting {self._waiting_s:g} s at most for {_names(missing) or 'nobody'}"

    @property
    def _run_is_over(self) -> bool:
        return self._void_rounds > self._max_void_rounds or self._round == self._rounds

    def _decide(self, now: float) -> Action | None:
        if self._broken and self._phase is not Phase.FAILED:
            return self._abort(self._broken)
        if self._phase is Phase.WAITING:
            return self._end_run() if self._run_is_over else self._decide_waiting(now)
        return self._decide_open(now) if self._phase is Phase.OPEN else None

    def _decide_waiting(self, now: float) -> Action | None:
        live = self._live & self._expected
        everybody = _count(len(self._expected), "client")
        if live == self._expected:
            return self._open(now, f"all {everybody} live")
        timed_out = now >= self._timer
        if not timed_out and (self._awaited - live or len(live | self._received) < self._quorum):
            return None
        waited = f"after waiting {self._waiting_s:g} s, " if self._waiting_s and timed_out else ""
        absent = _names(self._expected - live)
        state = f"{waited}{len(live)} of {everybody} live, {absent} missing"
        if len(live | self._received) >= self._quorum:
            return self._open(now, state)
        return self._abort(f"{state}; the quorum is {self._quorum}")

    def _decide_open(self, now: float) -> Action | None:
        missing = self._participants - self._received
        late = missing - self._departed - self._refused
        if late and now < self._timer:
            return None
        reason = f"all {_count(len(self._participants), 'participant')} submitted"
        if missing:
            refused, gone = missing & self._refused, (missing & self._departed) - self._refused
            parts = [f"{_names(late)} missing"] * bool(late) + [f"{_names(gone)} left"] * bool(gone)
            parts += [f"{_names(refused)} refused"] * bool(refused)
            start = f"deadline after {self._round_deadline_s:g} s" if late else "nobody left to wait for"
            reason = f"{start}: {', '.join(parts)}"
        return self._close(reason)

    def _open(self, now: float, reason: str) -> OpenRound:
        self._phase, self._reason = Phase.OPEN, reason
        self._round += 1
        self._participants = self._live & self._expected | self._received
        self._timer = now + self._round_deadline_s
        return OpenRound(self._round, self.participants, self._timer, reason)

    def _close(self, reason: str) -> CloseRound:
        void = len(self._received) < self._quorum
        self._void_rounds = self._void_rounds + 1 if void else 0
        if void:
            reason += f"; void: {_count(len(self._received), 'update')}, the quorum is {self._quorum}"
        self._phase, self._timer, self._reason = Phase.CLOSED, math.inf, reason
        self._closed_because = reason
        return CloseRound(self._round, self.received, self.missing, void, reason)

    def _end_run(self) -> Action:
        if self._void_rounds > self._max_void_rounds:
            voids = _count(self._void_rounds, "void round")
            last = f"; the last one: {self._closed_because}" if self._closed_because else ""  # unknown after a restart
            return self._abort(f"{voids} in a row up to round {self._round}, {self._max_void_rounds} tolerated{last}")
        self._phase, self._timer = Phase.FINISHED, math.inf
        self._reason = f"all {_count(self._rounds, 'round')} settled"
        return Finish(self._reason)

    def _abort(self, reason: str) -> Abort:
        self._phase, self._timer, self._reason = Phase.FAILED, math.inf, reason
        return Abort(reason)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _names(clients: Iterable[int]) -> str:
    """Clients as words: "", "client 3", "clients 3, 4 and 5"."""
    if not (indices := sorted(clients)):
        return ""
    *others, last = indices
    return f"clients {', '.join(map(str, others))} and {last}" if others else f"client {last}"
