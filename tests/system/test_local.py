"""How long a launcher waits for a process that is to listen: as long as it tells of something that it does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import local
from deploy.local import Process
from steelyard.errors import WaitTimeoutError

STEPS, STEP_S = 12, 0.25
BUSY = f"""import sys, time
for _ in range({STEPS}):
    time.sleep({STEP_S})
    print('{{}}', file=open(sys.argv[1], 'a'))
print('listening on 127.0.0.1:9', flush=True)
time.sleep(100)
"""


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Makes what is put in a process of, and ends it."""
    processes: list[Process] = []
    yield processes
    local.end_all(processes)


def start(folder: Path, program: str) -> Process:
    log = folder / "log.txt"
    with log.open("wb") as output:
        popen = subprocess.Popen([sys.executable, "-c", program, str(folder / "events.jsonl")], stdout=output)
    return Process("server", popen, log)


def test_a_server_that_scores_for_longer_than_the_limit_and_says_so_is_waited_for(
    started: list[Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "START_TIMEOUT_S", STEPS * STEP_S / 2)
    polls: list[float] = []
    started.append(start(tmp_path, BUSY))
    address = local._await_address(started[0], tmp_path, lambda: polls.append(time.monotonic()))
    assert address == "127.0.0.1:9"
    assert len(polls) > 5, "a person sees how far it is, and can end it"


def test_a_server_that_says_nothing_is_given_up(
    started: list[Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.5)
    started.append(start(tmp_path, "import time; time.sleep(100)"))
    with pytest.raises(WaitTimeoutError, match=r"^server neither listened nor told of anything that it did for 0\.5 s"):
        local._await_address(started[0], tmp_path, lambda: None)
