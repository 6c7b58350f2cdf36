"""The round machine under any order of events: what must hold whatever the clients do."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
    Received,
    Refused,
    Settled,
    Tick,
)
from server.rounds import RoundMachine
from steelyard.errors import IllegalEventError
from steelyard.participation import Stay, expected

CLIENTS = (0, 1, 2, 3)
ROUNDS = 4
DEADLINE_S, JOIN_S = 30.0, 60.0
turns = st.integers(1, ROUNDS + 1)
stays = st.one_of(
    st.just(Stay()),
    turns.map(lambda join: Stay(join=min(join, ROUNDS))),
    turns.map(lambda leave: Stay(leave=leave + 1)),
    st.sets(turns, min_size=3, max_size=3).map(sorted).map(lambda t: Stay(join=t[0], leave=t[1], back=t[2])),
)
client_indices = st.integers(0, 4)  # 4 is nobody


class AnyOrder(RuleBasedStateMachine):
    @initialize(next_round=st.integers(1, ROUNDS), durable=st.sets(st.sampled_from(CLIENTS)), comer=stays, goer=stays)
    def start(self, next_round: int, durable: set[int], comer: Stay, goer: Stay) -> None:
        """Two clients are there in every round, so that each expects a quorum."""
        self.now = 100.0
        self.stays = {0: Stay(), 1: Stay(), 2: comer, 3: goer}
        self.rounds = RoundMachine(
            clients=CLIENTS,
            rounds=ROUNDS,
            quorum=2,
            round_deadline_s=DEADLINE_S,
            join_timeout_s=JOIN_S,
            max_void_rounds=1,
            now=self.now,
            next_round=next_round,
            received=durable & expected(self.stays, next_round),
            stays=self.stays,
        )
        self.last_round = next_round - 1
        self.open: OpenRound | None = None
        self.voids = 0
        self.ended: Abort | Finish | None = None

    def apply(self, event: Event) -> None:
        before = dict(vars(self.rounds))
        try:
            actions = self.rounds.apply(event, self.now)
        except IllegalEventError:
            assert vars(self.rounds) == before
            assert not isinstance(event, Tick)
            return
        for action in actions:
            self.check(action)

    def check(self, action: Any) -> None:
        assert self.ended is None, "nothing follows the end"
        assert action.reason
        if isinstance(action, OpenRound):
            assert self.open is None
            assert action.round == self.last_round + 1 <= ROUNDS
            assert len(action.participants) >= 2
            due = expected(self.stays, action.round)
            assert set(action.participants) <= due, "who is outside its rounds takes no part"
            assert set(action.participants) >= due & set(self.rounds.live), "who is expected and live does"
            assert action.deadline == self.now + DEADLINE_S
            self.open, self.last_round = action, action.round
        elif isinstance(action, CloseRound):
            assert self.open is not None
            assert action.round == self.open.round
            assert sorted(action.received + action.missing) == list(self.open.participants)
            assert action.void == (len(action.received) < 2)
            self.voids = self.voids + 1 if action.void else 0
            self.open = None
        else:
            assert isinstance(action, Abort) or self.last_round == ROUNDS
            self.ended, self.open = action, None

    @rule(client=client_indices)
    def join(self, client: int) -> None:
        self.apply(Joined(client))

    @rule(client=client_indices)
    def leave(self, client: int) -> None:
        self.apply(Left(client))

    @rule(client=client_indices)
    def expire(self, client: int) -> None:
        self.apply(Expired(client))

    @rule(client=client_indices)
    def receive(self, client: int) -> None:
        self.apply(Received(client))

    @rule(client=client_indices)
    def refuse(self, client: int) -> None:
        self.apply(Refused(client))

    @rule()
    def settle(self) -> None:
        self.apply(Settled())

    @precondition(lambda self: self.now > 200)  # late in a run, or there would be few whole ones
    @rule()
    def break_down(self) -> None:
        self.apply(Broke("no space left"))
        assert self.rounds.phase in (Phase.FINISHED, Phase.FAILED)

    @precondition(lambda self: self.rounds.phase is Phase.WAITING)
    @rule()
    def all_join(self) -> None:
        for client in set(CLIENTS) - set(self.rounds.live):
            self.apply(Joined(client))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.apply(Tick())

    @precondition(lambda self: self.rounds.next_timer() is not None)
    @rule()
    def wait_for_the_timer(self) -> None:
        timer = self.rounds.next_timer()
        assert timer is not None
        before = self.rounds.phase, self.rounds.round
        self.now = max(self.now, timer)
        self.apply(Tick())
        assert (self.rounds.phase, self.rounds.round) != before, "a timer that nothing follows from"

    @invariant()
    def a_round_is_open_until_its_deadline_at_most(self) -> None:
        assert (self.open is not None) == (self.rounds.phase is Phase.OPEN)
        if self.open is not None:
            assert self.now < self.open.deadline == self.rounds.deadline
            assert self.rounds.participants == self.open.participants, "participants are fixed when a round opens"

    @invariant()
    def every_wait_is_bounded(self) -> None:
        timer = self.rounds.next_timer()
        if self.rounds.phase in (Phase.WAITING, Phase.OPEN):
            assert timer is not None
            assert timer <= self.now + JOIN_S
        else:
            assert timer is None

    @invariant()
    def an_end_is_an_end(self) -> None:
        assert (self.ended is not None) == (self.rounds.phase in (Phase.FINISHED, Phase.FAILED))
        assert self.voids <= 2


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, database=None)
TestAnyOrder = AnyOrder.TestCase
