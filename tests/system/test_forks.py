"""Forked roles: children of the launcher that end, and say why, as processes started one by one do."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import forks, launch
from deploy.forks import Nursery, start
from deploy.prepare import client_folder, prepare
from deploy.provenance import revision
from steelyard.config import Experiment
from steelyard.errors import RunFailedError, UserError, WaitTimeoutError
from steelyard.parsing import parse

PATIENCE_S = 60.0
KEPT = """import sys, tempfile
folder = tempfile.TemporaryDirectory()
folder.itself = folder  # nothing but its own finalizer, or weakref's at the end, removes it
print(folder.name)
sys.exit("enough")
"""
NOBODY = ["--server", "127.0.0.1:9"]  # the discard port: nobody listens, so a client goes on trying


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def words(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines()


def test_a_fork_is_a_process_of_its_own_and_a_child_of_the_launcher(tmp_path: Path) -> None:
    table = {"name": "two", "clients": {"count": 2}, "data": {"samples_per_client": 20, "validation": 30, "test": 30}}
    prepare(parse(Experiment, table, "test"), tmp_path)
    folders = [client_folder(tmp_path, k) for k in (0, 1)]
    forks = [start("client", folder, NOBODY, folder / "log.txt") for folder in folders]
    try:
        for fork, name in zip(forks, ("client-0", "client-1"), strict=True):
            status = Path(f"/proc/{fork.pid}/status")
            assert f"\nPPid:\t{os.getpid()}\n" in status.read_text(encoding="utf-8")
            while f"Name:\t{name}\n" not in status.read_text(encoding="utf-8"):
                os.sched_yield()  # bounded by the test's time limit
            assert os.getsid(fork.pid) == fork.pid
            assert Path(f"/proc/{fork.pid}/fd/2").readlink() == tmp_path / name / "log.txt"
            assert fork.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            forks[0].wait(0.0)
        forks[0].kill()
        forks[1].terminate()
        assert [fork.wait(PATIENCE_S) for fork in forks] == [-signal.SIGKILL, -signal.SIGTERM]
        forks[0].kill()  # its id may be another process's by now: nothing happens
        assert forks[0].poll() == -signal.SIGKILL
    finally:
        for fork in forks:
            fork.kill()


def test_a_forks_mistake_is_one_line_in_its_log_and_exit_code_2(tmp_path: Path) -> None:
    fork = start("client", tmp_path, NOBODY, tmp_path / "log.txt")
    assert fork.wait(PATIENCE_S) == 2
    (line,) = words(tmp_path / "log.txt")
    assert line.startswith("steelyard: ")
    assert "half.json" in line


def test_a_nursery_that_was_killed_is_replaced(nursery: Nursery, tmp_path: Path) -> None:
    assert nursery.fork("client", tmp_path, NOBODY, tmp_path / "log.txt").wait(PATIENCE_S) == 2
    nursery._process.kill()
    nursery._process.wait()
    assert nursery.fork("client", tmp_path, NOBODY, tmp_path / "log.txt").wait(PATIENCE_S) == 2
    assert len(words(tmp_path / "log.txt")) == 2


def test_code_that_can_not_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "__init__.py").write_text("raise ImportError('this client is broken')", encoding="utf-8")
    (tmp_path / "leaving.py").write_text("import atexit, sys; atexit.register(print, 'bye'); sys.exit(3)", "utf-8")
    monkeypatch.chdir(tmp_path)  # where Python looks first
    nursery = Nursery()
    try:
        assert nursery.fork("client", tmp_path, NOBODY, tmp_path / "log.txt").wait(PATIENCE_S) == 1
        assert words(tmp_path / "log.txt")[-1].startswith("steelyard: a bug: ImportError: this client is broken")
        assert nursery.fork("leaving", tmp_path, [], tmp_path / "left.txt").wait(PATIENCE_S) == 3, "others are forked"
        assert words(tmp_path / "left.txt") == ["bye"]
    finally:
        nursery.close()


def test_a_fork_ends_as_a_process_of_its_own_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "done.py").write_text("print('done')", "utf-8")
    (tmp_path / "kept.py").write_text(KEPT, "utf-8")
    monkeypatch.chdir(tmp_path)
    nursery = Nursery()
    try:
        assert nursery.fork("done", tmp_path, [], tmp_path / "done.txt").wait(PATIENCE_S) == 0
        assert words(tmp_path / "done.txt") == ["done"]
        assert nursery.fork("kept", tmp_path, [], tmp_path / "kept.txt").wait(PATIENCE_S) == 1
        folder, last = words(tmp_path / "kept.txt")
        assert last == "enough"
        assert not Path(folder).exists(), "what was registered before the fork has been done, too"
    finally:
        nursery.close()


def test_code_that_changed_is_loaded_anew(tmp_path: Path) -> None:
    before = forks._nursery()
    forks.keep_up(before.code)
    assert forks._nursery() is before
    forks.keep_up("another")
    try:
        assert forks._nursery() is not before
        assert before._process.poll() is not None
        assert start("client", tmp_path, NOBODY, tmp_path / "log.txt").wait(PATIENCE_S) == 2
    finally:
        forks.keep_up(revision())


def test_a_nursery_that_does_not_start_is_told(tmp_path: Path) -> None:
    nursery = Nursery("-c", "raise SystemExit('no memory is left')")
    try:
        with pytest.raises(RunFailedError, match=r"could not be started: no memory is left"):
            nursery.fork("client", tmp_path, NOBODY, tmp_path / "log.txt")
    finally:
        nursery.close()


@pytest.mark.parametrize(
    ("fate", "error", "said"),
    [
        (signal.SIGKILL, UserError, "server: it left no word"),
        (signal.SIGSTOP, WaitTimeoutError, "a role did not check its half within 0.5 s"),
    ],
)
def test_a_check_that_dies_or_hangs_is_told(
    fate: signal.Signals, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start_badly(_module: str, _half: Path, _arguments: list[str], log: Path) -> Any:
        log.touch()
        started.append(subprocess.Popen(["sleep", "100"]))
        os.kill(started[-1].pid, fate)
        return started[-1]

    monkeypatch.setattr(launch, "start", start_badly)
    monkeypatch.setattr(launch, "CHECK_TIMEOUT_S", 0.5)
    with pytest.raises(error, match=rf"^{said}$"):
        launch.check_roles(parse(Experiment, {"name": "two"}, "test"))
    assert [check.poll() for check in started] == [-signal.SIGKILL] * 2, "none is left behind"
