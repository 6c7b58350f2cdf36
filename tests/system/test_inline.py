"""All roles in one process: a client that fails ends the run at once, with its own words and in the same way."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from deploy.inline import Turns
from deploy.prepare import client_folder, prepare
from steelyard.config import load_experiment
from steelyard.errors import WaitTimeoutError
from steelyard.participation import Stay

LONG = ("protocol.join_timeout_s=3000", "protocol.round_deadline_s=3000")  # longer than a test waits
FAILURES = {
    "half.json": ("{", 2, "half.json: "),
    "data.safetensors": (None, 2, "a tensor bundle expected at"),
    "state": ("in the way", 1, "client-1/state: "),
}


def test_a_client_that_fails_ends_the_run_and_says_why(shell: Any) -> None:
    """The others would wait for its turn, and then complain of that; the runs go on side by side."""
    runs = []
    for name, (content, _, _) in FAILURES.items():
        roles = shell.folder / name / "roles"
        prepare(load_experiment(Path(shell.experiment), LONG), roles)
        path = client_folder(roles, 1) / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content, encoding="utf-8")
        runs.append(shell.python("-m", "deploy.inline", str(roles), "--run", str(shell.folder / name / "run")))
    for run, (name, (_, code, words)) in zip(runs, FAILURES.items(), strict=True):
        found, _, err = shell.finish(run)
        assert (found, words in err.splitlines()[-1]) == (code, True), f"{name}: {err}"


def test_a_process_that_stands_still_does_not_hold_ctrl_c_and_what_is_told_to_go_on_is_a_shells(shell: Any) -> None:
    out = shell.folder / "my runs"
    alone = ("--out", str(out), "--set", "attack.compare_honest=false", "--launcher", "inline")
    launcher = shell.start("run", shell.experiment, *alone)

    def working() -> int:
        for pid in shell.children_of(launcher.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # git, say, has ended meanwhile
                if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8") == "roles\n":
                    return int(pid)
        return 0

    pid = shell.wait_until(working, "the process of all roles")
    os.kill(pid, signal.SIGSTOP)
    launcher.send_signal(signal.SIGINT)
    code, _, err = shell.finish(launcher)
    assert code == 130
    assert not shell.runs(pid)
    (run,) = out.iterdir()
    told = shlex.split(err.partition("To go on: ")[2])
    assert told == ["steelyard", "run", "--resume", str(run), "--launcher", "inline"]


def test_who_waits_for_its_turn_says_for_whom() -> None:
    turns = Turns((2, 0, 1), {client: Stay() for client in range(3)}, 0.05)
    with turns.turn(2, 4):
        pass
    words = "client 1 waited 0.05 s for its turn in round 4: client 0 is not done with it"
    with pytest.raises(WaitTimeoutError, match=words), turns.turn(1, 4):
        pass
