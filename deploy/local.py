"""Runs prepared role folders as local processes: one server, N clients, and a link before those that have one.

Whatever ends the launcher ends the processes too: an error and Ctrl-C end them here, and the kernel ends them when the
launcher is killed. Only processes started here are ever ended, by their ids.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.endings import describe, failure
from deploy.faults import POLL_S as FAULT_POLL_S
from deploy.faults import FaultDriver, Record, count_links
from deploy.forks import Fork, start
from deploy.link.control import command
from deploy.prepare import client_folder, link_folder, server_folder
from steelyard.errors import WaitTimeoutError
from steelyard.network import Fault
from steelyard.process import MISTAKE

START_TIMEOUT_S = 600.0  # that a server which does not listen yet may be silent for
END_TIMEOUT_S = 3.0  # between asking a process to end and ending it
POLL_S = 0.2
LISTENING = re.compile(r"^listening on (\S+)\n", re.MULTILINE)
LISTENING_POLL_S = 0.02


@dataclass
class Process:
    """One role's process."""

    role: str
    popen: subprocess.Popen[bytes] | Fork
    log: Path
    begins: int = 0  # where in the log its own words begin
    reported: bool = False

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.popen.poll()

    @property
    def said(self) -> str:
        """All that it has said; an earlier process of the same role is in the log too."""
        return self.log.read_bytes()[self.begins :].decode("utf-8", errors="replace")


def run_local(
    roles: Path,
    run: Path,
    clients: Iterable[int],
    poll: Callable[[], None],
    say: Callable[[str], None],
    faults: Sequence[Fault] = (),
) -> None:
    """Run one prepared experiment to its end.

    Args:
        roles: the folder of role folders.
        run: the run directory that the server writes.
        clients: the indices of the client folders that there are.
        poll: called often while the run goes on; may show progress.
        say: takes one line for the person, e.g. that a client died.
        faults: what is to befall which client when.

    Raises:
        UserError: the server could not start, or no client could, for a reason that the user can mend.
        RunFailedError: the server ended without finishing; the message is its reason.
    """
    here = Roles(roles)
    try:
        server = _start("server", server_folder(roles), ["--run", str(run)])
        here.processes.append(server)
        address = _await_address(server, run, poll)
        for client in clients:  # one by one, so that those started are ended if the next can't start
            here.join(client, address)
        driver = FaultDriver(faults, run, here)
        driver.poll(time.monotonic())
        for client in here.addresses:
            if client not in driver.dead:
                here.start(client)
        _follow(server, here.processes, here.clients.values(), driver if faults else None, poll, say)
        _await_end(list(here.clients.values()))
        linked = [client for client in here.clients if link_folder(roles, client).exists()]
        count_links(here, linked, Record(run))
    finally:
        with ignoring_interrupts():
            end_all(here.processes)


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
        server = _start("server", server_folder(roles), ["--run", str(run)])
        processes.append(server)
        address = _await_address(server, run, poll)
        for client in invite(address):  # one by one, to end those started if the next can't start
            processes.append(client)  # noqa: PERF402 - not at once, see above
        _follow(server, processes, processes[1:], None, poll, say)
        _await_end(processes[1:])
    finally:
        end_all(processes)


class Roles:
    """The processes of a run, and what the fault plan may do to its clients (`deploy.faults.Hands`)."""

    def __init__(self, roles: Path) -> None:
        self._roles = roles
        self.processes: list[Process] = []  # all that were ever started
        self.clients: dict[int, Process] = {}  # each client's latest
        self.addresses: dict[int, str] = {}  # where each client finds the server

    def join(self, client: int, server: str) -> None:
        """Say where a client finds the server: through its link, which starts here, if it has a folder."""
        folder = link_folder(self._roles, client)
        self.addresses[client] = server
        if folder.exists():
            link = _start("deploy.link", folder, ["--target", server])
            self.processes.append(link)
            self.addresses[client] = _await_address(link, folder, lambda: None)

    def start(self, client: int) -> None:
        """Start a client from its folder."""
        arguments = ["--server", self.addresses[client]]
        self.clients[client] = _start("client", client_folder(self._roles, client), arguments)
        self.processes.append(self.clients[client])

    def kill(self, client: int) -> None:
        """End a client at once."""
        self.clients[client].popen.kill()
        self.clients[client].popen.wait()
        self.clients[client].reported = True

    def pause(self, client: int) -> None:
        """Stop a client where it is."""
        self._signal(client, signal.SIGSTOP)

    def resume(self, client: int) -> None:
        """Have a stopped client go on."""
        self._signal(client, signal.SIGCONT)

    def link(self, client: int, **fields: Any) -> dict[str, Any]:
        """Have a client's link obey a command."""
        return command(link_folder(self._roles, client), **fields)

    def _signal(self, client: int, number: signal.Signals) -> None:
        if self.clients[client].code is None:
            os.kill(self.clients[client].popen.pid, number)


def _start(module: str, folder: Path, arguments: list[str]) -> Process:
    log = folder / "log.txt"
    begins = log.stat().st_size if log.exists() else 0
    return Process(folder.name, start(module, folder, arguments, log), log, begins)


def _await_address(process: Process, run: Path, poll: Callable[[], None]) -> str:
    """The address that a process says once it listens."""
    patience, pause, shown = Patience(run), threading.Event(), time.monotonic()
    while not patience.is_over():
        code, said = process.code, process.said  # in this order, so that an ended one has said all
        if listens := LISTENING.search(said):
            return listens[1]
        if code is not None:
            raise failure(code, said, "the server")
        if time.monotonic() - shown > POLL_S:
            poll()
            shown = time.monotonic()
        pause.wait(LISTENING_POLL_S)
    raise WaitTimeoutError(
        f"{process.role} neither listened nor told of anything that it did for {START_TIMEOUT_S:g} s; its log: "
        f"{process.log}"
    )


class Patience:
    """Bounds the wait for a server that starts: a resumed one first scores what it had closed, for hours maybe.

    It tells of that in its events, and the time that it has begins anew with each.
    """

    def __init__(self, run: Path) -> None:
        self._events = run / "events.jsonl"
        self._heard, self._end = -1, 0.0

    def is_over(self) -> bool:
        """Whether nothing was heard of the server for START_TIMEOUT_S."""
        heard, now = self._events.stat().st_size if self._events.exists() else 0, time.monotonic()
        if heard != self._heard:
            self._heard, self._end = heard, now + START_TIMEOUT_S
        return now > self._end


def _follow(
    server: Process,
    processes: Sequence[Process],
    clients: Collection[Process],
    driver: FaultDriver | None,
    poll: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Watch until the server ends; another that dies is told once, and the run goes on without it.

    Unless a mistake of the user's has ended every client: then the server would wait for them in vain.
    """
    shown = 0.0
    while server.code is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.popen.wait(FAULT_POLL_S if driver else POLL_S)
        if driver is not None:
            driver.poll(time.monotonic())
            if time.monotonic() - shown < POLL_S:
                continue
        shown = time.monotonic()
        poll()
        hopeless = bool(clients) and all(client.code == MISTAKE for client in clients)
        for other in processes:
            if other is not server and other.code and not other.reported:
                other.reported = True
                what = "as every client did" if hopeless else "the run goes on without it"
                say(f"{other.role} ended early ({describe(other.code, other.said)}); {what}")
        if hopeless and server.code is None:
            first = next(iter(clients))
            raise failure(MISTAKE, first.said, first.role)
    poll()
    if server.code:
        raise failure(server.code, server.said, "the server")


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
