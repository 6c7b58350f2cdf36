"""The coordinator with the in-process plane: what comes of clients that come and go, of full disks and slow ones."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import uploads
from server.coordinator import Coordinator
from server.ledger import Ledger
from server.rounds import RoundMachine
from server.sessions import Sessions
from server.uploads import Receipt
from steelyard.bundle import Manifest, TensorSpec, digest, raw, write
from steelyard.errors import RefusedError, RunFailedError, WaitTimeoutError
from steelyard.recording import ClosedRound, Recordings, read_events
from steelyard.report.traffic import traffic
from steelyard.transport.base import SERVER, Transfer
from steelyard.transport.memory import MemoryHub

PATIENCE_S = 30.0
SPECS = (TensorSpec("weight", "F32", (3,)),)
UPDATE = np.array([1.0, 2.0, 3.0], np.float32)
MANIFEST = Manifest(SPECS, digest(raw(UPDATE)))


class Bench:
    """A coordinator of two clients with a quorum of one; `settle` copies the model on, after what a test does."""

    def __init__(
        self, run: Path, settling: Callable[[Bench], None] = lambda _bench: None, lease_s: float = 60.0
    ) -> None:
        self.run = run
        self.settling = settling
        self.recordings = Recordings(run)
        write(self.recordings.global_file(1), SPECS, raw(np.zeros(3, np.float32)))
        self.ledger = Ledger(run)
        machine = RoundMachine(
            clients=(0, 1),
            rounds=2,
            quorum=1,
            round_deadline_s=PATIENCE_S,
            join_timeout_s=PATIENCE_S,
            max_void_rounds=0,
            now=time.monotonic(),
        )
        self.coordinator = Coordinator(
            machine=machine,
            sessions=Sessions(lease_s),
            recordings=self.recordings,
            ledger=self.ledger,
            specs=SPECS,
            settle=self.settle,
        )
        self.hub = MemoryHub()
        self.coordinator.attach(self.hub.server(self.coordinator.bytes_arrived))
        self.sessions = {k: self.coordinator.join(k).id for k in (0, 1)}

    def settle(self, closed: ClosedRound) -> None:
        write(self.recordings.global_file(closed.round + 1), SPECS, raw(np.zeros(3, np.float32)))
        self.settling(self)

    def offer(self, client: int) -> str:
        transfer = self.coordinator.submit(client, self.sessions[client], 1, MANIFEST, PATIENCE_S)
        assert isinstance(transfer, Transfer)
        return transfer.id

    def send(self, client: int, transfer: str, update: np.ndarray[Any, Any] = UPDATE) -> None:
        ours = Transfer(id=transfer, peer=SERVER, manifest=MANIFEST)
        self.hub.client(client).send(ours, raw(update)).exception(PATIENCE_S)

    def submit(self, client: int) -> None:
        self.send(client, self.offer(client))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run) if event["event"] == name]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes a bench; closes its event log."""
    made: list[Bench] = []

    def make(*arguments: Any, **options: Any) -> Bench:
        made.append(Bench(tmp_path, *arguments, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.ledger.close()


def test_a_client_that_comes_and_goes_does_not_fill_the_event_log(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    for _ in range(300):
        bench.coordinator.leave(0, bench.sessions[0])
        bench.sessions[0] = bench.coordinator.join(0).id
    for name in ("joined", "left"):
        numbers = [event["number"] for event in bench.events(name) if event["client"] == 0]
        assert numbers == [*range(1, 101), 128, 256]


def test_a_client_that_fetches_in_a_loop_does_not_fill_the_event_log_and_the_report_has_every_byte(
    make_bench: Callable[..., Bench],
) -> None:
    bench, fetches, model = make_bench(), {0: 300, 1: 1}, np.zeros(3, np.float32)
    for client, times in fetches.items():
        for _ in range(times):
            offered = bench.coordinator.fetch(client, bench.sessions[client], 1)
            bench.hub.client(client).receive(offered, raw(model)).result(PATIENCE_S)
        bench.submit(client)  # after the second one the round closes
    assert len(bench.events("fetched")) == 100 + 2 + 1 + 1
    rows = {row.client: row for row in traffic(read_events(bench.run))}
    for client, times in fetches.items():
        assert (rows[client].bytes_down, rows[client].retries) == (times * model.nbytes, times - 1)


def test_a_client_whose_lease_ran_out_during_scoring_is_not_in_the_next_round(make_bench: Callable[..., Bench]) -> None:
    def die(bench: Bench) -> None:
        if not bench.events("expired"):
            threading.Event().wait(1.0)  # both leases run out, and client 0 renews its own
            bench.coordinator.heartbeat(0, bench.sessions[0])
            bench.settling = lambda _bench: None

    bench = make_bench(die, lease_s=0.9)
    for client in (0, 1):
        bench.submit(client)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(bench.coordinator.run)
        stop = threading.Event()
        while len(bench.events("round_opened")) < 2 and not run.done():
            assert not stop.wait(0.05)
        bench.coordinator.fail("the test has seen enough")
        assert "enough" in str(run.exception(PATIENCE_S))
    assert [event["participants"] for event in bench.events("round_opened")] == [[0, 1], [0]]


def test_a_run_that_breaks_during_scoring_says_why(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(lambda bench: bench.coordinator.fail("the model could not be sent"))
    for client in (0, 1):
        bench.submit(client)
    with pytest.raises(RunFailedError, match="could not be sent"):
        bench.coordinator.run()


def test_a_client_that_joins_a_broken_run_and_dies_does_not_hide_why_it_broke(make_bench: Callable[..., Bench]) -> None:
    def break_down(bench: Bench) -> None:
        bench.coordinator.leave(0, bench.sessions[0])
        bench.coordinator.fail("the model could not be sent")
        bench.coordinator._sessions.lease_s = 0.1
        bench.coordinator.join(0)
        threading.Event().wait(0.2)  # its lease runs out

    bench = make_bench(break_down)
    for client in (0, 1):
        bench.submit(client)
    with pytest.raises(RunFailedError, match="could not be sent"):
        bench.coordinator.run()


def test_an_update_that_the_server_cannot_keep_ends_the_run(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    transfer = bench.offer(0)
    (part,) = bench.recordings.round_folder(1).glob("*.part")
    part.unlink()  # the disk is taken away while bytes arrive
    bench.send(0, transfer)
    with pytest.raises(RunFailedError, match="client 0's update of round 1"):
        bench.coordinator.run()


@contextlib.contextmanager
def full_disk(ledger: Ledger) -> Iterator[None]:
    """The disk of the event log is full; what could not be written is, with the next event after that."""
    log = ledger._events.fileno()
    kept = os.dup(log)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), log)
    try:
        yield
    finally:
        os.dup2(kept, log)
        os.close(kept)


def test_an_update_that_can_be_neither_kept_nor_logged_has_a_receipt_and_ends_the_run(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    transfer = bench.offer(0)
    (part,) = bench.recordings.round_folder(1).glob("*.part")
    part.unlink()
    with full_disk(bench.ledger):
        bench.send(0, transfer)
        assert bench.coordinator.receipt(0, bench.sessions[0], transfer, 0.0).refusal == "LATE"
        with pytest.raises(RunFailedError, match="client 0's update of round 1 failed: FileNotFoundError"):
            bench.coordinator.run()


def test_a_refused_update_that_cannot_be_logged_has_its_receipt_and_ends_the_run(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    transfer = bench.offer(0)
    with full_disk(bench.ledger):
        bench.send(0, transfer, UPDATE * 2)
        assert bench.coordinator.receipt(0, bench.sessions[0], transfer, 0.0).refusal == "BAD_DIGEST"
        with pytest.raises(RunFailedError, match=r"client 0's update of round 1 failed: OSError.*No space"):
            bench.coordinator.run()


@pytest.mark.parametrize("what", ["a goodbye", "a refusal"])
def test_what_cannot_be_logged_ends_the_run_and_waits_for_nobody(what: str, make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    with full_disk(bench.ledger):
        if what == "a goodbye":
            bench.coordinator.leave(0, bench.sessions[0])
        else:
            bench.coordinator.refused(0, "Submit", RefusedError("LATE", "the round is closed"))
    with pytest.raises(RunFailedError, match=r"writing the event log failed: .*No space"):
        bench.coordinator.run()


def test_an_update_that_is_durable_and_could_not_be_logged_is_not_told_as_accepted(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    transfer = bench.offer(0)
    with full_disk(bench.ledger):
        bench.send(0, transfer)
    assert bench.coordinator.receipt(0, bench.sessions[0], transfer, 0.0).refusal == "LATE"
    with pytest.raises(RefusedError, match=r"WRONG_ROUND: round 1 \(FAILED\)"):
        bench.offer(0)
    assert list(bench.recordings.updates(1)) == [0], "the server that continues the run counts it"


def test_a_late_update_that_a_killed_server_left_is_not_told_as_accepted(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.submit(1)
    bench.coordinator.leave(0, bench.sessions[0])  # the round closes without it
    write(bench.recordings.update_file(1, 0), SPECS, raw(UPDATE))  # durable too late, and not yet dropped
    bench.sessions[0] = bench.coordinator.join(0).id
    with pytest.raises(RefusedError, match="LATE: round 1 is closed"):
        bench.offer(0)
    accepted = bench.coordinator.submit(1, bench.sessions[1], 1, MANIFEST, PATIENCE_S)
    assert accepted == Receipt(round=1, sha256=MANIFEST.sha256)


def test_an_update_that_a_closed_round_counts_is_kept_and_told_so_when_the_log_cannot_be_written(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, write_event = make_bench(), Ledger.event

    def full(ledger: Ledger, name: str, **fields: Any) -> None:
        if name == "round_closed":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_event(ledger, name, **fields)

    monkeypatch.setattr(Ledger, "event", full)
    bench.submit(0)
    transfer = bench.offer(1)
    bench.send(1, transfer)
    told = bench.coordinator.receipt(1, bench.sessions[1], transfer, 0.0)
    assert told == bench.coordinator.submit(1, bench.sessions[1], 1, MANIFEST, PATIENCE_S)
    assert told == Receipt(round=1, sha256=MANIFEST.sha256)
    with pytest.raises(RunFailedError, match=r"client 1's update of round 1 failed: OSError.*No space"):
        bench.coordinator.run()
    closed = bench.recordings.closed(1)
    assert closed is not None
    assert sorted(bench.recordings.updates(1)) == list(closed.received) == [0, 1]


def test_a_file_that_takes_long_to_make_keeps_nobody_waiting_but_its_client(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system without fallocate, where the whole file is written."""
    bench, begun, go_on, allocate = make_bench(), threading.Event(), threading.Event(), os.posix_fallocate

    def slowly(*where: int) -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        allocate(*where)

    monkeypatch.setattr(os, "posix_fallocate", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bench.offer, 0)
        assert begun.wait(PATIENCE_S)
        pool.submit(bench.coordinator.heartbeat, 1, bench.sessions[1]).result(PATIENCE_S)
        with pytest.raises(WaitTimeoutError, match="client 0's update was not durable within 0 s"):
            bench.coordinator.submit(0, bench.sessions[0], 1, MANIFEST, 0.0)
        go_on.set()
        bench.send(0, first.result(PATIENCE_S))
        assert len(bench.events("received")) == 1

        begun.clear()
        go_on.clear()
        late = pool.submit(bench.offer, 1)
        assert begun.wait(PATIENCE_S)
        bench.coordinator.leave(1, bench.sessions[1])  # the round closes
        bench.sessions[1] = bench.coordinator.join(1).id
        go_on.set()
        error = late.exception(PATIENCE_S)
    assert isinstance(error, RefusedError)
    assert error.refusal == "STALE_SESSION"
    assert not list(bench.recordings.round_folder(1).glob("*.part"))


def test_a_refused_update_does_not_end_the_wait_for_one_whose_file_is_being_made(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, begun, go_on, allocate = make_bench(), threading.Event(), threading.Event(), os.posix_fallocate
    second: Future[str] | None = None

    def slowly(*where: int) -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        allocate(*where)

    def refused(*_update: Any) -> RefusedError:
        monkeypatch.undo()
        monkeypatch.setattr(os, "posix_fallocate", slowly)
        nonlocal second
        second = pool.submit(bench.offer, 0)
        assert begun.wait(PATIENCE_S)
        return RefusedError("NOT_FINITE", "a value is no number")

    bench.submit(1)
    first = bench.offer(0)
    monkeypatch.setattr(uploads, "fault_of", refused)
    with ThreadPoolExecutor(1) as pool:
        bench.send(0, first)
        assert len(bench.events("upload_failed")) == 1
        go_on.set()
        assert second is not None
        bench.send(0, second.result(PATIENCE_S))
    assert [event["client"] for event in bench.events("received")] == [1, 0]


def test_an_update_that_crosses_a_slow_commit_ends_with_its_time(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    transfer = bench.offer(0)
    upload = bench.coordinator._uploads._in_flight[0]
    upload.claimed = True  # as while the disk takes its time
    with pytest.raises(WaitTimeoutError, match=r"client 0's update was not durable within 0\.1 s"):
        bench.coordinator.submit(0, bench.sessions[0], 1, MANIFEST, 0.1)
    upload.claimed = False
    bench.send(0, transfer)
    assert len(bench.events("received")) == 1
