"""`steelyard replay`: recompute every score of a run from its recordings and compare it with the live one, exactly.

The work runs in a child process with the environment of a run's processes, since thread counts and library settings
of the caller's shell could change a bit: `python -m scripts.replay RUN` is that child.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.environment import process_environment
from deploy.launch import ROLES, status
from deploy.prepare import server_folder
from steelyard.bundle import read_arrays
from steelyard.config import ServerHalf, load_half
from steelyard.errors import UserError
from steelyard.process import run_main, settle_down
from steelyard.recording import Recordings

if TYPE_CHECKING:
    from steelyard.scoring.replay import RoundScorer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("run", type=Path, help="a run directory; its honest twin is replayed too")


def act(arguments: argparse.Namespace) -> int:
    """Replay in a child process; returns 0 when every value is equal to the last bit, else 1."""
    if not status(arguments.run):
        raise UserError(f"a run directory expected, {arguments.run} has no manifest.json")
    command = [sys.executable, "-m", "scripts.replay", str(arguments.run)]
    return subprocess.run(command, env=process_environment(), check=False).returncode


def replay(run: Path) -> bool:
    """Recompute one run's scores and the models they rest on; print what was found.

    Returns:
        Whether every value and every aggregated model is equal, bit for bit.
    """
    from steelyard.scoring.replay import RoundScorer

    half: ServerHalf = load_half(ServerHalf, server_folder(run / ROLES) / "half.json")
    recordings = Recordings(run)
    live = _live_values(run)
    scorer = RoundScorer(half, read_arrays(server_folder(run / ROLES) / "data.safetensors"), recordings)
    with contextlib.closing(scorer):
        return _compare(run, scorer, recordings, live)


def _compare(run: Path, scorer: RoundScorer, recordings: Recordings, live: dict[tuple[str, str, str], str]) -> bool:
    import torch

    from steelyard.aggregation.fedavg import fedavg
    from steelyard.recording import read_vector

    equal = total = models = 0
    rounds = [closed for closed in recordings.closed_rounds() if (str(closed.round)) in {key[0] for key in live}]
    for closed in rounds:
        recorded = scorer.read(closed)
        next_D = fedavg(recorded.global_D, recorded.updates, recorded.samples)
        models += torch.equal(next_D, torch.from_numpy(read_vector(recordings.global_file(closed.round + 1)).copy()))
        for row in scorer.rows(closed):
            total += 1
            equal += live.get((str(row["round"]), str(row["client"]), row["evaluator"])) == repr(row["value"])
        print(f"  round {closed.round}: {equal} of {total} values equal so far", flush=True)
    print(f"{run}: {equal} of {total} scores and {models} of {len(rounds)} models are bit-equal to the live run")
    return equal == total == len(live) and models == len(rounds)


def _live_values(run: Path) -> dict[tuple[str, str, str], str]:
    path = run / "scores.csv"
    if not path.exists():
        raise UserError(f"live scores expected in {path}, there are none yet; let the run settle a round first")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if missing := {"round", "client", "evaluator", "value"} - set(rows.fieldnames or ()):
            raise UserError(f"{path}: columns round, client, evaluator and value expected, no {sorted(missing)[0]}")
        return {(row["round"], row["client"], row["evaluator"]): row["value"] for row in rows}


def _child() -> int:
    settle_down()
    run = Path(sys.argv[1])
    equal = replay(run)
    if (run / "honest").exists():
        equal = replay(run / "honest") and equal
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(run_main(_child))
