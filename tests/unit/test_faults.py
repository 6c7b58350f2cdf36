"""The fault driver against a run that a test writes by hand: when it arms a link, strikes, and what it records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.faults import FaultDriver, Record
from steelyard import bundle
from steelyard.bundle import TensorSpec
from steelyard.errors import RunFailedError
from steelyard.network import Fault
from steelyard.recording import Recordings


class Script:
    """Hands that note what they are told, and a link whose counts the test sets."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stats: dict[str, Any] = {"up": 0, "down": 0, "resets": 0, "acts": 0}
        self.dead = False

    def kill(self, client: int) -> None:
        self.done.append(f"kill {client}")

    def start(self, client: int) -> None:
        self.done.append(f"start {client}")

    def pause(self, client: int) -> None:
        self.done.append(f"pause {client}")

    def resume(self, client: int) -> None:
        self.done.append(f"resume {client}")

    def link(self, client: int, **command: Any) -> dict[str, Any]:
        if self.dead:
            raise RunFailedError("the link does not answer")
        if command["do"] != "stats":
            self.done.append(" ".join(map(str, (client, *command.values()))))
        return self.stats

    def take(self) -> list[str]:
        done, self.done = self.done, []
        return done


class Bench:
    """A run directory of a model of 400 bytes, and a driver on it."""

    def __init__(self, run: Path) -> None:
        self.run = run
        bundle.write(Recordings(run).global_file(1), (TensorSpec("x", "F32", (100,)),), bundle.raw(np.zeros(100, "f4")))
        self.hands = Script()

    def driver(self, **fault: Any) -> FaultDriver:
        return FaultDriver([Fault(**fault)], self.run, self.hands)

    def say(self, name: str, **fields: Any) -> None:
        with (self.run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": name, **fields}) + "\n")

    def recorded(self) -> list[tuple[str, int]]:
        return [(event["event"], event["round"]) for event in Record(self.run).read()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_fault_is_armed_when_the_update_before_it_has_arrived(bench: Bench) -> None:
    driver = bench.driver(client=1, round=2, kind="restart", seconds=3.0, fraction=0.25)
    driver.poll(0.0)
    bench.say("received", client=0, round=1)
    driver.poll(1.0)
    assert bench.hands.take() == []
    bench.say("received", client=1, round=1)
    driver.poll(2.0)
    assert bench.hands.take() == ["1 hold up 100"], "a quarter of 400 bytes"
    driver.poll(3.0)
    assert bench.hands.take() == []
    bench.hands.stats["acts"] += 1
    driver.poll(4.0)
    assert bench.hands.take() == ["kill 1", "1 reset", "1 release"]
    driver.poll(6.9)
    assert bench.hands.take() == []
    driver.poll(7.0)
    assert bench.hands.take() == ["start 1"]
    assert bench.recorded() == [("fault", 2), ("fault_over", 2)]


def test_the_first_round_is_armed_at_once_and_half_a_line_is_no_event(bench: Bench) -> None:
    driver = bench.driver(client=1, round=1, kind="pause", seconds=2.0, at="fetch")
    (bench.run / "events.jsonl").write_text('{"event": "round_cl')
    driver.poll(0.0)
    assert bench.hands.take() == ["1 hold down 200"]
    bench.hands.stats["acts"] += 1
    driver.poll(1.0)
    driver.poll(3.0)
    assert bench.hands.take() == ["pause 1", "resume 1", "1 release"]


def test_a_reset_is_the_links_own_and_happens_in_every_round_of_it(bench: Bench) -> None:
    driver = bench.driver(client=0, round=1, rounds=2, kind="reset")
    for number in (1, 2):
        driver.poll(0.0)
        assert bench.hands.take() == ["0 reset up 200"]
        bench.hands.stats["acts"] = number
        driver.poll(1.0)
        bench.say("received", client=0, round=number)
    driver.poll(2.0)
    assert bench.hands.take() == []
    assert bench.recorded() == [("fault", 1), ("fault", 2)]
    bench.driver(client=0, round=1, rounds=2, kind="reset").poll(0.0)
    assert bench.hands.take() == [], "continued, the run does not meet them again"


def test_a_reset_has_happened_though_the_update_came_again_before_anybody_looked(bench: Bench) -> None:
    driver = bench.driver(client=0, round=1, kind="reset")
    driver.poll(0.0)
    bench.hands.stats["acts"] += 1
    bench.say("received", client=0, round=1)
    bench.say("round_closed", round=1)
    driver.poll(1.0)
    assert bench.recorded() == [("fault", 1)]


def test_a_round_that_went_by_is_missed_and_the_line_is_free_again(bench: Bench) -> None:
    driver = bench.driver(client=0, round=1, kind="crash")
    driver.poll(0.0)
    bench.say("round_closed", round=1)
    driver.poll(1.0)
    assert bench.hands.take() == ["0 hold up 200", "0 release"]
    assert bench.recorded() == [("fault_missed", 1)]


def test_a_link_that_is_gone_ends_its_fault_alone(bench: Bench) -> None:
    driver = bench.driver(client=0, round=1, kind="crash")
    bench.hands.dead = True
    driver.poll(0.0)
    bench.hands.dead = False
    driver.poll(1.0)
    assert bench.hands.take() == []
    assert bench.recorded() == [("fault_failed", 1)]


def test_a_lines_own_reset_is_not_the_faults_moment(bench: Bench) -> None:
    driver = bench.driver(client=1, round=1, kind="crash")
    driver.poll(0.0)
    bench.hands.take()
    bench.hands.stats["resets"] += 1
    driver.poll(1.0)
    assert (bench.hands.take(), bench.recorded()) == ([], [])


def test_a_fault_waits_for_an_earlier_one_of_its_client(bench: Bench) -> None:
    driver = bench.driver(client=1, round=1, rounds=2, kind="partition", seconds=30.0)
    driver.poll(0.0)
    bench.hands.stats["acts"] += 1
    driver.poll(1.0)
    bench.hands.take()
    bench.say("round_closed", round=1)
    driver.poll(2.0)
    assert bench.hands.take() == []
    driver.poll(31.0)
    driver.poll(32.0)
    assert bench.hands.take() == ["1 release", "1 hold up 200"]


def test_who_crashed_stays_dead_when_the_run_is_continued(bench: Bench) -> None:
    driver = bench.driver(client=1, round=1, kind="crash")
    assert driver.dead == frozenset()
    driver.poll(0.0)
    bench.hands.stats["acts"] += 1
    driver.poll(1.0)
    assert bench.driver(client=1, round=1, kind="crash").dead == {1}


def test_half_a_line_of_a_killed_launcher_is_dropped(bench: Bench) -> None:
    path = bench.run / "network.jsonl"
    path.write_text('{"event": "fault", "client": 1, "round": 1, "kind": "crash"}\n{"event": "fau')
    Record(bench.run).add("fault_over", client=1, round=1, kind="crash")
    assert bench.recorded() == [("fault", 1), ("fault_over", 1)]
