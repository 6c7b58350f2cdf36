"""Starts the processes of roles, forked from one that has loaded what they need: all of them then start like one.

`python -m deploy.forks` loads the client's code, which takes a process that does it alone two seconds and 150 MB, and
then forks one role for every line that it reads; of the server's code little is not the client's too, and a server
loads that itself. It has no role folder open and knows no secret; a fork is a process of its own, a child of the
launcher like any other. Linux only: elsewhere a fork of a fork is not the launcher's child. Not multiprocessing's fork
server: its processes are that server's children, in whatever environment this process has.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
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
from deploy.provenance import revision
from steelyard.errors import RunFailedError, WaitTimeoutError
from steelyard.process import exit_with_launcher, last_words, run_main

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36  # from Linux's <sys/prctl.h>
LOAD_TIMEOUT_S = 600.0
POLL_S = 0.01
FORKED = ("server", "client", "deploy.inline")
_LOCK = threading.Lock()  # a sweep launches from several threads
_code: int | None = None  # what this fork's role ends with; None in a process that is none


def start(module: str, path: Path, arguments: list[str], log: Path) -> subprocess.Popen[bytes] | Fork:
    """Start `python -m MODULE PATH ARGUMENTS`, a role of this launcher's; what it says is appended to the log.

    Raises:
        RunFailedError: it could not be started.
    """
    log.touch()  # so that there is one to read, however early the process ends
    if module in FORKED and sys.platform.startswith("linux"):
        with _LOCK:
            return _nursery().fork(module, path, arguments, log)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(path.resolve()), *arguments],
            env=process_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends the others in order
        )


@functools.cache
def _nursery() -> Nursery:
    """This launcher's, for all that it starts."""
    made = Nursery()
    atexit.register(made.close)
    return made


def keep_up(code: str) -> None:
    """Fork what is started from now on from this revision of the code, if another one has been loaded."""
    with _LOCK:
        if _nursery.cache_info().currsize and _nursery().code != code:
            atexit.unregister(_nursery().close)
            _nursery().close()
            _nursery.cache_clear()


class Fork:
    """A role's process, with as much of `subprocess.Popen` as a launcher uses."""

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
                raise subprocess.TimeoutExpired("fork", timeout or 0.0)
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
    """The process that forks roles. It loads from the moment it is made; the first fork waits for that.

    `program` is another one that forks: Python's arguments for one that ends in `serve`.
    """

    def __init__(self, *program: str) -> None:
        self._program = program or ("-m", "deploy.forks")
        self.code = revision()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._served = False
        self._start()

    def fork(self, module: str, path: Path, arguments: list[str], log: Path) -> Fork:
        """Start a role's process, as `start` does.

        Raises:
            RunFailedError: it could not be started; a process that was ended after it had served is replaced once.
        """
        words = [str(path.resolve()), *arguments]
        order = {"module": module, "name": path.name, "arguments": words, "log": str(log.resolve())}
        try:
            pid = self._ask(order)
        except BaseException:  # a late answer must not be taken for the next order's
            self.close()
            self._start()
            raise
        if not pid and self._served:
            self.close()
            self._start()
            pid = self._ask(order)
        if not pid:
            raise RunFailedError(f"{path.name} could not be started: {self._last_words()}")
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
    """Fork roles until the launcher wants no more."""
    serve()
    return 0


def serve() -> None:
    """Load the client's code, then fork for every line; a fork goes on as its role's own process."""
    exit_with_launcher()
    atexit.register(_leave)  # first, so that it comes last
    with contextlib.suppress(Exception):  # a fork finds the same, and tells it in its own log
        importlib.import_module("client.app")
    gc.collect()
    gc.freeze()  # a fork that looks through what it shares with the others copies it, page by page
    while line := sys.stdin.readline():
        order = json.loads(line)
        if _is_fork():
            _become(order)
            _play(order["module"])


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


def _become(order: dict[str, Any]) -> None:
    """Leave everything of the parent's behind: its pipes, its session, its name."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(here, there)
    os.close(log)
    os.close(nothing)
    ctypes.CDLL(None).prctl(PR_SET_NAME, order["name"].encode("ascii"))
    sys.argv = [order["module"], *order["arguments"]]


def _play(module: str) -> None:
    """Be `python -m MODULE` to the end, but for taking down what was loaded: that costs more than it did to fork."""
    global _code  # noqa: PLW0603 - of this process, as it were
    _code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        _code = 0
    except SystemExit as end:
        _code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    raise SystemExit  # or the loop that reads orders would go on


def _leave() -> None:
    if _code is not None:
        os._exit(_code)


if __name__ == "__main__":
    sys.exit(run_main(main))
