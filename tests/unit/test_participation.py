"""Who takes part when: stays by hand, mistakes in one line, and role folders that do not change with who is absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.prepare import client_folder, prepare, server_folder
from steelyard.bundle import read_arrays
from steelyard.config import ClientHalf, Experiment, ServerHalf, load_experiment, load_half, to_json
from steelyard.data.deal import deal
from steelyard.errors import UserError
from steelyard.parsing import parse
from steelyard.participation import Stay, expected

TABLE: dict[str, Any] = {
    "name": "comings",
    "rounds": 8,
    "clients": {"count": 4},
    "data": {"samples_per_client": 20, "validation": 30, "test": 30},
}
SCHEDULE = [{"client": 3, "join": 2, "leave": 5, "return": 7}]


def experiment(**clients: Any) -> Experiment:
    return parse(Experiment, {**TABLE, "clients": {"count": 4, **clients}}, "test")


@pytest.mark.parametrize(
    ("stay", "rounds"),
    [
        (Stay(), [1, 2, 3, 4, 5, 6, 7, 8]),
        (Stay(join=3), [3, 4, 5, 6, 7, 8]),
        (Stay(leave=3), [1, 2]),
        (Stay(leave=3, back=4), [1, 2, 4, 5, 6, 7, 8]),
        (Stay(join=2, leave=5, back=7), [2, 3, 4, 7, 8]),
    ],
)
def test_a_stay_is_first_first_without_and_first_again(stay: Stay, rounds: list[int]) -> None:
    assert [t for t in range(1, 9) if stay.covers(t)] == rounds
    assert [t for t in range(1, 9) if stay.is_over(t)] == [t for t in range(1, 9) if t > rounds[-1]]


def test_the_schedule_and_the_absent_say_who_is_expected() -> None:
    clients = experiment(absent=[1], schedule=SCHEDULE).clients
    assert clients.present == (0, 2, 3)
    assert [sorted(expected(clients.stays, t)) for t in range(1, 9)] == [
        *([[0, 2]] + [[0, 2, 3]] * 3 + [[0, 2]] * 2 + [[0, 2, 3]] * 2)
    ]


def test_participation_survives_json_and_the_honest_twin_keeps_it() -> None:
    comings = experiment(absent=[1], schedule=SCHEDULE)
    assert parse(Experiment, json.loads(to_json(comings)), "manifest") == comings
    attacked = parse(
        Experiment, {**json.loads(to_json(comings)), "attack": {"name": "label_flip", "clients": [3]}}, "test"
    )
    assert attacked.honest() == comings
    digests = {e.digest() for e in (comings, experiment(), experiment(absent=[1]), experiment(schedule=SCHEDULE))}
    assert len(digests) == 4


MISTAKES = [
    ("absent = [4]", "[clients] absent: indices below 4, each once, expected, got [4]"),
    ("absent = [1, 1]", "[clients] absent: indices below 4, each once, expected, got [1, 1]"),
    ("absent = [0, 1, 2, 3]", "[clients] absent: at least one client that takes part expected, all 4 are absent"),
    ("absent = [-1]", "clients absent[0]: >= 0 expected, got -1"),
    ("schedule = [{client = 4, join = 2}]", "[clients] schedule client: one of 0, 1, 2, 3, each once, expected, got 4"),
    ("schedule = [{join = 2}]", "[clients] schedule client: one of 0, 1, 2, 3, each once, expected, got None"),
    ("schedule = [{client = 1, join = 2}, {client = 1, leave = 3}]", "[clients] schedule client: one of 0, 1, 2, 3"),
    ("absent = [1]\nschedule = [{client = 1, join = 2}]", "[clients] schedule client: one of 0, 2, 3, each once"),
    ("schedule = [{client = 1, jion = 2}]", "[clients] schedule: unknown key 'jion'; did you mean 'join'?"),
    ("schedule = [{client = 1}]", "[clients] schedule client 1: join, leave or return expected, got none"),
    ("schedule = [{client = 1, join = 'soon'}]", "clients schedule[0].join: an integer expected, got 'soon'"),
    ("schedule = [{client = 1, join = 0}]", "[clients] schedule client 1 join: a round from 1 to 8 expected, got 0"),
    ("schedule = [{client = 1, join = 9}]", "[clients] schedule client 1 join: a round from 1 to 8 expected, got 9"),
    ("schedule = [{client = 1, leave = 1}]", "[clients] schedule client 1 leave: a round from 2 to 8 expected, got 1"),
    (
        "schedule = [{client = 1, join = 3, leave = 3}]",
        "[clients] schedule client 1 leave: a round from 4 to 8 expected, got 3",
    ),
    (
        "schedule = [{client = 1, leave = 3, return = 3}]",
        "[clients] schedule client 1 return: a round from 4 to 8 expected, got 3",
    ),
    ("schedule = [{client = 1, return = 3}]", "[clients] schedule client 1 return: leave expected beside it, there is"),
    (
        "absent = [0, 1]\n[protocol]\nquorum = 3",
        "[protocol] quorum: at most the 2 clients expected, got 3",
    ),
    (
        "schedule = [{client = 1, leave = 3}, {client = 2, join = 2, leave = 4, return = 5}]\n[protocol]\nquorum = 3",
        "[clients] schedule: at least 3 clients in every round expected (the quorum), round 4 has 2",
    ),
    (
        "absent = [0, 1, 2]\nschedule = [{client = 3, join = 2}]",
        "[clients] schedule: at least 1 clients in every round expected (the quorum), round 1 has 0",
    ),
    (
        "absent = [0]\n[attack]\nname = 'label_flip'",
        "[attack] clients: clients that take part expected, [0] are absent; leave them out of one",
    ),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(f"name = 'x'\nrounds = 8\n[clients]\ncount = 4\n{text}\n")
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(f"{path} {line}")
    assert "\n" not in str(caught.value)


def test_a_file_with_tables_of_a_schedule(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(
        "name = 'comings'\nrounds = 8\n[clients]\ncount = 4\n[[clients.schedule]]\nclient = 3\njoin = 2\n"
        "leave = 5\nreturn = 7\n[[clients.schedule]]\nclient = 0\nleave = 8\n"
    )
    stays = load_experiment(path).clients.stays
    assert stays == {0: Stay(leave=8), 1: Stay(), 2: Stay(), 3: Stay(join=2, leave=5, back=7)}


def test_nobody_notices_who_is_absent(tmp_path: Path) -> None:
    """The others' folders are the same bytes, but for tokens; the server's lacks the absent client alone."""
    everybody, without = tmp_path / "everybody", tmp_path / "without"
    prepare(experiment(), everybody)
    prepare(experiment(absent=[1]), without)
    assert not client_folder(without, 1).exists()
    for client in (0, 2, 3):
        for name in ("half.json", "data.safetensors"):
            one, other = (client_folder(roles, client) / name for roles in (everybody, without))
            assert one.read_bytes() == other.read_bytes()
    data = [server_folder(roles) / "data.safetensors" for roles in (everybody, without)]
    assert data[0].read_bytes() == data[1].read_bytes()
    halves = [load_half(ServerHalf, server_folder(roles) / "half.json") for roles in (everybody, without)]
    samples = [{entry.client: entry.samples for entry in half.roster} for half in halves]
    assert samples[0].items() - samples[1].items() == {(1, len(deal(experiment()).shards[1]))}
    assert (halves[0].clients, halves[1].clients) == (4, 4)


def test_the_roster_tells_every_stay_and_a_client_its_own_alone(tmp_path: Path) -> None:
    prepare(experiment(schedule=SCHEDULE), tmp_path)
    server: ServerHalf = load_half(ServerHalf, server_folder(tmp_path) / "half.json")
    stay = Stay(join=2, leave=5, back=7)
    assert [entry.stay for entry in server.roster] == [Stay(), Stay(), Stay(), stay]
    halves: list[ClientHalf] = [load_half(ClientHalf, client_folder(tmp_path, k) / "half.json") for k in range(4)]
    assert [half.stay for half in halves] == [Stay(), Stay(), Stay(), stay]
    assert set(read_arrays(client_folder(tmp_path, 3) / "data.safetensors")) == {"images", "labels"}
