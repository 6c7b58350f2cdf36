"""Sessions by hand: one per client, leases of 10 s on a clock that the test sets."""

import pytest

from server.sessions import Session, Sessions
from steelyard.errors import RefusedError


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(lease_s=10.0)


def refusal(caught: pytest.ExceptionInfo[RefusedError]) -> str:
    assert "\n" not in caught.value.detail
    return caught.value.refusal


def test_a_session_lives_for_its_lease(sessions: Sessions) -> None:
    session = sessions.open(3, now=100.0)
    assert (session.client, session.expires, sessions.live, sessions.next_expiry()) == (3, 110.0, (3,), 110.0)
    assert sessions.expire(109.9) == ()
    assert sessions.expire(110.0) == (3,)
    assert (sessions.live, sessions.next_expiry()) == ((), None)


def test_ids_are_long_and_never_the_same(sessions: Sessions) -> None:
    ids = {sessions.open(k, 0.0).id for k in range(100)}
    assert len(ids) == 100
    assert {len(id_) for id_ in ids} == {32}


def test_a_request_renews_the_lease(sessions: Sessions) -> None:
    session = sessions.open(3, 100.0)
    assert sessions.get(session.id, 3, 108.0) is session
    assert session.expires == 118.0
    sessions.renew(3, 117.0)
    assert sessions.next_expiry() == 127.0


def test_bytes_of_a_client_without_a_session_renew_nothing(sessions: Sessions) -> None:
    sessions.renew(3, 100.0)
    assert sessions.live == ()


def test_an_identity_has_one_session(sessions: Sessions) -> None:
    first = sessions.open(3, 100.0)
    with pytest.raises(RefusedError, match=r"client 3 has a live session; free again 6\.0 s after") as caught:
        sessions.open(3, 104.0)
    assert refusal(caught) == "ALREADY_LIVE"
    assert sessions.get(first.id, 3, 105.0) is first, "the refused one did no harm"
    assert sessions.open(4, 104.0).client == 4


def test_an_identity_is_free_again_when_its_lease_is_over(sessions: Sessions) -> None:
    first = sessions.open(3, 100.0)
    second = sessions.open(3, 110.0)
    with pytest.raises(RefusedError) as caught:
        sessions.get(first.id, 3, 111.0)
    assert refusal(caught) == "STALE_SESSION"
    assert second.expires == 120.0, "a stale request renews nobody's lease"
    assert (sessions.is_current(first), sessions.is_current(second)) == (False, True)


@pytest.mark.parametrize(("streams", "watching", "replaceable"), [(0, 0, False), (1, 1, False), (1, 0, True)])
def test_only_a_session_whose_stream_broke_may_be_replaced_early(
    sessions: Sessions, streams: int, watching: int, replaceable: bool
) -> None:
    first = sessions.open(3, 100.0)
    first.streams, first.watching = streams, watching
    if replaceable:
        assert sessions.open(3, 101.0).id != first.id
    else:
        with pytest.raises(RefusedError, match="ALREADY_LIVE"):
            sessions.open(3, 101.0)


def test_a_session_is_its_clients_alone(sessions: Sessions) -> None:
    session = sessions.open(3, 100.0)
    sessions.open(4, 100.0)
    for client, session_id in ((4, session.id), (5, session.id), (3, ""), (3, session.id + "0")):
        with pytest.raises(RefusedError) as caught:
            sessions.get(session_id, client, 101.0)
        assert refusal(caught) == "STALE_SESSION"


def test_closing_ends_a_session_once_and_for_all(sessions: Sessions) -> None:
    session = sessions.open(3, 100.0)
    sessions.close(3)
    sessions.close(3)
    assert not sessions.is_current(session)
    with pytest.raises(RefusedError, match="STALE_SESSION"):
        sessions.get(session.id, 3, 101.0)
    assert sessions.open(3, 101.0).expires == 111.0


def test_an_expired_session_does_not_come_back_by_a_late_request(sessions: Sessions) -> None:
    session = sessions.open(3, 100.0)
    sessions.expire(110.0)
    with pytest.raises(RefusedError, match="STALE_SESSION"):
        sessions.get(session.id, 3, 110.5)


def test_clients_are_told_in_order(sessions: Sessions) -> None:
    for client, now in ((5, 100.0), (1, 102.0), (3, 101.0)):
        sessions.open(client, now)
    assert (sessions.live, sessions.next_expiry()) == ((1, 3, 5), 110.0)
    assert sessions.expire(111.5) == (3, 5)
    assert sessions.live == (1,)


def test_a_session_nobody_knows_is_not_current(sessions: Sessions) -> None:
    assert not sessions.is_current(Session("x", 3, 1e9))
