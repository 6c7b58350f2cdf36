"""Client processes forked from one that has already loaded what a client needs: ten of them then start like one.

`python -m deploy.forks` loads the client's code, which takes each process that does it alone a second and 150 MB, and
then forks one client for every line that it reads. It has no role folder open and knows no secret; a fork is a process
of its own, a child of the launcher like any other. Linux only: elsewhere a fork of a fork is not the launcher's child.
Not multiprocessing's fork server: its processes are that server's children, in whatever environment this process has.
`python -m deploy.forks server` forks servers, which tests need many of.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from deploy.environment import process_environment
from steelyard.errors import RunFailedError, WaitTimeoutError
from steelyard.process import exit_with_launcher, last_words, run_main, settle_down

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36  # from Linux's <sys/prctl.h>
LOAD_TIMEOUT_S = 600.0
POLL_S = 0.01


def can_fork() -> bool:
    """Whether this system can: the launcher must be able to become the parent of its grandchildren."""
    return sys.platform.startswith("linux")


class Fork:
    """A client's process, with as much of `subprocess.Popen` as a launcher uses."""

    stdout = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended by then.
        """
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        pause = threading.Event()
        while (code := self.poll()) is None:
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired("client", timeout or 0.0)
            pause.wait(POLL_S)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:  # not reaped, so its id can't be another process's
            os.kill(self.pid, number)


class Nursery:
    """The process that forks clients. It loads from the moment it is made; the first fork waits for that.

    `program` is what else than a client's process forks: Python's arguments for one that ends in `serve`.
    """

    def __init__(self, *program: str) -> None:
        self._program = program or ("-m", "deploy.forks")
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._served = False
        self._start()

    def fork(self, folder: Path, arguments: list[str], log: Path) -> Fork:
        """Start the role of a folder; what it says is appended to the log.

        Raises:
            RunFailedError: it could not be started; a process that was ended after it had served is replaced once.
        """
        order = {"name": folder.name, "arguments": [str(folder.resolve()), *arguments], "log": str(log.resolve())}
        pid = self._ask(order)
        if not pid and self._served:
            self.close()
            self._start()
            pid = self._ask(order)
        if not pid:
            raise RunFailedError(f"{folder.name} could not be started: {self._last_words()}")
        self._served = True
        return Fork(int(pid))

    def close(self) -> None:
        """End the process; its forks live on, but one whose id nobody has heard."""
        self._process.kill()
        late, _ = self._process.communicate()
        for pid in late.split():
            fork = Fork(int(pid))
            fork.kill()
            fork.wait()
        self._words.close()

    def _start(self) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, *self._program],
            env=process_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the launcher alone
        )

    def _ask(self, order: dict[str, Any]) -> str:
        """A fork's id; empty where there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        if not select.select([self._process.stdout], [], [], LOAD_TIMEOUT_S)[0]:
            raise WaitTimeoutError(f"the role's code was not loaded within {LOAD_TIMEOUT_S:g} s")
        return self._process.stdout.readline().strip()

    def _last_words(self) -> str:
        self._process.kill()
        self._process.wait()
        self._words.seek(0)
        return last_words(self._words.read().decode("utf-8", errors="replace"))


def main() -> int:
    """Fork clients, or what the command line names."""
    serve(*sys.argv[1:2] or ["client"])
    return 0


def serve(role: str) -> None:
    """Load a role's code, then fork for every line; a fork goes on as that role's own process."""
    exit_with_launcher()
    settle_down()
    importlib.import_module(f"{role}.app")
    while line := sys.stdin.readline():
        order = json.loads(line)
        if _is_fork():
            _become(role, order)
            runpy.run_module(role, run_name="__main__", alter_sys=True)


def _is_fork() -> bool:
    """Fork a grandchild, print its id and return False; in the grandchild, once it is the launcher's, return True."""
    ids, tell = os.pipe()
    gate, let = os.pipe()
    child = os.fork()
    if child:
        os.waitpid(child, 0)  # from here on the grandchild is the launcher's, which may then wait for it
        os.close(tell)
        os.write(1, os.read(ids, 32) + b"\n")
        for end in (ids, gate, let):
            os.close(end)
        return False
    grandchild = os.fork()
    if grandchild:
        os.write(tell, str(grandchild).encode("ascii"))
        os._exit(0)
    for end in (ids, tell, let):
        os.close(end)
    os.read(gate, 1)  # nothing, as soon as the last process that holds the other end has closed it
    os.close(gate)
    return True


def _become(role: str, order: dict[str, Any]) -> None:
    """Leave everything of the parent's behind: its pipes, its session, its name."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(here, there)
    os.close(log)
    os.close(nothing)
    ctypes.CDLL(None).prctl(PR_SET_NAME, order["name"].encode("ascii"))
    sys.argv = [role, *order["arguments"]]


if __name__ == "__main__":
    sys.exit(run_main(main))
