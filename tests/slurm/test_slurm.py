"""The batch scripts on a real Slurm of two nodes: what they run has the scores that the local launcher gives."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steelyard.recording import read_events

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
TINY = """
name = "tiny"
rounds = 2
[data]
samples_per_client = 40
validation = 30
test = 40
[clients]
count = 2
[attack]
name = "label_flip"
"""
SWEEP = """
name = "pair"
base = "tiny.toml"
[grid]
seed = "0..1"
[[variants]]
name = "flip"
"""


def scores(out: Path) -> dict[str, list[tuple[str, ...]]]:
    """Round, client, evaluator and exact value of every row, by run directory."""
    found = {}
    for path in sorted(out.glob("*/scores.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found[path.parent.name] = [
                tuple(row[key] for key in ("round", "client", "evaluator", "value")) for row in csv.DictReader(file)
            ]
    return found


def locally(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "scripts.main", *arguments], cwd=ROOT, check=True, capture_output=True)


def test_the_quickstart_on_two_nodes_has_the_scores_of_a_local_run(cluster: Any, tmp_path: Path) -> None:
    experiment = "experiments/quickstart.toml"
    code, said = cluster.submit("deploy/slurm/run.sbatch", experiment, "--out", str(tmp_path / "slurm"))
    assert code == 0, said
    locally("run", experiment, "--out", str(tmp_path / "local"))
    found = scores(tmp_path / "slurm")
    assert len(found) == 2, "the run and its twin"
    assert found == scores(tmp_path / "local")
    assert all(len(rows) == 8 * 10 * 4 for rows in found.values())
    for run in found:
        started = [e for e in read_events(tmp_path / "slurm" / run) if e["event"] == "server_started"]
        assert len(started) == 1, said


def test_a_job_array_shares_a_sweep_and_a_last_job_tabulates_it(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(SWEEP, encoding="utf-8")
    job = ("deploy/slurm/sweep.sbatch", str(sweep), "--out", str(tmp_path / "slurm"))
    code, said = cluster.submit("--array=1-2", "--nodes=1", *job)
    assert code == 0, said
    assert said.count("pair: 2 of 4 runs, 0 of them done already") == 2, said
    assert not (tmp_path / "slurm" / "sweeps").exists(), "tasks of an array leave the tables alone"
    code, said = cluster.submit("--nodes=1", *job)
    assert code == 0, said
    locally("sweep", str(sweep), "--out", str(tmp_path / "local"))
    assert len(scores(tmp_path / "slurm")) == 4
    assert scores(tmp_path / "slurm") == scores(tmp_path / "local")
    said_of = [
        (tmp_path / place / "sweeps" / "pair" / "table.md").read_text(encoding="utf-8").split("\n")[:8]
        for place in ("slurm", "local")
    ]
    assert said_of[0] == said_of[1]


def test_a_mistake_ends_the_job_with_its_line(cluster: Any, tmp_path: Path) -> None:
    code, said = cluster.submit("deploy/slurm/run.sbatch", str(tmp_path / "none.toml"))
    assert code == 2
    assert f"steelyard: experiment file expected at {tmp_path / 'none.toml'}, there is none" in said
