"""Every launcher that runs roles as processes of their own meets a fault that is the client's own doing.

Containers meet theirs in tests/docker/test_faults.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.launch import CONDUCTS, Options, run_experiment
from scripts.progress import Silent
from steelyard.config import Experiment
from steelyard.parsing import parse
from steelyard.recording import ROLES, read_events

FACTOR = 3.0
TABLE = {
    "name": "slow",
    "rounds": 1,
    "clients": {"count": 1},
    "data": {"samples_per_client": 40, "validation": 30, "test": 40},
    "evaluators": [{"name": "loo", "kind": "loo", "utility": "loss"}],
    "network": {"faults": [{"client": 0, "round": 1, "kind": "slow_compute", "factor": FACTOR}]},
}


@pytest.mark.slow  # test_faults.py and test_torchrun.py have one be slow in company
@pytest.mark.parametrize("launcher", sorted(CONDUCTS.keys() - {"compose"}))
def test_a_slow_client_is_slow_under_every_launcher(launcher: str, tmp_path: Path) -> None:
    options = Options(out=tmp_path, launcher=launcher, checked=True)
    run = run_experiment(parse(Experiment, TABLE, "test"), options, Silent())
    log = (run / ROLES / "client-0" / "log.txt").read_text(encoding="utf-8")
    (note,) = [line.partition("submitted ")[2] for line in log.splitlines() if "submitted " in line]
    times = {event["event"]: event["time"] for event in read_events(run)}
    assert times["received"] - times["fetched"] > FACTOR * json.loads(note)["seconds"] - 0.01
    assert not (run / "network.jsonl").exists(), "no link, so nothing for the launcher to do"
