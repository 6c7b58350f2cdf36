"""The server under clients that lie, repeat themselves, come late or leave: over real sockets, message by message."""

from __future__ import annotations

import csv
import ctypes
import json
import mmap
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from steelyard.bundle import BundleFile, Manifest, TensorSpec, digest, raw
from steelyard.recording import Recordings, read_events
from steelyard.report.traffic import traffic
from steelyard.transport.base import SERVER, Transfer
from steelyard.wire import PROTOCOL_VERSION, pb

MakeFederation = Callable[..., Any]


def open_round(federation: Any, number: int = 1) -> tuple[list[Any], np.ndarray[Any, Any]]:
    """Three joined clients in an open round, and a small update that fits the model."""
    clients = [federation.client(k) for k in range(3)]
    for client in clients:
        assert client.join().refusal == ""
    for client in clients:
        client.wait_for(lambda s: s.phase == pb.OPEN and s.round == number and s.participating)
    vectors = [client.fetch(number) for client in clients]
    return clients, np.full_like(vectors[0], 0.001)


def test_every_fault_is_refused_by_name_and_the_round_goes_on(make_federation: MakeFederation) -> None:
    federation = make_federation()
    (a, b, c), update = open_round(federation)

    longer = np.concatenate([update, update[:1]])
    assert a.submit(1, update, sent=longer).refusal == "TOO_LARGE"
    assert a.submit(1, update, sent=update[:-1]).refusal == "TRUNCATED"
    assert a.submit(1, update, sent=update * 2).refusal == "BAD_DIGEST"
    poisoned = update.copy()
    poisoned[7] = np.nan
    assert a.submit(1, poisoned).refusal == "NOT_FINITE"
    poisoned[7] = np.inf
    assert a.submit(1, poisoned).refusal == "NOT_FINITE"
    for wrong in (0, 2, 4_000_000_000):
        assert a.submit(wrong, update).refusal == "WRONG_ROUND"
    foreign = Manifest((TensorSpec("other", "F32", (3,)),), digest(b"0" * 12))
    assert "other" in a.offer(1, foreign).receipt.detail
    huge = Manifest((TensorSpec("weight", "F32", (2**31, 2)),), "0" * 64)
    assert pb.Refusal.Name(a.offer(1, huge).receipt.refusal) == "BAD_LAYOUT"

    assert federation.stranger("not a token").join().refusal == "UNKNOWN_CLIENT"
    watching = b.states()  # a session whose stream is broken may be replaced, this one may not
    assert next(watching).phase == pb.OPEN
    assert federation.client(1).join().refusal == "ALREADY_LIVE"
    assert federation.client(1).join(protocol=PROTOCOL_VERSION + 1).refusal == "WRONG_PROTOCOL"

    for client in (a, b, c):
        assert client.submit(1, update).refusal == ""
    assert a.submit(1, update * 3).refusal == "EQUIVOCATION"
    closed = federation.await_event("round_closed", round=1)
    assert closed["received"] == [0, 1, 2]
    named = [event["refusal"] for event in federation.events("refused")]
    for refusal in ("TOO_LARGE", "TRUNCATED", "BAD_DIGEST", "NOT_FINITE", "WRONG_ROUND", "BAD_LAYOUT", "EQUIVOCATION"):
        assert refusal in named


def cached(path: Path) -> float:
    """The part of a file that the system's cache holds."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages)
        del start  # the mapping is closed behind it
        assert failed == 0
        return sum(page & 1 for page in pages) / len(pages)


@pytest.mark.parametrize("workers", [1, 2])
def test_settled_rounds_leave_the_file_cache(make_federation: MakeFederation, workers: int, tmp_path: Path) -> None:
    if subprocess.check_output(["stat", "-f", "-c", "%T", tmp_path], text=True).strip() == "tmpfs":
        pytest.skip("files of a tmpfs are never anywhere but in memory")
    federation = make_federation(rounds=3, scoring={"workers": workers})
    clients, update = open_round(federation)
    for number in (1, 2, 3):
        for client in clients:
            client.wait_for(lambda s, number=number: s.phase == pb.OPEN and s.round == number)
            assert client.submit(number, update).refusal == ""
        federation.await_event("scored", round=number)
    recordings = Recordings(federation.run)
    held = {number: {cached(path) for path in recordings.place(number).glob("*.safetensors")} for number in (1, 2, 3)}
    assert held == {1: {0.0}, 2: {0.0}, 3: {1.0}}


def test_the_same_update_again_gets_the_same_receipt(make_federation: MakeFederation) -> None:
    federation = make_federation()
    (a, b, c), update = open_round(federation)
    assert a.submit(1, update).refusal == ""
    assert a.submit(1, update).refusal == ""
    for client in (b, c):
        assert client.submit(1, update).refusal == ""
    federation.await_event("scored", round=1)
    assert a.submit(1, update).refusal == "", "an accepted update of a closed round keeps its receipt"
    assert len(federation.events("received", round=1)) == 3


def test_a_receipt_may_be_asked_for_after_the_next_round_has_opened(make_federation: MakeFederation) -> None:
    federation = make_federation()
    (a, b, c), update = open_round(federation)
    reply = a.send(1, update)
    for client in (b, c):
        assert client.submit(1, update).refusal == ""
    federation.await_event("round_opened", round=2)
    assert a.receipt(reply.transfer).refusal == "", "it was accepted, however late the client asks"
    assert not federation.events("refused")


def test_a_stale_update_is_refused_after_the_close(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol={"round_deadline_s": 1.5, "quorum": 2, "lease_s": 5.0})
    (a, b, c), update = open_round(federation)
    for client in (a, b):
        assert client.submit(1, update).refusal == ""
    closed = federation.await_event("round_closed", round=1)
    assert (closed["received"], closed["missing"], closed["void"]) == ([0, 1], [2], False)
    assert "client 2" in closed["reason"]
    assert c.submit(1, update).refusal in ("LATE", "WRONG_ROUND")


def test_a_transfer_of_another_client_is_refused(make_federation: MakeFederation) -> None:
    federation = make_federation()
    (a, b, _), update = open_round(federation)
    manifest = Manifest(a.specs, digest(raw(update)))
    reply = a.offer(1, manifest)
    stolen = b.plane.send(Transfer(id=reply.transfer, peer=SERVER, manifest=manifest), raw(update))
    assert "BAD_TRANSFER" in str(stolen.exception(30))
    assert b.receipt(reply.transfer).refusal == "BAD_TRANSFER"
    assert a.submit(1, update).refusal == "", "announcing anew replaces the transfer that was never used"


def test_requests_of_a_superseded_session_are_refused(make_federation: MakeFederation) -> None:
    federation = make_federation()
    (a, _, _), update = open_round(federation)
    session = a.session
    a.call("Leave", pb.LeaveRequest(session=session))
    reply = a.call("Heartbeat", pb.HeartbeatRequest(session=session))
    assert pb.Refusal.Name(reply.refusal) == "STALE_SESSION"
    assert a.join().refusal == "", "who left may come back"
    assert a.submit(1, update).refusal == "", "and before the close it is still a participant"


def test_a_client_that_left_is_not_waited_for(make_federation: MakeFederation) -> None:
    federation = make_federation()
    (a, b, c), update = open_round(federation)
    for client in (a, b):
        assert client.submit(1, update).refusal == ""
    c.call("Leave", pb.LeaveRequest(session=c.session))
    closed = federation.await_event("round_closed", round=1)
    assert closed["missing"] == [2]


def test_a_dead_client_counts_as_gone_after_its_lease_and_its_value_is_zero(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol={"round_deadline_s": 2.0, "lease_s": 1.0, "quorum": 2})
    (a, b, _), update = open_round(federation)
    for client in (a, b):
        assert client.submit(1, update).refusal == ""
    federation.await_event("scored", round=1)
    with (federation.run / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["client"] == "2"]
    assert [(row["value"], row["evaluated"]) for row in rows] == [("0.0", "0"), ("0.0", "0")]
    federation.await_event("expired", client=2)


def test_below_quorum_the_round_is_void_and_the_model_stays(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol={"round_deadline_s": 1.0, "lease_s": 60.0, "quorum": 2, "max_void_rounds": 0})
    clients, update = open_round(federation)
    assert clients[0].submit(1, update).refusal == ""
    closed = federation.await_event("round_closed", round=1)
    assert closed["void"]
    for client in clients:  # the server's farewell waits for them
        client.call("Leave", pb.LeaveRequest(session=client.session))
    assert federation.wait() == 1
    assert "void" in federation.await_event("failed")["reason"]
    recordings = Recordings(federation.run)
    models = [BundleFile.open(recordings.global_file(number)).manifest.sha256 for number in (1, 2)]
    assert models[0] == models[1]


def test_a_server_killed_mid_round_goes_on_with_what_it_had(make_federation: MakeFederation) -> None:
    federation = make_federation()
    (a, _, _), update = open_round(federation)
    assert a.submit(1, update).refusal == ""
    federation.kill()
    federation.start()
    clients = [federation.client(k) for k in range(3)]
    for client in clients:
        assert client.join().refusal == ""
    state = clients[0].wait_for(lambda s: s.phase == pb.OPEN)
    assert (state.round, state.submitted, state.incarnation) == (1, True, 2)
    for client in clients[1:]:
        client.fetch(1)
        assert client.submit(1, update).refusal == ""
    assert federation.await_event("round_closed", round=1)["received"] == [0, 1, 2]


def forget(run: Path, *names: str) -> None:
    """Take events out of the log, as if the server had been killed before it wrote them."""
    kept = [event for event in read_events(run) if event["event"] not in names]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in kept), encoding="utf-8")


def test_an_update_that_a_killed_server_kept_and_did_not_tell_is_told_once(make_federation: MakeFederation) -> None:
    federation = make_federation()
    (a, _, _), update = open_round(federation)
    assert a.submit(1, update).refusal == ""
    federation.kill()
    (before,) = federation.events("received")
    forget(federation.run, "received")
    for _ in range(2):
        federation.start()
        federation.kill()
        (after,) = federation.events("received")
        assert {**after, "time": 0, "seconds": 0} == {**before, "time": 0, "seconds": 0}
    assert federation.events("round_closed") == []


def test_a_server_whose_log_is_full_says_so_and_goes_on_once_there_is_room(make_federation: MakeFederation) -> None:
    federation = make_federation()
    federation.kill()
    with (federation.run / "events.jsonl").open("a", encoding="utf-8") as log:
        log.writelines(json.dumps({"event": "padding", "text": "-" * 1000}) + "\n" for _ in range(200))
    federation.start()
    (a, b, c), update = open_round(federation)
    size = (federation.run / "events.jsonl").stat().st_size
    assert update.nbytes * 2 < size, "the log alone is to reach the limit"
    assert federation.server is not None
    resource.prlimit(federation.server.pid, resource.RLIMIT_FSIZE, (size, size))
    assert a.submit(1, update).refusal == "LATE"
    reason = "taking client 0's update of round 1 failed: OSError(27, 'File too large')"
    assert b.wait_for(lambda state: state.phase == pb.FAILED).reason == reason
    for client in (a, b, c):  # or the server would give them time for it
        client.call("Leave", pb.LeaveRequest(session=client.session))
    assert federation.wait() == 1
    assert federation.log.read_text(encoding="utf-8").splitlines()[-1] == f"steelyard: {reason}"
    federation.start()
    (received,) = federation.events("received")
    assert (received["client"], received["sha256"]) == (0, digest(raw(update)))


def test_a_round_that_a_killed_server_closed_and_did_not_tell_is_told_and_settled(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation()
    clients, update = open_round(federation)
    for client in clients:
        assert client.submit(1, update).refusal == ""
    closed = federation.await_event("round_closed", round=1)
    federation.await_event("round_opened", round=2)
    federation.kill()
    (federation.run / "metrics.csv").unlink()  # what follows from the closing had not come about
    forget(federation.run, "round_closed", "scored")
    federation.start()
    (again,) = federation.events("round_closed", round=1)
    assert {**again, "time": 0} == {**closed, "time": 0}
    federation.await_event("scored", round=1)
    rows = [row for row in traffic(read_events(federation.run)) if row.round == 1]
    assert [(row.client, row.idle_seconds is not None) for row in rows] == [(0, True), (1, True), (2, True)]


def test_a_watch_of_nobody_is_refused(make_federation: MakeFederation) -> None:
    federation = make_federation()
    client = federation.client(0)
    client.session = "no such session"
    with pytest.raises(grpc.RpcError) as refused:
        next(client.states())
    assert "STALE_SESSION" in str(refused.value.details())
