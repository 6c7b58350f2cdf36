"""A fault plan in the experiment file, on containers: the launcher has it happen; the events say what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.containers.boxes import prepare_boxed
from deploy.containers.run import run_containers
from deploy.faults import Record
from steelyard.recording import read_events

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(500)]


def test_a_fault_plan_happens_and_loses_nothing(
    tag: str, make_small: Callable[..., Any], numbers_of: Callable[[Path], Any], undisturbed: Any, tmp_path: Path
) -> None:
    assert tag
    faults = [
        {"client": 0, "round": 1, "kind": "restart", "seconds": 1.0},
        {"client": 1, "round": 2, "kind": "pause", "seconds": 2.0},
        {"client": 2, "round": 1, "kind": "partition", "at": "fetch", "seconds": 1.0},
        {"client": 2, "round": 3, "kind": "reset"},
        {"client": 0, "round": 3, "kind": "slow_compute", "factor": 1.5},
    ]
    experiment = make_small(network={"faults": faults}, protocol={"lease_s": 20.0})
    prepare_boxed(experiment, tmp_path / "roles")
    said: list[str] = []
    present = experiment.clients.present
    run_containers(tmp_path / "roles", tmp_path, present, lambda: None, said.append, experiment.network.faults)
    record = Record(tmp_path).read()
    happened = {(e["client"], e["round"], e["kind"]) for e in record if e["event"] == "fault"}
    *planned, _slowness = faults  # which is the client's own doing
    assert happened == {(fault["client"], fault["round"], fault["kind"]) for fault in planned}
    assert [e["missing"] for e in read_events(tmp_path) if e["event"] == "round_closed"] == [[], [], []]
    assert sum(e["event"] == "joined" and e["client"] == 0 for e in read_events(tmp_path)) >= 2, "it came back"
    assert [line for line in said if "ended early" in line] == [], "what was planned is no news"
    assert sorted(e["client"] for e in record if e["event"] == "link") == [0, 1, 2]
    assert numbers_of(tmp_path) == undisturbed
    for plan in (experiment.network.faults, ()):  # a server that has nothing left to do ends before its clients are up
        run_containers(tmp_path / "roles", tmp_path, present, lambda: None, said.append, plan)
    assert numbers_of(tmp_path) == undisturbed
