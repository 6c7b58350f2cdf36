"""Clients that die or freeze before, during and after a transfer over gloo: real processes, struck from within.

All three befall clients of one round, which closes at its deadline with what the others sent. Afterwards the dead are
started again and the frozen go on: each joins anew, under a new pair, and takes part in later rounds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.environment import process_environment
from deploy.prepare import client_folder

MISHAPS = {1: "before", 2: "during", 3: "after"}  # by client; client 0 is spared
SETTINGS: dict[str, Any] = {
    "rounds": 500,  # the test ends the run
    "clients": {"count": 4},
    "protocol": {"round_deadline_s": 4.0, "join_timeout_s": 60.0, "lease_s": 2.0, "quorum": 2},
    "transport": {"tensors": "gloo", "trusted_peers": True, "timeout_s": 20.0},
    "evaluators": [{"name": "loo_loss", "kind": "loo", "utility": "loss"}],
}
CLIENT = """
import signal, sys, threading
from pathlib import Path
from client import app, session
from steelyard.process import exit_with_launcher, settle_down
from steelyard.transport import collective, collective_client, factory

folder, address, mishap, number = sys.argv[1:]
exit_with_launcher()
settle_down()

def strike(owner, name, calls, after=False):
    whole, left = getattr(owner, name), [calls]
    def struck(*arguments):
        result = whole(*arguments) if after else None
        left[0] -= 1
        if left[0] == 0:
            signal.pthread_kill(threading.get_ident(), int(number))  # this thread goes no step further
        return result if after else whole(*arguments)
    setattr(owner, name, struck)

if mishap == "before":
    strike(collective_client.CollectiveClientPlane, "receive", 1)
elif mishap == "during":
    init = collective_client.CollectiveClientPlane.__init__
    def small_pieces(self, *arguments):
        init(self, *arguments, chunk_bytes=1000)
    collective_client.CollectiveClientPlane.__init__ = small_pieces
    strike(collective.Gloo, "send", 4)
elif mishap == "after":
    strike(session.Session, "submit", 1, after=True)
app.Client(Path(folder), address).run()
"""


class Clients:
    """Client processes of a federation, some of which have a mishap coming."""

    def __init__(self, federation: Any) -> None:
        self._federation = federation
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, client: int, mishap: str = "", number: int = 0) -> None:
        folder = client_folder(self._federation.roles, client)
        with (folder / "log.txt").open("ab") as log:
            self.processes[client] = subprocess.Popen(
                [sys.executable, "-c", CLIENT, str(folder), self._federation.address, mishap, str(number)],
                env=process_environment(),
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )

    def state(self, client: int) -> str:
        """The kernel's word on a process: T stopped, Z ended, anything else."""
        text = Path(f"/proc/{self.processes[client].pid}/stat").read_text(encoding="utf-8")
        return text.rpartition(")")[2].split()[0]

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def run_with(make_federation: Callable[..., Any]) -> Iterator[Callable[[], tuple[Any, Clients]]]:
    made: list[Clients] = []

    def run() -> tuple[Any, Clients]:
        federation = make_federation(**SETTINGS)
        made.append(Clients(federation))
        return federation, made[-1]

    yield run
    for clients in made:
        clients.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_round_closes_without_those_that_died_and_later_ones_have_them_again(
    number: signal.Signals, run_with: Callable[[], tuple[Any, Clients]]
) -> None:
    federation, clients = run_with()
    for client in range(4):
        clients.start(client, MISHAPS.get(client, ""), int(number))

    closed = federation.await_event("round_closed", round=1)
    assert closed["received"] == [0, 3], "what was durable before its client died counts"
    assert closed["missing"] == [1, 2]
    assert closed["reason"] == "deadline after 4 s: clients 1 and 2 missing"
    expected = "Z" if number == signal.SIGKILL else "T"
    assert [clients.state(client) for client in MISHAPS] == [expected] * 3, "each at its own point of the transfer"
    late = federation.events("refused", client=2, request="Submit")
    assert len(late) == 1
    assert late[0]["refusal"] == "LATE"

    for client in MISHAPS:
        if number == signal.SIGKILL:
            clients.processes[client].wait()
            clients.start(client)
        else:
            os.kill(clients.processes[client].pid, signal.SIGCONT)
    full = federation.await_event("round_closed", received=[0, 1, 2, 3])
    assert full["round"] > 1
    assert full["missing"] == []
    for client in (1, 2):
        assert len(federation.events("joined", client=client)) == 2, "by a new session, and so by a new pair"
    assert federation.server.poll() is None
    assert [process.poll() for process in clients.processes.values()] == [None] * 4
