"""`make golden`: do two revisions give the same numbers, bit for bit, on this machine?

The golden experiment is small (tests/golden/experiment.toml) and runs inline, attacked and honest. Its numbers are also
committed (tests/golden/numbers.json) with the processor, versions and threads that gave them: they bind exactly there,
and within the test's stated tolerance elsewhere.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from deploy.environment import process_environment
from deploy.launch import Options, run_experiment
from deploy.provenance import provenance
from scripts.progress import Silent
from steelyard.config import load_experiment
from steelyard.errors import UserError
from steelyard.process import run_main

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = ROOT / "tests" / "golden" / "experiment.toml"
NUMBERS = ROOT / "tests" / "golden" / "numbers.json"
DECIDES = ("processor", "machine", "versions", "threads")  # the parts of the provenance that decide bits


def golden_numbers() -> dict[str, Any]:
    """Run the golden experiment; returns its provenance, every score and every round's model digest, as text."""
    experiment = load_experiment(EXPERIMENT)
    numbers: dict[str, Any] = {"scores": {}, "models": {}, "accuracy": {}}
    with tempfile.TemporaryDirectory() as folder:
        run = run_experiment(experiment, Options(out=Path(folder), launcher="inline"), Silent())
        for twin, place in (("attacked", run), ("honest", run / "honest")):
            for row in _rows(place / "scores.csv"):
                key = f"{twin}/{row['evaluator']}/round {row['round']}/client {row['client']}"
                numbers["scores"][key] = row["value"]
            for row in _rows(place / "metrics.csv"):
                numbers["models"][f"{twin}/round {row['round']}"] = row["model_sha256"]
                numbers["accuracy"][f"{twin}/round {row['round']}"] = row["accuracy"]
    found = provenance()
    del found["versions"]["steelyard"]
    return {"provenance": {key: found[key] for key in DECIDES}, **numbers}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Every number that differs, one line each."""
    lines = []
    for part in ("scores", "models", "accuracy"):
        for key in sorted({*ours[part], *theirs[part]}):
            here, there = ours[part].get(key), theirs[part].get(key)
            if here != there:
                lines.append(f"{part} {key}: {here} here, {there} there")
    return lines


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _numbers_of(tree: Path) -> dict[str, Any]:
    """The golden numbers as a source tree computes them, in a process of its own."""
    command = [sys.executable, "-m", "scripts.golden", "--print"]
    done = subprocess.run(
        command, cwd=tree, env=process_environment(), stdout=subprocess.PIPE, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise UserError(f"the golden experiment could not be run in {tree}; its message stands above")
    numbers: dict[str, Any] = json.loads(done.stdout)
    return numbers


def _numbers_at(revision: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        added = subprocess.run(
            [*git, "add", "--detach", str(tree), revision], capture_output=True, text=True, check=False
        )
        if added.returncode:
            raise UserError(f"a git revision expected as --base, got {revision!r}: {added.stderr.strip()}")
        try:
            return _numbers_of(tree)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True, check=True)


def main() -> int:
    """Parse the command line and compare; returns 1 when a number differs."""
    parser = argparse.ArgumentParser(prog="python -m scripts.golden", description="Compare golden numbers.")
    parser.add_argument("--base", default="HEAD", help="the git revision to compare with (default: HEAD)")
    parser.add_argument("--print", action="store_true", dest="show", help="print this tree's numbers as JSON")
    parser.add_argument("--write", action="store_true", help="commit this tree's numbers to tests/golden")
    arguments = parser.parse_args()
    if arguments.show:
        print(json.dumps(golden_numbers(), indent=1))
        return 0
    ours = _numbers_of(ROOT)
    if arguments.write:
        NUMBERS.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")
        print(f"{NUMBERS}: {len(ours['scores'])} scores, {len(ours['models'])} models")
        return 0
    found = differences(ours, _numbers_at(arguments.base))
    print(
        "\n".join(found)
        or f"{len(ours['scores'])} scores and {len(ours['models'])} models equal those of {arguments.base}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
