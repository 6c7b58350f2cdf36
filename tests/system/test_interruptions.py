"""Whatever dies mid-run, the run goes on or can be continued, and the scores are those of a run nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

Launcher = subprocess.Popen[str]
pytestmark = pytest.mark.timeout(400)  # several waits, each bounded, on a loaded machine

ALONE = ("--set", "attack.compare_honest=false")


def stuck(shell: Any, *arguments: str) -> tuple[Launcher, dict[str, int], Any, int]:
    """A run in a round that waits for client 1, which is stopped: launcher, processes, run directory and round."""
    launcher = shell.start_run(*ALONE, *arguments)
    pids = shell.wait_until(lambda: len(roles := shell.roles_of(launcher)) == 4 and roles, "all processes")
    look = shell.look(shell.the_run())
    shell.wait_until(lambda: look.events("fetched", client=1), "the first model of client 1")
    os.kill(pids["client-1"], signal.SIGSTOP)

    def waiting() -> int:
        opened = [event["round"] for event in look.events("round_opened")][-1]
        arrived = {event["client"] for event in look.events("received", round=opened)}
        return opened if arrived == {0, 2} else 0

    return launcher, pids, look, shell.wait_until(waiting, "a round that waits for client 1 alone")


def end(shell: Any, pid: int) -> None:
    """Kill a process, stopped or not, and see that it is gone."""
    os.kill(pid, signal.SIGKILL)
    shell.wait_until(lambda: not shell.runs(pid), f"the end of process {pid}")


def interrupt(_shell: Any, launcher: Launcher, _pids: dict[str, int]) -> tuple[int, str]:
    launcher.send_signal(signal.SIGINT)
    return 130, "interrupted; every process was ended. To go on: steelyard run --resume"


def kill_server(shell: Any, _launcher: Launcher, pids: dict[str, int]) -> tuple[int, str]:
    end(shell, pids["server"])
    os.kill(pids["client-1"], signal.SIGCONT)  # or the launcher would have to insist, as when it is interrupted
    return 1, "the server was ended by SIGKILL; resume the run to go on"


def kill_launcher(_shell: Any, launcher: Launcher, _pids: dict[str, int]) -> tuple[int, str]:
    launcher.kill()  # client 1 stands still as in a fault plan's pause, and must end with the others
    return -signal.SIGKILL, ""


# A server that is killed goes on in tests/network/test_federation.py too.
@pytest.mark.parametrize("disturb", [interrupt, pytest.param(kill_server, marks=pytest.mark.slow), kill_launcher])
def test_a_disturbed_run_goes_on_to_the_same_scores(
    disturb: Callable[[Any, Launcher, dict[str, int]], tuple[int, str]], undisturbed: Any, shell: Any
) -> None:
    launcher, pids, look, number = stuck(shell)
    code, words = disturb(shell, launcher, pids)
    left, _, err = shell.finish(launcher)
    assert left == code
    assert words in err
    assert "Traceback" not in err
    shell.wait_until(lambda: not [pid for pid in pids.values() if shell.runs(pid)], "the end of every process")
    assert look.events("round_closed", round=number) == [], "the round was open"
    status = json.loads((look.run / "manifest.json").read_text(encoding="utf-8"))["status"]
    assert status == ("RUNNING" if disturb is kill_launcher else "FAILED")

    code, said, err = shell.steelyard("run", "--resume", str(look.run))
    assert (code, err) == (0, "")
    assert "an interrupted run is here; it goes on where it stopped" in said
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models)
    assert len(look.events("server_started")) == 2
    assert len(look.events("received", round=number)) == 3, "what had arrived was not sent again"
    assert json.loads((look.run / "manifest.json").read_text(encoding="utf-8"))["status"] == "DONE"


def test_a_run_whose_reader_is_gone_ends_like_any_command_and_can_go_on(shell: Any) -> None:
    launcher = shell.start_run(*ALONE, "--set", "rounds=1", "--launcher", "inline")
    run = shell.the_run()
    launcher.stdout.close()  # as `| head` does
    code, _, err = shell.finish(launcher)
    assert (code, err) == (141, "")
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["status"], manifest["reason"]) == ("FAILED", "interrupted")
    assert shell.steelyard("run", "--resume", str(run), "--launcher", "inline")[::2] == (0, "")


def test_a_killed_client_is_missing_and_scores_0(shell: Any) -> None:
    short = ("--set", "protocol.round_deadline_s=5", "--set", "protocol.lease_s=3", "--set", "rounds=2")
    launcher, pids, look, number = stuck(shell, *short)
    end(shell, pids["client-1"])
    code, said, err = shell.finish(launcher)
    assert (code, err) == (0, "")
    assert "client-1 ended early (killed by SIGKILL); the run goes on without it" in said
    (closed,) = look.events("round_closed", round=number)
    assert (closed["received"], closed["missing"], closed["void"]) == ([0, 2], [1], False)
    assert closed["reason"] == "deadline after 5 s: client 1 missing"
    assert len(look.events("expired", client=1)) == 1
    values = {float(value) for round_, client, _, value in look.scores if (round_, client) == (str(number), "1")}
    assert values == {0.0}
    assert any(float(value) for _, client, _, value in look.scores if client == "2"), "others score as ever"


@pytest.mark.slow  # test_faults.py has the launcher start a client again, in company
def test_a_killed_client_that_comes_back_takes_part_again(undisturbed: Any, shell: Any) -> None:
    launcher, pids, look, number = stuck(shell)
    end(shell, pids["client-1"])
    (started,) = look.events("server_started")
    folder = look.run / "roles" / "client-1"
    again = shell.python("-m", "client", str(folder), "--server", started["address"])
    assert shell.finish(launcher)[0] == 0
    assert shell.finish(again)[0] == 0
    assert len(look.events("joined", client=1)) == 2
    assert [event["received"] for event in look.events("round_closed")] == [[0, 1, 2]] * 3
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models), f"round {number} waited for it"
