"""Absent, late, leaving and returning clients, colluding ones too: whole runs over real sockets, in one process."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from deploy.inline import run_inline
from deploy.prepare import prepare
from scripts.replay import replay
from steelyard.config import Experiment
from steelyard.parsing import parse
from steelyard.recording import ROLES, Recordings, read_events

TABLE: dict[str, Any] = {
    "name": "comings",
    "seed": 3,
    "rounds": 4,
    "clients": {"count": 4},
    "data": {"samples_per_client": 20, "validation": 20, "test": 20},
    "training": {"epochs": 1},
    "evaluators": [{"name": "loo_loss", "kind": "loo", "utility": "loss"}],
}
COMINGS = {
    "count": 4,
    "absent": [1],
    "schedule": [{"client": 0, "leave": 2, "return": 3}, {"client": 2, "join": 2, "leave": 4}],
}
PARTICIPANTS = [[0, 3], [2, 3], [0, 2, 3], [0, 3]]


def finished(run: Path, order: tuple[int, ...], **changes: Any) -> Path:
    prepare(parse(Experiment, {**TABLE, **changes}, "test"), run / ROLES)
    run_inline(run / ROLES, run, order)
    return run


def values(run: Path) -> dict[tuple[int, int], tuple[str, str]]:
    with (run / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(int(row["round"]), int(row["client"])): (row["value"], row["evaluated"]) for row in rows}


def events(run: Path, name: str, key: str) -> list[Any]:
    return [event[key] for event in read_events(run) if event["event"] == name]


@pytest.fixture(scope="module")
def comings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("comings"), (0, 2, 3), clients=COMINGS)


def test_a_round_has_those_that_the_schedule_expects(comings: Path) -> None:
    assert events(comings, "round_opened", "participants") == PARTICIPANTS
    assert events(comings, "round_closed", "received") == PARTICIPANTS
    assert events(comings, "refused", "refusal") == [], "who leaves as scheduled does nothing wrong"


def test_a_leaver_says_goodbye_and_one_that_returns_joins_anew(comings: Path) -> None:
    sessions = [event for event in read_events(comings) if event["event"] in ("joined", "left")]
    for client, expected in ((0, ["joined", "left", "joined"]), (2, ["joined", "left"])):
        assert [event["event"] for event in sessions if event["client"] == client][:3] == expected
    assert sorted(events(comings, "joined", "client")) == [0, 0, 2, 3]


def test_an_update_that_is_refused_before_a_leave_is_not_sent_again(tmp_path: Path) -> None:
    attack = {"name": "random_noise", "target": "update", "scale": 1e39, "clients": [0], "compare_honest": False}
    clients = {"count": 4, "schedule": [{"client": 0, "leave": 2, "return": 3}]}
    run = finished(tmp_path, (0, 1, 2, 3), rounds=3, clients=clients, attack=attack)
    assert events(run, "refused", "refusal") == ["NOT_FINITE"] * 2, "once in round 1, once in round 3"
    assert events(run, "round_closed", "received") == [[1, 2, 3]] * 3
    third = events(run, "round_closed", "reason")[2]
    assert third == "nobody left to wait for: client 0 refused", "it stays, and has nothing better to give"


def test_outside_its_rounds_a_client_has_value_0_and_the_absent_one_keeps_its_rows(comings: Path) -> None:
    found = values(comings)
    assert len(found) == 4 * 4
    for (round_, client), (value, evaluated) in found.items():
        here = client in PARTICIPANTS[round_ - 1]
        assert (evaluated, value == "0.0") == (("1", False) if here else ("0", True))


def test_the_order_of_work_changes_no_bit_and_the_run_replays(comings: Path, tmp_path: Path) -> None:
    again = finished(tmp_path, (3, 2, 0), clients=COMINGS, transport={"tensors": "memory"})
    assert values(again) == values(comings)
    assert replay(comings)


def test_a_fold_over_comings_and_goings_gives_the_absent_one_zeros(comings: Path) -> None:
    assert replay(comings, [{"name": "one", "kind": "one_round", "utility": "loss"}])
    with (comings / "scores-replayed.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["round"]), int(row["client"])) for row in rows] == [(t, k) for t in range(1, 5) for k in range(4)]
    for row in rows:
        round_, client = int(row["round"]), int(row["client"])
        seen = any(client in there for there in PARTICIPANTS[:round_])
        assert (row["value"] != "0.0") == seen, "one game of all that came so far"
        assert row["evaluated"] == str(int(client in PARTICIPANTS[round_ - 1]))


def test_what_is_absent_changes_nothing_of_what_the_others_start_with(comings: Path, tmp_path: Path) -> None:
    everybody = finished(tmp_path, (0, 1, 2, 3), rounds=1)
    ours, theirs = (Recordings(run).updates(1) for run in (comings, everybody))
    assert (sorted(ours), sorted(theirs)) == ([0, 3], [0, 1, 2, 3])
    for client, path in ours.items():
        assert path.read_bytes() == theirs[client].read_bytes()


def test_sybils_send_the_same_bytes_as_the_honest_leader(tmp_path: Path) -> None:
    attack = {"name": "sybil", "clients": [3, 1], "collude": True}
    leader = finished(tmp_path / "honest", (0, 1, 2, 3), rounds=1)
    sybils = finished(tmp_path / "sybils", (3, 2, 1, 0), rounds=1, attack=attack)
    honest, copies = (Recordings(run).updates(1) for run in (leader, sybils))
    assert copies[1].read_bytes() == copies[3].read_bytes() == honest[1].read_bytes()
    assert copies[0].read_bytes() == honest[0].read_bytes(), "nobody else does anything else"
    assert honest[3].read_bytes() != honest[1].read_bytes()
