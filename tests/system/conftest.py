"""Whole runs as a person starts them: the command and its processes, seen from outside through /proc alone."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from steelyard.recording import read_events

ROOT = Path(__file__).parents[2]
PATIENCE_S = 100.0  # bounds every wait of a test; never what a test measures
CLIENTS = 3
TINY = """
name = "tiny"
seed = 3
rounds = 3
[data]
samples_per_client = 40
alpha = 0.5
validation = 30
test = 40
[training]
epochs = 3
[clients]
count = 3
[attack]
name = "label_flip"
clients = [0]
[[evaluators]]
name = "fedsv_accuracy"
kind = "fedsv"
utility = "accuracy"
[[evaluators]]
name = "loo_loss"
kind = "loo"
utility = "loss"
[[evaluators]]
name = "one_round"
kind = "one_round"
utility = "loss"
seconds = 1e-9
"""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def parent_of(pid: int) -> int:
    """The parent of a process; 0 when it is gone or only waits to be reaped."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state in "ZX" else int(parent)


@dataclass
class Look:
    """A run directory as it stands: exact text of values and digests."""

    run: Path

    @property
    def scores(self) -> list[tuple[str, ...]]:
        return [
            tuple(row[k] for k in ("round", "client", "evaluator", "value")) for row in rows(self.run / "scores.csv")
        ]

    @property
    def models(self) -> list[str]:
        return [row["model_sha256"] for row in rows(self.run / "metrics.csv")]

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        return [e for e in read_events(self.run) if e["event"] == name and fields.items() <= e.items()]

    def pace(self, client: int, number: int) -> tuple[float, float]:
        """Seconds that a client worked in a round, and those from its model's arrival to its update's."""
        log = (self.run / "roles" / f"client-{client}" / "log.txt").read_text(encoding="utf-8")
        notes = [json.loads(line.partition("submitted ")[2]) for line in log.splitlines() if "submitted " in line]
        (work,) = [note["seconds"] for note in notes if note["round"] == number]
        fetched, received = (self.events(name, client=client, round=number) for name in ("fetched", "received"))
        assert len(fetched) == len(received) == 1
        return float(work), received[0]["time"] - fetched[0]["time"]


@dataclass
class Shell:
    """Starts commands of the project in one folder and ends, by their ids, those that still run."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def experiment(self) -> str:
        path = self.folder / "tiny.toml"
        if not path.exists():
            path.write_text(TINY, encoding="utf-8")
        return str(path)

    @property
    def out(self) -> Path:
        return self.folder / "runs"

    def python(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A steelyard command under way."""
        return self.python("-m", "scripts.main", *arguments, env=env)

    def start_run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """The tiny experiment under way."""
        return self.start("run", self.experiment, "--out", str(self.out), *arguments, env=env)

    def finish(self, process: subprocess.Popen[str], patience_s: float = PATIENCE_S) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = process.communicate(timeout=patience_s)
        return process.returncode, out, err

    def steelyard(self, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        return self.finish(self.start(*arguments, env=env))

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Path:
        """The tiny experiment's run directory, DONE."""
        code, _, err = self.finish(self.start_run(*arguments, env=env))
        assert (code, err) == (0, "")
        return self.the_run()

    def the_run(self) -> Path:
        return wait_until(lambda: next(self.out.glob("tiny-*"), None), "the run directory")

    @staticmethod
    def rows(path: Path) -> list[dict[str, str]]:
        return rows(path)

    @staticmethod
    def look(run: Path) -> Look:
        return Look(run)

    @staticmethod
    def wait_until(check: Callable[[], Any], what: str) -> Any:
        return wait_until(check, what)

    @staticmethod
    def roles_of(launcher: subprocess.Popen[str]) -> dict[str, int]:
        return roles_of(launcher)

    @staticmethod
    def children_of(pid: int) -> list[int]:
        return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and parent_of(int(p.name)) == pid]

    @staticmethod
    def runs(pid: int) -> bool:
        return parent_of(pid) != 0

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def wait_until(check: Callable[[], Any], what: str) -> Any:
    """What `check` returns as soon as it is true; the wait is bounded and says what it waited for."""
    end = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not (found := check()):
        assert time.monotonic() < end, f"{what} did not come within {PATIENCE_S:g} s"
        pause.wait(0.02)
    return found


def roles_of(launcher: subprocess.Popen[str]) -> dict[str, int]:
    """The processes that a launcher has started and that run, by role folder, as the kernel tells it."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and parent_of(int(entry.name)) == launcher.pid:
            try:
                log = (entry / "fd" / "2").readlink()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if log.name == "log.txt" and log.parent.name.startswith(("server", "client-")):
                found[log.parent.name] = int(entry.name)
    return found


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.stop()


@dataclass
class Undisturbed:
    """The tiny experiment, run once for all tests: what it left, said, and which processes were seen."""

    run: Path
    output: str
    processes: dict[str, int]

    @property
    def scores(self) -> list[tuple[str, ...]]:
        return Look(self.run).scores

    @property
    def models(self) -> list[str]:
        return Look(self.run).models


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    shell = Shell(tmp_path_factory.mktemp("undisturbed"))
    try:
        launcher = shell.start_run()
        seen: dict[str, int] = {}
        wait_until(lambda: seen.update(roles_of(launcher)) or len(seen) == 1 + CLIENTS, "all processes")
        code, out, err = shell.finish(launcher)
        assert (code, err) == (0, "")
        yield Undisturbed(shell.the_run(), out, seen)
    finally:
        shell.stop()
