"""Containers under test: an engine that answers or is started, images built once, and small runs that a test disturbs.

Only containers, networks and processes that these tests made are ever ended. Without an engine every test is skipped
and says why; where STEELYARD_REQUIRE names docker, that is a failure.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.containers.boxes import prepare_boxed
from deploy.containers.compose import Box
from deploy.containers.engine import Engine, compose_command, connect
from deploy.containers.images import ensure_images
from deploy.containers.project import Project
from deploy.containers.run import boxed
from deploy.link.control import command
from deploy.local import run_local
from deploy.prepare import prepare
from steelyard.config import Experiment
from steelyard.errors import UserError
from steelyard.parsing import parse
from steelyard.recording import read_events

ROOT = Path(__file__).parents[2]
ENGINE_START_S = 60.0
PATIENCE_S = 180.0  # bounds every wait of a test; never what a test measures
SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 3,
    "clients": {"count": 3},
    "data": {"partition": "iid", "samples_per_client": 40, "validation": 60, "test": 60},
    "attack": {"name": "label_flip", "clients": [0], "compare_honest": False},
    "evaluators": [{"name": "fedsv_loss", "kind": "fedsv", "utility": "loss"}],
    "protocol": {"round_deadline_s": 150.0, "join_timeout_s": 150.0, "lease_s": 150.0, "quorum": 1},
}


def small(**changes: Any) -> Experiment:
    """The small experiment; a changed table replaces keys of its own."""
    merged = {key: {**SMALL.get(key, {}), **value} for key, value in changes.items() if isinstance(value, dict)}
    return parse(Experiment, {**SMALL, **changes, **merged}, "test")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine that answers: the host's, or one started here and stopped afterwards."""
    with contextlib.ExitStack() as stack:
        try:
            compose_command()
            if not _answers():  # asked by a process of its own: the SDK leaves a socket open where nobody answers
                stack.enter_context(_started_engine())
            found = connect()
        except UserError as error:
            if "docker" in os.environ.get("STEELYARD_REQUIRE", ""):
                pytest.fail(f"STEELYARD_REQUIRE names docker: {error}")
            pytest.skip(str(error))
        stack.callback(found.close)
        yield found


def _answers() -> bool:
    return (
        shutil.which("docker") is not None
        and not subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    )


@contextlib.contextmanager
def _started_engine() -> Iterator[None]:
    """A dockerd of our own.

    Raises:
        UserError: it is not installed, we are not root, or it does not come up.
    """
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise UserError("no engine answers, and none can be started: that needs root and Debian's docker.io")
    if not os.path.ismount("/sys/fs/cgroup"):
        subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    log = Path("/tmp/steelyard-dockerd.log")  # noqa: S108 - whoever looks for it knows where
    with log.open("w") as words, subprocess.Popen(["dockerd"], stdout=words, stderr=words) as process:
        try:
            end = time.monotonic() + ENGINE_START_S
            while not _answers():
                if process.poll() is not None or time.monotonic() > end:
                    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    raise UserError(f"dockerd did not come up; the end of {log}: {' | '.join(lines[-3:])}")
                threading.Event().wait(0.5)
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def tag(engine: Engine) -> str:
    """The images' tag; building them is the first test's time."""
    return ensure_images(engine, print)


@dataclass
class Scene:
    """One run in containers, under way, that a test disturbs."""

    project: Project
    roles: Path
    run: Path

    def up(self, *services: str) -> None:
        self.project.up(lambda: None, *services)

    def link(self, client: int, **fields: Any) -> dict[str, Any]:
        return command(self.roles / f"link-{client}", **fields)

    def hold_upload(self, client: int, after: int = 20_000) -> None:
        """Let a client's upload stand still, once so many of its bytes have passed its link."""
        wait_until((self.roles / f"link-{client}" / "control.sock").exists, f"link {client}")
        self.link(client, do="hold", direction="up", after=after)

    def await_held(self, client: int) -> None:
        wait_until(lambda: self.link(client, do="stats")["held"], f"client {client}'s upload")

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        if not (self.run / "events.jsonl").exists():
            return []
        return [e for e in read_events(self.run) if e["event"] == name and fields.items() <= e.items()]

    def await_event(self, name: str, **fields: Any) -> dict[str, Any]:
        return wait_until(lambda: self.events(name, **fields), f"event {name} {fields}")[0]

    def finish(self) -> None:
        """Wait for the server's end, which is a good one."""
        wait_until(lambda: "server" in self.project.ended(), "the server's end")
        assert self.project.exit_code("server") == 0, self.project.log("server")
        assert self.events("finished")

    def exec(self, service: str, code: str) -> str:
        """What a Python program says that runs inside a container, with the rights of its role."""
        result = self.project.container(service).exec_run(["python3", "-c", code])
        words = str(result.output.decode())
        assert result.exit_code == 0, words
        return words

    @property
    def numbers(self) -> list[tuple[str, ...]]:
        """Every score and every model's digest so far, as exact text."""
        return numbers(self.run)

    @property
    def missing(self) -> list[list[int]]:
        """Who was missing, round by round."""
        return [event["missing"] for event in self.events("round_closed")]


def wait_until(check: Callable[[], Any], what: str) -> Any:
    """What `check` returns as soon as it is true; the wait is bounded and says what it waited for."""
    end = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not (found := check()):
        assert time.monotonic() < end, f"{what} did not come within {PATIENCE_S:g} s"
        pause.wait(0.05)
    return found


@contextlib.contextmanager
def scenes(folder: Path) -> Iterator[Callable[..., Scene]]:
    """Prepares the small experiment with changes for containers; what was started is removed afterwards."""
    with contextlib.ExitStack() as stack:

        def open_(**changes: Any) -> Scene:
            experiment = small(**changes)
            run = folder / f"run-{len(list(folder.glob('run-*')))}"
            roles = run / "roles"
            prepare_boxed(experiment, roles)
            return Scene(stack.enter_context(boxed(roles, run, experiment.clients.present, print, Box())), roles, run)

        yield open_


@pytest.fixture
def open_scene(tag: str, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """Opens scenes for one test."""
    assert tag
    with scenes(tmp_path) as open_:
        yield open_


@pytest.fixture(scope="module")
def open_scene_for_module(tag: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Scene]]:
    """Opens scenes that the tests of a module share."""
    assert tag
    with scenes(tmp_path_factory.mktemp("module")) as open_:
        yield open_


def numbers(run: Path) -> list[tuple[str, ...]]:
    """Every score of a run and every model's digest, as exact text."""
    found = []
    for name, keys in (("scores.csv", ("round", "client", "evaluator", "value")), ("metrics.csv", ("model_sha256",))):
        with (run / name).open(newline="", encoding="utf-8") as file:
            found += [tuple(row[key] for key in keys) for row in csv.DictReader(file)]
    return found


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    """The small experiment's numbers, from local processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(small(), folder / "roles")
    run_local(folder / "roles", folder, small().clients.present, lambda: None, print)
    return numbers(folder)


@pytest.fixture(scope="session", name="wait_until")
def _wait_until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session")
def numbers_of() -> Callable[[Path], list[tuple[str, ...]]]:
    """Reads a run directory's numbers."""
    return numbers


@pytest.fixture(scope="session")
def make_small() -> Callable[..., Experiment]:
    """Makes the small experiment with changes."""
    return small
