"""Clients that die or freeze before, during and after a transfer over gloo: real processes, struck from within.

All three befall clients of the second round, whose training takes no time any more. It closes at its deadline with what
the others sent. Afterwards the dead are
started again and the frozen go on: each gets a new pair and takes part in later rounds.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.forks import Fork, Nursery
from deploy.prepare import client_folder

WAIT_S = 120.0  # bounds every wait; never what a test measures
PAUSE = threading.Event()
MISHAPS = ("before", "during", "after")  # of clients 1, 2 and 3, who freeze, and of 4, 5 and 6, who die; 0 is spared
FROZEN, DEAD = (1, 2, 3), (4, 5, 6)
SETTINGS: dict[str, Any] = {
    "rounds": 500,  # the test ends the run
    "clients": {"count": 7},
    "protocol": {"round_deadline_s": 5.0, "join_timeout_s": 90.0, "lease_s": 4.0, "quorum": 2},
    "transport": {"tensors": "gloo", "trusted_peers": True, "timeout_s": 20.0},
    "evaluators": [{"name": "loo_loss", "kind": "loo", "utility": "loss"}],
}
STRUCK = """
import signal, threading
from client import app, session
from deploy.forks import serve
from steelyard.transport import collective_backends, collective_client

armed = False
work, begin = app.Client._work, app.Client.__init__

def note_the_round(self, session, number):
    global armed
    armed = number == 2
    work(self, session, number)

def strike(owner, name, number, calls, after=False):
    whole, left = getattr(owner, name), [calls]
    def struck(*arguments):
        result = whole(*arguments) if after else None
        left[0] -= armed
        if armed and left[0] == 0:
            signal.pthread_kill(threading.get_ident(), int(number))  # this thread goes no step further
        return result if after else whole(*arguments)
    setattr(owner, name, struck)

def expect_the_mishap(self, folder, server):
    mishap, number = (folder / "mishap").read_text().split(",")
    if mishap == "before":
        strike(collective_client.CollectiveClientPlane, "receive", number, 1)
    elif mishap == "during":
        init = collective_client.CollectiveClientPlane.__init__
        def small_pieces(self, *arguments):
            init(self, *arguments, chunk_bytes=1000)
        collective_client.CollectiveClientPlane.__init__ = small_pieces
        strike(collective_backends.Gloo, "send", number, 4)
    elif mishap == "after":
        strike(session.Session, "submit", number, 1, after=True)
    begin(self, folder, server)

app.Client._work, app.Client.__init__ = note_the_round, expect_the_mishap
serve()
"""


class Clients:
    """Client processes of a federation, some of which have a mishap coming."""

    def __init__(self, federation: Any, nursery: Nursery) -> None:
        self._federation = federation
        self._nursery = nursery
        self.processes: dict[int, Fork] = {}

    def start(self, client: int, mishap: str = "", number: int = 0) -> None:
        folder = client_folder(self._federation.roles, client)
        (folder / "mishap").write_text(f"{mishap},{number}", encoding="ascii")
        arguments = ["--server", self._federation.address]
        self.processes[client] = self._nursery.fork("client", folder, arguments, folder / "log.txt")

    def state(self, client: int) -> str:
        """The kernel's word on a process: T stopped, Z ended, anything else."""
        text = Path(f"/proc/{self.processes[client].pid}/stat").read_text(encoding="utf-8")
        return text.rpartition(")")[2].split()[0]

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def run_with(make_federation: Callable[..., Any]) -> Iterator[Callable[[], tuple[Any, Clients]]]:
    made: list[Clients] = []
    nursery = Nursery("-c", STRUCK)

    def run() -> tuple[Any, Clients]:
        federation = make_federation(**SETTINGS)
        made.append(Clients(federation, nursery))
        return federation, made[-1]

    yield run
    nursery.close()
    for clients in made:
        clients.stop()


def awaited(federation: Any, name: str, after: int = 0, **fields: Any) -> dict[str, Any]:
    """An event, of a round after `after` if that is given; many processes on a busy machine may take long."""
    end = time.monotonic() + WAIT_S
    while not (found := [e for e in federation.events(name, **fields) if not after or e["round"] > after]):
        assert federation.server.poll() is None, "the server lives on"
        assert time.monotonic() < end, f"event {name} {fields} did not come within {WAIT_S:g} s"
        PAUSE.wait(0.05)
    return dict(found[0])


@pytest.mark.timeout(400)  # several waits, each bounded, on a loaded machine
def test_a_round_closes_without_those_that_died_or_froze_and_later_ones_have_them_again(
    run_with: Callable[[], tuple[Any, Clients]],
) -> None:
    federation, clients = run_with()
    clients.start(0)
    for group, number in ((FROZEN, signal.SIGSTOP), (DEAD, signal.SIGKILL)):
        for client, mishap in zip(group, MISHAPS, strict=True):
            clients.start(client, mishap, int(number))

    closed = awaited(federation, "round_closed", round=2)
    assert closed["received"] == [0, 3, 6], "what was durable before its client was struck counts"
    assert closed["missing"] == [1, 2, 4, 5]
    assert closed["reason"].startswith("deadline after 5 s")
    assert "".join(clients.state(client) for client in FROZEN + DEAD) == "TTTZZZ", "each at its point of the transfer"
    for client in (2, 5):
        assert awaited(federation, "refused", client=client, request="Submit")["refusal"] == "LATE"

    for client in DEAD:
        clients.processes[client].wait()
        clients.start(client)
    for client in FROZEN:
        os.kill(clients.processes[client].pid, signal.SIGCONT)
    awaited(federation, "round_closed", received=list(range(7)), after=2)
    for client in DEAD:
        assert len(federation.events("joined", client=client)) >= 2, "by a new session, and so by a new pair"
    assert [process.poll() for process in clients.processes.values()] == [None] * 7
