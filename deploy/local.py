"""Runs prepared role folders as local processes: one server, N clients, each with its own log.

Whatever ends the launcher ends the processes too: an error and Ctrl-C end them here, and the kernel ends them when the
launcher is killed. Only processes started here are ever ended, by their ids.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from deploy.environment import process_environment
from deploy.prepare import client_folder, server_folder
from steelyard.errors import RunFailedError, UserError, WaitTimeoutError

START_TIMEOUT_S = 600.0  # a resumed server first scores the round that it had closed
END_TIMEOUT_S = 3.0  # between asking a process to end and ending it
POLL_S = 0.2
MISTAKE = 2  # the exit code of the user's mistake


class ServerKilledError(RunFailedError):
    """A signal ended the server: nothing speaks against going on from the recordings."""


@dataclass
class Process:
    """One role's process."""

    role: str
    popen: subprocess.Popen[str]
    log: Path
    reported: bool = field(default=False)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.popen.poll()

    def last_words(self) -> str:
        """The last line of its log, without our own prefix."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("steelyard: ") if lines else "it left no word"


def run_local(
    roles: Path, run: Path, clients: Iterable[int], poll: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Run one prepared experiment to its end.

    Args:
        roles: the folder of role folders.
        run: the run directory that the server writes.
        clients: the indices of the client folders that there are.
        poll: called often while the run goes on; may show progress.
        say: takes one line for the person, e.g. that a client died.

    Raises:
        UserError: the server could not start for a reason that the user can mend.
        RunFailedError: the server ended without finishing; the message is its reason.
    """

    def start_clients(address: str) -> Iterator[Process]:
        for client in clients:
            yield _start("client", client_folder(roles, client), ["--server", address], None)

    run_server(roles, run, start_clients, poll, say)


def run_server(
    roles: Path,
    run: Path,
    invite: Callable[[str], Iterable[Process]],
    poll: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Run a prepared experiment's server to its end, with the clients that `invite` starts once it listens.

    Args and errors as for `run_local`, but for `invite`: it is handed the server's HOST:PORT; the processes that it
    yields are followed and ended here, and there are none if others start the clients.
    """
    processes: list[Process] = []
    try:
        server = _start("server", server_folder(roles), ["--run", str(run)], subprocess.PIPE)
        processes.append(server)
        for client in invite(_await_address(server)):  # one by one, to end those started if the next can't start
            processes.append(client)  # noqa: PERF402 - not at once, see above
        _follow(server, processes[1:], poll, say)
        _await_end(processes[1:])
    finally:
        end_all(processes)


def _start(module: str, folder: Path, arguments: list[str], stdout: int | None) -> Process:
    log = folder / "log.txt"
    with log.open("a", encoding="utf-8") as output:
        popen = subprocess.Popen(
            [sys.executable, "-m", module, str(folder.resolve()), *arguments],
            env=process_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends the others in order
        )
    return Process(folder.name, popen, log)


def _await_address(server: Process) -> str:
    """The address that the server prints once it listens."""
    lines: queue.Queue[str] = queue.Queue()
    stream = server.popen.stdout
    assert stream is not None
    threading.Thread(target=_pump, args=(stream, lines), daemon=True).start()
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        with contextlib.suppress(queue.Empty):
            return lines.get(timeout=POLL_S).removeprefix("listening on ").strip()
        if server.code is not None and lines.empty():
            raise _failure(server)
    raise WaitTimeoutError(f"the server did not listen within {START_TIMEOUT_S:g} s; its log: {server.log}")


def _pump(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)


def _follow(server: Process, clients: list[Process], poll: Callable[[], None], say: Callable[[str], None]) -> None:
    """Watch until the server ends; a client that dies is told once, and the run goes on without it."""
    while server.code is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.popen.wait(POLL_S)
        poll()
        for client in clients:
            if client.code and not client.reported:
                client.reported = True
                say(f"{client.role} ended early ({describe_exit(client)}); the run goes on without it")
    poll()
    if server.code:
        raise _failure(server)


def _failure(server: Process) -> UserError | RunFailedError:
    words = server.last_words()
    if server.code == MISTAKE:
        return UserError(words)
    if server.code is not None and server.code < 0:
        return ServerKilledError(
            f"the server was ended by {signal.Signals(-server.code).name}; resume the run to go on"
        )
    return RunFailedError(words)


def describe_exit(process: Process) -> str:
    """Why a process ended, for a person."""
    code = process.code
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}: {process.last_words()}"


def _await_end(processes: list[Process]) -> None:
    """Give processes whose work is done time to end by themselves."""
    end = time.monotonic() + END_TIMEOUT_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(max(end - time.monotonic(), 0.0))


def end_all(processes: list[Process]) -> None:
    """End every process that still runs: ask, wait, then insist."""
    with ignoring_interrupts():
        for process in processes:
            if process.code is None:
                process.popen.terminate()
        _await_end(processes)
        for process in processes:
            if process.code is None:
                process.popen.kill()
            process.popen.wait()
            if process.popen.stdout is not None:
                process.popen.stdout.close()


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """A second Ctrl-C must not leave an orphan behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
