"""Every kind of evaluator in a real run, then replayed: alone and together, with one worker and with two, same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.environment import process_environment
from steelyard.scoring.evaluators import EVALUATORS

pytestmark = pytest.mark.timeout(900)  # several waits, each bounded, on a loaded machine
PATIENCE_S = 300.0

EXPERIMENT = """
name = "tiny"
seed = 5
rounds = 2
[data]
samples_per_client = 30
alpha = 0.5
validation = 40
test = 20
[training]
epochs = 2
[clients]
count = 5
[attack]
name = "label_flip"
clients = [0]
"""
CALLS = 12  # of the 32 coalitions of five: every kind that can sample does
BUDGETS: dict[str, dict[str, Any]] = {
    "fedsv": {"method": "permutation", "permutations": 2},
    "banzhaf": {"calls": CALLS, "seconds": 1e-9},  # the machine's clock decides: the replay takes the recorded calls
    "gtg": {"calls": CALLS, "round_tolerance": 0.0},
    **{kind: {"calls": CALLS} for kind in ("shapley", "tmc", "gtg_corrected", "beta_shapley", "least_core")},
    **{kind: {"calls": CALLS} for kind in ("multi_round", "lambda_multi_round", "one_round", "comfedsv")},
}
TABLES = [
    {"name": f"my_{kind}", "kind": kind, "utility": ("loss", "accuracy")[i % 2], **BUDGETS.get(kind, {})}
    for i, kind in enumerate(EVALUATORS)
]
LATE = "[[clients.schedule]]\nclient = 3\njoin = 2\n"  # a client outside the first round's game
ROWS = 2 * 5 * len(TABLES)
REPLAY = """
import json, sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from steelyard.bundle import read_arrays
from steelyard.config import ServerHalf, load_half
from steelyard.process import settle_down
from steelyard.recording import Recordings
from steelyard.scoring.replay import RoundScorer

settle_down()
run, spent, ways = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
half = load_half(ServerHalf, run / "roles" / "server" / "half.json")
data, recordings = read_arrays(run / "roles" / "server" / "data.safetensors"), Recordings(run)
for workers, how in ways:
    half = replace(half, scoring=replace(half.scoring, workers=workers))
    for tables in [[table] for table in half.evaluators] if how == "alone" else [half.evaluators]:
        with closing(RoundScorer(half, data, recordings, tables)) as scorer:
            for closed in recordings.closed_rounds():
                for row in scorer.rows(closed, spent=spent[str(closed.round)]):
                    print(row["round"], row["client"], row["evaluator"], repr(row["value"]), repr(row["std_error"]))
    print(flush=True)
"""


def inline(table: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}"


def run_of(shell: Any, *arguments: str, more: str = "", tables: list[dict[str, Any]] = TABLES) -> Path:
    text = (
        EXPERIMENT
        + more
        + "".join(
            "[[evaluators]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for table in tables
        )
    )
    Path(shell.experiment).write_text(text, encoding="utf-8")
    code, _, err = shell.finish(shell.start_run(*arguments), PATIENCE_S)
    assert (code, err) == (0, "")
    path: Path = shell.the_run()
    return path


def live_rows(run: Path, shell: Any) -> list[tuple[str, ...]]:
    return [
        tuple(row[key] for key in ("round", "client", "evaluator", "value", "std_error"))
        for row in shell.rows(run / "scores.csv")
    ]


def replayed(run: Path, shell: Any, *ways: tuple[int, str]) -> list[list[tuple[str, ...]]]:
    """Every kind scored again, by so many workers "alone" or "together", one way after another in one process."""
    spent: dict[str, dict[str, int]] = {}
    for row in shell.rows(run / "scores.csv"):
        spent.setdefault(row["round"], {})[row["evaluator"]] = int(row["calls"])
    arguments = (str(run), json.dumps(spent), json.dumps(ways))
    code, said, err = shell.finish(shell.python("-c", REPLAY, *arguments, env=process_environment()), PATIENCE_S)
    assert (code, err) == (0, "")
    return [[tuple(line.split()) for line in block.splitlines()] for block in said.removesuffix("\n\n").split("\n\n")]


def test_every_kind_replays_alone_and_together_with_one_worker_and_with_two(shell: Any) -> None:
    run = run_of(shell, "--launcher", "inline", "--set", "attack.compare_honest=false")
    live = live_rows(run, shell)
    assert len(live) == ROWS
    calls = {row["evaluator"]: row["calls"] for row in shell.rows(run / "scores.csv")}
    assert calls["my_shapley"] == str(CALLS), "they sample: there are 32 coalitions"
    alone, together = replayed(run, shell, (1, "alone"), (2, "together"))
    assert sorted(alone) == sorted(live)
    assert together == live


@pytest.mark.slow
def test_every_kind_in_separate_processes_and_added_to_another_run(shell: Any) -> None:
    """Live with one worker by real processes, and its twin; then the same kinds added to a run that had but one."""
    run = run_of(shell, more=LATE)
    live = live_rows(run, shell)
    code, said, err = shell.steelyard("replay", str(run))
    assert (code, err) == (0, "")
    assert said.count(f"{ROWS} of {ROWS} scores and 2 of 2 models are bit-equal") == 2, "its twin too"
    (alone,) = replayed(run, shell, (2, "alone"))
    assert sorted(alone) == sorted(live)
    timed = {"my_banzhaf"}  # its budget in seconds is spent anew by a run that never scored it
    asked = [word for table in TABLES if table["name"] not in timed for word in ("--evaluator", inline(table))]
    shell.folder = shell.folder / "other"
    shell.folder.mkdir()
    other = run_of(shell, more=LATE, tables=[{"name": "other", "kind": "loo", "utility": "loss"}])
    assert shell.look(other).models == shell.look(run).models
    code, _, err = shell.steelyard("replay", str(other), *asked)
    assert (code, err) == (0, "")
    added = [
        tuple(row[key] for key in ("round", "client", "evaluator", "value", "std_error"))
        for row in shell.rows(other / "scores-replayed.csv")
    ]
    assert sorted(added) == sorted(row for row in live if row[2] not in timed)
