"""The run directory's files as the server leaves them, also when it is killed between any two writes."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import server.ledger
from server.ledger import METRICS, SCORES, Ledger
from steelyard.errors import UserError
from steelyard.recording import read_events
from steelyard.report.seen import seen
from steelyard.report.traffic import account


def score(number: int, client: int, value: float = 0.1) -> dict[str, Any]:
    return {**dict.fromkeys(SCORES, 0), "round": number, "client": client, "evaluator": "loo", "value": value}


def metric(number: int, **changes: Any) -> dict[str, Any]:
    return {**dict.fromkeys(METRICS, ""), "round": number, "accuracy": 0.5, **changes}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "run")
    yield ledger
    ledger.close()


def reopened(run: Path) -> Ledger:
    ledger = Ledger(run)
    ledger.close()
    return ledger


def test_a_fresh_run_has_nothing(ledger: Ledger) -> None:
    assert (ledger.incarnation, ledger.settled_rounds, read_events(ledger.run)) == (1, 0, [])
    assert not (ledger.run / "metrics.csv").exists()


def test_an_event_is_there_at_once(ledger: Ledger) -> None:
    ledger.event("joined", client=3, detail="é\n")
    (event,) = read_events(ledger.run)
    assert (event["event"], event["client"], event["detail"]) == ("joined", 3, "é\n")
    assert set(event) == {"time", "event", "client", "detail"}


@pytest.mark.parametrize("name", ["refused", "upload_failed", "fetch_failed"])
def test_a_flood_of_faults_stays_small_and_is_counted(ledger: Ledger, name: str) -> None:
    for _ in range(5000):
        ledger.counted(name, 3, detail="no")
    ledger.counted(name, None)
    ledger.counted("another", 3)
    found = [(event["event"], event["client"], event["number"]) for event in read_events(ledger.run)]
    listed = [*range(1, 101), 128, 256, 512, 1024, 2048, 4096]
    assert found == [*((name, 3, n) for n in listed), (name, None, 1), ("another", 3, 1)]


@pytest.mark.parametrize("kills", [0, 3])
def test_a_flood_of_transfers_stays_small_and_the_report_has_them_all(ledger: Ledger, kills: int) -> None:
    """Killed between rounds, too: a closed round holds nothing back."""
    every: list[dict[str, Any]] = []
    for number in range(1, 5):
        opened = {"round": number, "participants": [0, 1]}
        ledger.event("round_opened", **opened)
        every.append({"event": "round_opened", **opened})
        for name, client, times in (("fetched", 0, 5000), ("fetch_failed", 0, 700), ("upload_failed", 1, 300 + number)):
            for n in range(times):
                fields = {"round": number, "seconds": 0.25, **({} if name == "fetch_failed" else {"bytes": n})}
                ledger.counted(name, client, **fields)
                every.append({"event": name, "client": client, **fields})
        ledger.tell_held(number)
        ledger.event("round_closed", round=number)
        every.append({"event": "round_closed", "round": number, "time": 0})
        if number <= kills:
            ledger._events.close()  # as a kill does: nothing is told
            ledger = Ledger(ledger.run)
    ledger.close()
    found = read_events(ledger.run)
    assert len(found) < 4 * (2 + 3 * (100 + 7))
    assert account(found) == account(every)
    (ledger.run / "roles" / "client-0").mkdir(parents=True)
    assert seen(ledger.run, found) == seen(ledger.run, every)


def test_what_was_left_out_is_there_when_the_log_is_closed(ledger: Ledger) -> None:
    for _ in range(300):
        ledger.counted("joined", 3)
    ledger.counted("joined", 4)
    ledger.close()
    lines = read_events(ledger.run)
    assert [(line["number"], line["count"]) for line in lines[100:]] == [(128, 28), (256, 128), (1, 1), (300, 44)]


def test_transfers_that_fail_now_and_then_are_all_told(ledger: Ledger) -> None:
    """A report counts them, whatever the length of the run."""
    for number in range(1, 301):
        ledger.counted("upload_failed", 3, round=number)
    assert [event["number"] for event in read_events(ledger.run)] == [1] * 300


def test_events_of_many_threads_are_whole_lines(ledger: Ledger) -> None:
    threads = [
        threading.Thread(target=lambda k=k: [ledger.event("x", who=k, pad="y" * 5000) for _ in range(20)])  # type: ignore[misc]  # k is bound here
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(event["who"] for event in read_events(ledger.run)) == sorted([0, 1, 2, 3] * 20)


def test_settled_rounds_are_in_both_files_to_the_last_bit(ledger: Ledger) -> None:
    ledger.settle([score(1, 0, 0.1 + 0.2), score(1, 1, -0.0)], metric(1, accuracy=1 / 3, seconds=2))
    ledger.settle([score(2, 0, np.float64(1e-17))], metric(2))
    assert [row["value"] for row in rows(ledger.run / "scores.csv")] == ["0.30000000000000004", "-0.0", "1e-17"]
    assert [(row["round"], row["accuracy"]) for row in rows(ledger.run / "metrics.csv")] == [
        ("1", "0.3333333333333333"),
        ("2", "0.5"),
    ]
    assert ledger.settled_rounds == 2
    assert (ledger.run / "scores.csv").read_text().splitlines()[0] == ",".join(SCORES)
    assert (ledger.run / "metrics.csv").read_text().splitlines()[0] == ",".join(METRICS)


def test_numpys_single_precision_keeps_its_bits_too(ledger: Ledger) -> None:
    value = np.float32(0.1)
    ledger.settle([score(1, 0, value)], metric(1))  # type: ignore[arg-type]  # what must not slip through
    (row,) = rows(ledger.run / "scores.csv")
    assert float(row["value"]) == float(value) != 0.1


def test_a_missing_column_is_our_own_mistake_and_settles_nothing(ledger: Ledger) -> None:
    with pytest.raises(KeyError):
        ledger.settle([score(1, 0)], {"round": 1})
    with pytest.raises(KeyError):
        ledger.settle([{"round": 1}], metric(1))
    ledger.settle([score(1, 0)], metric(1))
    assert len(rows(ledger.run / "scores.csv")) == 1


def test_opening_again_continues(ledger: Ledger) -> None:
    ledger.event("server_started")
    ledger.settle([score(1, 0)], metric(1))
    again = Ledger(ledger.run)
    assert (again.incarnation, again.settled_rounds) == (2, 1)
    again.event("server_started")
    again.settle([score(2, 0)], metric(2))
    again.close()
    assert [row["round"] for row in rows(again.run / "scores.csv")] == ["1", "2"]
    assert len(read_events(again.run)) == 2
    assert reopened(again.run).incarnation == 3


def test_a_server_killed_before_it_started_serving_is_no_incarnation(ledger: Ledger) -> None:
    ledger.event("scored", round=1)
    assert reopened(ledger.run).incarnation == 1


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_a_kill_cut_is_dropped_and_the_next_is_whole(ledger: Ledger, cut: int) -> None:
    ledger.event("server_started")
    ledger.event("joined", client=0)
    path = ledger.run / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [event["event"] for event in read_events(ledger.run)] == ["server_started"]
    again = Ledger(ledger.run)
    again.event("left", client=0)
    again.close()
    assert [event["event"] for event in read_events(ledger.run)] == ["server_started", "left"]


def test_a_first_line_that_a_kill_cut_leaves_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"time": 1')
    assert reopened(tmp_path).incarnation == 1
    assert (tmp_path / "events.jsonl").read_bytes() == b""


@pytest.mark.parametrize("name", ["scores.csv", "metrics.csv"])
def test_files_that_somebody_cut_are_refused_and_not_written_anew(ledger: Ledger, name: str) -> None:
    ledger.settle([score(1, 0)], metric(1, model_sha256="abcd"))
    cut = (ledger.run / name).read_bytes()[:-2]
    (ledger.run / name).write_bytes(cut)
    with pytest.raises(UserError, match=f"{name}, line 2: an end of the line expected, got none: the file may be cut"):
        Ledger(ledger.run)
    assert (ledger.run / name).read_bytes() == cut


def test_a_kill_between_scores_and_metrics_leaves_the_round_unsettled(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics mark a round as settled, so they are written last, and scores without them are dropped."""
    ledger.settle([score(1, 0)], metric(1))
    write_text = server.ledger.write_text

    def killed_at_metrics(path: Path, text: str) -> None:
        if path.name == "metrics.csv":
            raise InterruptedError
        write_text(path, text)

    monkeypatch.setattr(server.ledger, "write_text", killed_at_metrics)
    with pytest.raises(InterruptedError):
        ledger.settle([score(2, 0, 7.0), score(2, 1, 7.0)], metric(2))
    monkeypatch.undo()
    assert len(rows(ledger.run / "scores.csv")) == 3
    again = Ledger(ledger.run)
    assert again.settled_rounds == 1
    again.settle([score(2, 0, 8.0)], metric(2))
    again.close()
    assert [row["value"] for row in rows(ledger.run / "scores.csv")] == ["0.1", "8.0"]
    assert [row["round"] for row in rows(ledger.run / "metrics.csv")] == ["1", "2"]


def test_a_reason_with_commas_and_lines_stays_one_field(ledger: Ledger) -> None:
    ledger.settle([], metric(1, missing='a, "b"\nc'))
    assert reopened(ledger.run).settled_rounds == 1
    assert rows(ledger.run / "metrics.csv")[0]["missing"] == 'a, "b"\nc'


def test_every_line_of_the_log_is_json_without_surprises(ledger: Ledger) -> None:
    ledger.event("joined", client=0)
    line = (ledger.run / "events.jsonl").read_text()
    assert line.count("\n") == 1
    assert json.loads(line)["client"] == 0
