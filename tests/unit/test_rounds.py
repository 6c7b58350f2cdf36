"""The round machine by hand: scripts of events, and the actions that a person expects of each."""

from typing import Any

import pytest

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
from server.rounds import TRANSITIONS, RoundMachine, default_quorum
from steelyard.errors import IllegalEventError, RefusedError, UserError
from steelyard.participation import Stay


def machine(**changes: Any) -> RoundMachine:
    """Three clients, two rounds of 30 s, quorum 2, 60 s to join; the clock starts at 0."""
    settings: dict[str, Any] = {
        "clients": (0, 1, 2),
        "rounds": 2,
        "quorum": 0,
        "round_deadline_s": 30.0,
        "join_timeout_s": 60.0,
        "max_void_rounds": 1,
        "now": 0.0,
    }
    return RoundMachine(**{**settings, **changes})


def play(rounds: RoundMachine, *script: tuple[float, Event]) -> list[Any]:
    return [action for now, event in script for action in rounds.apply(event, now)]


def joined(now: float = 1.0, clients: tuple[int, ...] = (0, 1, 2)) -> list[tuple[float, Event]]:
    return [(now, Joined(client)) for client in clients]


def opened(**changes: Any) -> RoundMachine:
    rounds = machine(**changes)
    play(rounds, *joined())
    assert rounds.phase is Phase.OPEN
    return rounds


def test_a_round_takes_updates_of_its_participants_while_it_is_open() -> None:
    rounds = machine()
    play(rounds, *joined(clients=(0, 1)), (61, Tick()))  # client 2 never comes

    def refusal(client: int, number: int) -> str:
        with pytest.raises(RefusedError) as refused:
            rounds.check_open(client, number)
        return refused.value.refusal

    rounds.check_open(0, 1)
    assert [refusal(2, 1), refusal(0, 0), refusal(0, 2)] == ["NOT_PARTICIPATING", "WRONG_ROUND", "WRONG_ROUND"]
    play(rounds, (62, Received(0)), (62, Received(1)))
    assert refusal(0, 1) == "LATE"
    play(rounds, (63, Settled()), (63, Broke("a full disk")))
    assert refusal(0, rounds.round) == "WRONG_ROUND"


def test_a_whole_run_in_which_nothing_goes_wrong() -> None:
    rounds = machine()
    assert play(rounds, *joined()) == [OpenRound(1, (0, 1, 2), 31.0, "all 3 clients live")]
    assert play(rounds, (2, Received(2)), (3, Received(0))) == []
    assert (rounds.received, rounds.missing, rounds.next_timer()) == ((0, 2), (1,), 31.0)
    assert play(rounds, (4, Received(1))) == [CloseRound(1, (0, 1, 2), (), False, "all 3 participants submitted")]
    assert (rounds.phase, rounds.next_timer(), rounds.deadline) == (Phase.CLOSED, None, None)
    assert play(rounds, (9, Settled())) == [OpenRound(2, (0, 1, 2), 39.0, "all 3 clients live")]
    play(rounds, (10, Received(0)), (10, Received(1)), (10, Received(2)))
    assert play(rounds, (12, Settled())) == [Finish("all 2 rounds settled")]
    assert (rounds.phase, rounds.round, rounds.reason) == (Phase.FINISHED, 2, "all 2 rounds settled")


def test_the_join_timeout_opens_with_a_quorum() -> None:
    rounds = machine()
    play(rounds, *joined(clients=(0, 2)))
    assert rounds.next_timer() == 60.0
    assert rounds.reason == "waiting 60 s at most for clients 0, 1 and 2"
    assert play(rounds, (59.9, Tick())) == []
    reason = "after waiting 60 s, 2 of 3 clients live, client 1 missing"
    assert play(rounds, (60, Tick())) == [OpenRound(1, (0, 2), 90.0, reason)]


def test_the_join_timeout_aborts_below_the_quorum_and_names_the_missing() -> None:
    rounds = machine()
    play(rounds, *joined(clients=(1,)))
    reason = "after waiting 60 s, 1 of 3 clients live, clients 0 and 2 missing; the quorum is 2"
    assert play(rounds, (60, Tick())) == [Abort(reason)]
    assert (rounds.phase, rounds.reason) == (Phase.FAILED, reason)


def test_a_client_that_goes_while_the_run_waits_must_come_back() -> None:
    rounds = machine()
    assert play(rounds, (1, Joined(0)), (1, Joined(1)), (2, Expired(0)), (3, Joined(2))) == []
    assert rounds.live == (1, 2)
    assert play(rounds, (4, Joined(0))) == [OpenRound(1, (0, 1, 2), 34.0, "all 3 clients live")]


def test_the_deadline_closes_a_round_and_names_the_missing() -> None:
    rounds = opened()
    play(rounds, (2, Received(0)), (2, Received(1)))
    assert play(rounds, (30.9, Tick())) == []
    assert play(rounds, (31, Tick())) == [CloseRound(1, (0, 1), (2,), False, "deadline after 30 s: client 2 missing")]


def test_an_update_at_the_deadline_counts_if_no_tick_came_before_it() -> None:
    rounds = opened()
    play(rounds, (2, Received(0)))
    assert play(rounds, (40, Received(1))) == [
        CloseRound(1, (0, 1), (2,), False, "deadline after 30 s: client 2 missing")
    ]


def test_a_participant_that_left_is_not_waited_for() -> None:
    rounds = opened()
    play(rounds, (2, Received(0)), (2, Received(1)))
    assert play(rounds, (3, Left(2))) == [CloseRound(1, (0, 1), (2,), False, "nobody left to wait for: client 2 left")]


def test_a_participant_that_left_and_came_back_is_waited_for_again() -> None:
    rounds = opened()
    assert play(rounds, (2, Left(2)), (3, Joined(2)), (4, Received(0)), (4, Received(1))) == []
    assert rounds.missing == (2,)
    assert play(rounds, (5, Received(2))) == [CloseRound(1, (0, 1, 2), (), False, "all 3 participants submitted")]


def test_leaving_after_the_update_keeps_the_update() -> None:
    rounds = opened()
    assert play(rounds, (2, Received(2)), (3, Left(2)), (4, Received(0))) == []
    assert play(rounds, (5, Received(1)))[0].received == (0, 1, 2)


def test_a_participant_whose_update_was_refused_is_not_waited_for() -> None:
    rounds = opened()
    assert play(rounds, (2, Received(0)), (2, Refused(2))) == []
    reason = "nobody left to wait for: client 2 refused"
    assert play(rounds, (3, Received(1))) == [CloseRound(1, (0, 1), (2,), False, reason)]
    assert play(rounds, (4, Settled()), (5, Refused(1)), (5, Left(0)))[-1].round == 2
    reason = "nobody left to wait for: client 0 left, clients 1 and 2 refused; void: 0 updates, the quorum is 2"
    assert play(rounds, (6, Refused(2))) == [CloseRound(2, (), (0, 1, 2), True, reason)]


def test_a_better_update_after_a_refused_one_counts() -> None:
    rounds = opened()
    assert play(rounds, (2, Refused(2)), (2, Received(0)), (2, Received(2))) == []
    assert play(rounds, (3, Received(1))) == [CloseRound(1, (0, 1, 2), (), False, "all 3 participants submitted")]


def test_the_reason_tells_who_left_from_who_is_late() -> None:
    rounds = machine(clients=(0, 1, 2, 3))
    play(rounds, *joined(clients=(0, 1, 2, 3)), (2, Left(3)), (3, Received(0)))
    reason = "deadline after 30 s: clients 1 and 2 missing, client 3 left; void: 1 update, the quorum is 3"
    assert play(rounds, (31, Tick())) == [CloseRound(1, (0,), (1, 2, 3), True, reason)]


def test_an_expired_lease_counts_for_the_next_round_only() -> None:
    rounds = opened()
    assert play(rounds, (2, Expired(2)), (3, Received(0)), (3, Received(1))) == []
    assert rounds.participants == (0, 1, 2)
    assert play(rounds, (4, Received(2))) == [CloseRound(1, (0, 1, 2), (), False, "all 3 participants submitted")]
    assert play(rounds, (5, Settled())) == [OpenRound(2, (0, 1), 35.0, "2 of 3 clients live, client 2 missing")]


def test_an_expired_participant_may_rejoin_the_same_round() -> None:
    rounds = opened()
    assert play(rounds, (2, Expired(2)), (20, Joined(2)), (21, Received(2))) == []
    assert rounds.received == (2,)


def test_who_joins_during_a_round_takes_part_in_the_next() -> None:
    rounds = machine()
    play(rounds, *joined(clients=(0, 1)), (60, Tick()), (61, Joined(2)))
    assert rounds.participants == (0, 1)
    with pytest.raises(IllegalEventError, match="no participant"):
        rounds.apply(Received(2), 62)
    play(rounds, (63, Received(0)), (63, Received(1)))
    assert play(rounds, (64, Settled())) == [OpenRound(2, (0, 1, 2), 94.0, "all 3 clients live")]


def test_below_the_quorum_after_a_round_the_run_waits_again() -> None:
    rounds = opened()
    play(rounds, (2, Received(0)), (2, Received(1)), (2, Received(2)), (3, Left(0)), (3, Expired(1)))
    assert play(rounds, (5, Settled())) == []
    assert (rounds.phase, rounds.next_timer()) == (Phase.WAITING, 65.0)
    assert rounds.reason == "waiting 60 s at most for clients 0 and 1"
    assert play(rounds, (7, Joined(0)), (8, Joined(1))) == [OpenRound(2, (0, 1, 2), 38.0, "all 3 clients live")]


def test_one_void_round_is_tolerated_and_the_second_in_a_row_fails_the_run() -> None:
    rounds = opened(rounds=5)
    void = "deadline after 30 s: clients 1 and 2 missing; void: 1 update, the quorum is 2"
    play(rounds, (2, Received(0)))
    assert play(rounds, (31, Tick())) == [CloseRound(1, (0,), (1, 2), True, void)]
    assert play(rounds, (31, Settled())) == [OpenRound(2, (0, 1, 2), 61.0, "all 3 clients live")]
    assert play(rounds, (61, Tick()))[0].void
    (abort,) = play(rounds, (61, Settled()))
    assert abort.reason == (
        "2 void rounds in a row up to round 2, 1 tolerated; the last one: deadline after 30 s: clients 0, 1 and 2 "
        "missing; void: 0 updates, the quorum is 2"
    )
    assert rounds.phase is Phase.FAILED


def test_a_round_that_counts_forgives_the_void_one_before_it() -> None:
    rounds = opened(rounds=3)
    play(rounds, (31, Tick()), (31, Settled()))
    play(rounds, (32, Received(0)), (32, Received(1)), (32, Received(2)), (32, Settled()))
    assert play(rounds, (62, Tick()))[0].void
    assert play(rounds, (62, Settled())) == [Finish("all 3 rounds settled")]


def test_when_everybody_leaves_the_round_is_void_at_once() -> None:
    rounds = opened()
    reason = "nobody left to wait for: clients 0, 1 and 2 left; void: 0 updates, the quorum is 2"
    assert play(rounds, (2, Left(0)), (2, Left(1)), (2, Left(2))) == [CloseRound(1, (), (0, 1, 2), True, reason)]


def test_a_restart_opens_the_unsettled_round_again_with_a_fresh_deadline() -> None:
    rounds = machine(now=1000.0, next_round=2, received={1})
    assert (rounds.phase, rounds.round, rounds.received) == (Phase.WAITING, 1, (1,))
    assert play(rounds, *joined(1005.0)) == [OpenRound(2, (0, 1, 2), 1035.0, "all 3 clients live")]
    assert rounds.missing == (0, 2)
    with pytest.raises(IllegalEventError, match="received before"):
        rounds.apply(Received(1), 1006)
    play(rounds, (1006, Received(0)), (1006, Received(2)))
    assert play(rounds, (1007, Settled())) == [Finish("all 2 rounds settled")]


def test_a_durable_update_takes_part_even_if_its_client_never_comes_back() -> None:
    rounds = machine(now=1000.0, received={1})
    play(rounds, (1001, Joined(0)))
    reason = "after waiting 60 s, 1 of 3 clients live, clients 1 and 2 missing"
    assert play(rounds, (1060, Tick())) == [OpenRound(1, (0, 1), 1090.0, reason)]
    assert play(rounds, (1061, Received(0))) == [CloseRound(1, (0, 1), (), False, "all 2 participants submitted")]


def test_a_restart_with_every_update_durable_closes_as_soon_as_it_opens() -> None:
    rounds = machine(received={0, 1, 2})
    assert play(rounds, *joined()) == [
        OpenRound(1, (0, 1, 2), 31.0, "all 3 clients live"),
        CloseRound(1, (0, 1, 2), (), False, "all 3 participants submitted"),
    ]


@pytest.mark.parametrize(
    ("changes", "action"),
    [
        ({"next_round": 3}, Finish("all 2 rounds settled")),
        ({"next_round": 3, "void_rounds": 2}, Abort("2 void rounds in a row up to round 2, 1 tolerated")),
    ],
)
def test_a_restart_after_the_last_decision_repeats_it(changes: dict[str, Any], action: Any) -> None:
    rounds = machine(now=5.0, **changes)
    assert rounds.next_timer() == 5.0
    assert play(rounds, (5.0, Tick())) == [action]


@pytest.mark.parametrize(("clients", "quorum"), [(1, 1), (2, 2), (3, 2), (6, 4), (8, 6), (10, 7)])
def test_the_default_quorum_is_all_but_a_third(clients: int, quorum: int) -> None:
    assert default_quorum(clients) == quorum


def test_a_quorum_beyond_the_roster_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"\(3\) expected, got 4"):
        machine(quorum=4)


def in_phase(phase: Phase) -> RoundMachine:
    """Clients 0 and 1 live, 2 not; where a round is open, client 0's update has arrived."""
    rounds = machine()
    script: dict[Phase, list[tuple[float, Event]]] = {
        Phase.WAITING: [],
        Phase.OPEN: [(60, Tick()), (61, Received(0))],
        Phase.CLOSED: [(60, Tick()), (61, Received(0)), (61, Received(1))],
        Phase.FINISHED: [
            *[(60, Tick()), (61, Received(0)), (61, Received(1)), (62, Settled())],
            *[(63, Received(0)), (63, Received(1)), (64, Settled())],
        ],
        Phase.FAILED: [(60, Tick()), (90, Tick()), (90, Settled()), (120, Tick()), (120, Settled())],
    }
    play(rounds, *joined(clients=(0, 1)), *script[phase])
    assert rounds.phase is phase
    return rounds


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.OPEN, Phase.CLOSED])
def test_a_server_that_breaks_fails_the_run_for_its_own_reason(phase: Phase) -> None:
    rounds = in_phase(phase)
    number = rounds.round
    assert play(rounds, (70, Broke("no space left"))) == [Abort("no space left")]
    assert (rounds.phase, rounds.reason, rounds.round) == (Phase.FAILED, "no space left", number)
    assert (rounds.next_timer(), rounds.deadline) == (None, None)
    assert play(rounds, (71, Joined(2)), (1e9, Tick())) == [], "nothing follows"


def test_a_break_comes_before_whatever_else_is_due() -> None:
    assert play(opened(), (31, Broke("no space left"))) == [Abort("no space left")], "not the round's deadline"
    assert play(machine(next_round=3), (5, Broke("no space left"))) == [Abort("no space left")], "not the run's end"


def test_a_break_without_a_word_is_a_break() -> None:
    assert play(opened(), (2, Broke(""))) == [Abort("the server broke and left no word")]


ILLEGAL_EVERYWHERE = [Joined(0), Joined(9), Left(2), Left(9), Expired(2), Expired(9), Received(2), Received(9)]
ILLEGAL = [(phase, event) for phase in Phase for event in ILLEGAL_EVERYWHERE] + [
    (Phase.OPEN, Received(0)),
    *[(phase, Received(0)) for phase in Phase if phase is not Phase.OPEN],
    *[(phase, Settled()) for phase in Phase if phase is not Phase.CLOSED],
    (Phase.FINISHED, Broke("no space left")),
    (Phase.FAILED, Broke("no space left")),
]


@pytest.mark.parametrize(("phase", "event"), ILLEGAL, ids=str)
def test_an_illegal_event_changes_nothing_and_names_event_phase_and_client(phase: Phase, event: Event) -> None:
    rounds = in_phase(phase)
    before = dict(vars(rounds))
    with pytest.raises(IllegalEventError) as caught:
        rounds.apply(event, 1e9)
    assert vars(rounds) == before
    assert type(event).__name__ in str(caught.value)
    assert phase.name in str(caught.value)
    if hasattr(event, "client"):
        assert f"client={event.client}" in str(caught.value)


@pytest.mark.parametrize("phase", [Phase.FINISHED, Phase.FAILED])
def test_sessions_come_and_go_after_the_end_and_nothing_follows(phase: Phase) -> None:
    rounds = in_phase(phase)
    assert play(rounds, (1e9, Joined(2)), (1e9, Left(0)), (1e9, Expired(1)), (2e9, Tick())) == []
    assert (rounds.phase, rounds.live, rounds.next_timer()) == (phase, (2,), None)


def test_the_table_names_a_handler_for_every_phase() -> None:
    assert set(TRANSITIONS) == set(Phase)
    for handlers in TRANSITIONS.values():
        assert Tick in handlers
        assert all(callable(getattr(RoundMachine, name)) for name in handlers.values())


COMINGS = {0: Stay(), 1: Stay(), 2: Stay(), 3: Stay(join=2, leave=3, back=4)}


def comings(**changes: Any) -> RoundMachine:
    return machine(**{"clients": (0, 1, 2, 3), "stays": COMINGS, "rounds": 4, **changes})


def received(now: float, *clients: int) -> list[tuple[float, Event]]:
    return [(now, Received(client)) for client in clients]


def test_a_round_takes_those_that_it_expects_and_others_only_watch() -> None:
    rounds = comings()
    assert play(rounds, *joined(1, (3, 0, 1))) == []
    assert rounds.reason == "waiting 60 s at most for clients 0, 1 and 2", "client 3 is not waited for"
    assert play(rounds, (2, Joined(2))) == [OpenRound(1, (0, 1, 2), 32.0, "all 3 clients live")]
    with pytest.raises(IllegalEventError, match="no participant"):
        rounds.apply(Received(3), 3)
    play(rounds, *received(4, 0, 1, 2))
    assert play(rounds, (5, Settled())) == [OpenRound(2, (0, 1, 2, 3), 35.0, "all 4 clients live")]
    play(rounds, *received(6, 0, 1, 2, 3), (7, Left(3)), (8, Joined(3)))
    assert play(rounds, (9, Settled())) == [OpenRound(3, (0, 1, 2), 39.0, "all 3 clients live")]
    play(rounds, *received(10, 0, 1, 2))
    assert play(rounds, (11, Settled())) == [OpenRound(4, (0, 1, 2, 3), 41.0, "all 4 clients live")]


def test_a_round_waits_for_those_that_come_with_it_though_there_is_a_quorum() -> None:
    rounds = comings()
    play(rounds, *joined(1), *received(2, 0, 1, 2))
    assert play(rounds, (5, Settled())) == []
    assert (rounds.phase, rounds.next_timer(), rounds.reason) == (
        Phase.WAITING,
        65.0,
        "waiting 60 s at most for client 3",
    )
    assert play(rounds, (20, Joined(3))) == [OpenRound(2, (0, 1, 2, 3), 50.0, "all 4 clients live")]


def test_that_wait_is_bounded() -> None:
    rounds = comings()
    play(rounds, *joined(1), *received(2, 0, 1, 2), (5, Settled()))
    reason = "after waiting 60 s, 3 of 4 clients live, client 3 missing"
    assert play(rounds, (65, Tick())) == [OpenRound(2, (0, 1, 2), 95.0, reason)]


def test_that_wait_is_not_for_the_dead() -> None:
    rounds = comings()
    play(rounds, *joined(1), *received(2, 0, 1, 2), (3, Expired(0)), (3, Expired(2)), (4, Joined(0)), (5, Settled()))
    assert rounds.reason == "waiting 60 s at most for clients 2 and 3", "2 of the quorum of 3 are live"
    play(more := comings(quorum=2), *joined(1), *received(2, 0, 1, 2), (3, Expired(2)), (5, Settled()))
    assert more.reason == "waiting 60 s at most for client 3"
    state = "3 of 4 clients live, client 2 missing"
    assert play(more, (9, Joined(3))) == [OpenRound(2, (0, 1, 3), 39.0, state)]


def test_the_default_quorum_is_of_those_that_a_round_expects() -> None:
    stays = {0: Stay(), 1: Stay(leave=2), 2: Stay(leave=2)}
    rounds = machine(stays=stays)
    play(rounds, *joined(1), *received(2, 0))
    assert play(rounds, (31, Tick()))[0].void, "1 update of 3 clients"
    assert play(rounds, (32, Settled())) == [OpenRound(2, (0,), 62.0, "all 1 client live")]
    assert not play(rounds, (33, Received(0)))[0].void, "1 update of 1 client"


def test_a_restart_waits_for_those_that_its_round_expects() -> None:
    rounds = comings(next_round=3, received={1})
    assert play(rounds, *joined(5, (0, 1, 2))) == [OpenRound(3, (0, 1, 2), 35.0, "all 3 clients live")]
    again = comings(next_round=4)
    assert play(again, *joined(5, (0, 1, 2))) == []
    assert play(again, (6, Joined(3)))[0].participants == (0, 1, 2, 3)


def test_a_restart_does_not_wait_for_who_sent_its_last_update_and_left() -> None:
    rounds = comings(next_round=2, received={1, 3})
    assert play(rounds, *joined(5, (0, 2))) == []
    assert rounds.reason == "waiting 60 s at most for clients 0, 1 and 2", "client 1 goes on after this round"
    state = "3 of 4 clients live, client 3 missing"
    assert play(rounds, (6, Joined(1))) == [OpenRound(2, (0, 1, 2, 3), 36.0, state)]


def test_a_schedule_that_leaves_a_round_below_the_quorum_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"at least 4 clients in every round expected \(the quorum\), round 1 has 3"):
        comings(quorum=4)
