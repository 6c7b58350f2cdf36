"""Runs prepared role folders inside one process: the server on the main thread, the clients as threads, one at a time.

For debugging and for the proof that the transport changes no number. The control plane stays gRPC on loopback; with
`transport.tensors = "memory"` the tensors never leave the process. It is the one place that imports both sides. Run
as `python -m deploy.inline ROLES --run RUN` in the environment that `deploy.environment` builds.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from client.app import Client
from deploy.prepare import client_folder, server_folder
from server.app import serve
from steelyard.config import ServerHalf, load_half
from steelyard.errors import SteelyardError, WaitTimeoutError
from steelyard.participation import Stay
from steelyard.process import exit_with_launcher, run_main, settle_down
from steelyard.transport.memory import MemoryHub


class Turns:
    """Lets clients work in a scripted order, one after another, each round anew.

    Args:
        order: the clients in the order in which they work.
        stays: the rounds that each takes part in; nobody waits for the turn of one outside its rounds.
        timeout_s: bounds the wait for one's turn.
    """

    def __init__(self, order: tuple[int, ...], stays: Mapping[int, Stay], timeout_s: float) -> None:
        self._order = order
        self._stays = stays
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._done: dict[int, int] = {}

    @contextmanager
    def turn(self, client: int, number: int) -> Iterator[None]:
        """Wait until all before this client are done with the round; its own turn ends with the block."""
        place = [other for other in self._order if self._stays[other].covers(number)].index(client)
        with self._changed:
            if not self._changed.wait_for(lambda: self._done.get(number, 0) >= place, self._timeout_s):
                raise WaitTimeoutError(f"client {client} waited {self._timeout_s:g} s for its turn in round {number}")
        try:
            yield
        finally:
            with self._changed:
                self._done[number] = max(self._done.get(number, 0), place + 1)
                self._changed.notify_all()


def run_inline(roles: Path, run: Path, order: tuple[int, ...]) -> None:
    """Run one prepared experiment to its end.

    Raises:
        SteelyardError: the server or a client failed; the server's error comes first.
    """
    half: ServerHalf = load_half(ServerHalf, server_folder(roles) / "half.json")
    hub = MemoryHub() if half.transport.tensors == "memory" else None
    turns = Turns(order, {entry.client: entry.stay for entry in half.roster}, half.protocol.round_deadline_s)
    faults: list[SteelyardError] = []
    threads: list[threading.Thread] = []

    def take_part(client: int, address: str) -> None:
        plane = None if hub is None else (lambda _channel: hub.client(client))
        try:
            Client(client_folder(roles, client), address, plane, lambda number: turns.turn(client, number)).run()
        except SteelyardError as error:
            faults.append(error)

    def start_clients(address: str) -> None:
        for client in sorted(order):
            threads.append(
                threading.Thread(target=take_part, args=(client, address), name=f"client-{client}", daemon=True)
            )
            threads[-1].start()

    try:
        serve(server_folder(roles), run, start_clients, hub.server if hub else None)
    finally:
        for thread in threads:
            thread.join(half.transport.timeout_s)
    if hung := [thread.name for thread in threads if thread.is_alive()]:
        faults.append(WaitTimeoutError(f"{hung[0]} did not end within {half.transport.timeout_s:g} s of the server"))
    if faults:
        raise faults[0]


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m deploy.inline", description="All roles in one process.")
    parser.add_argument("roles", type=Path, help="the folder of role folders")
    parser.add_argument("--run", type=Path, required=True, help="the run directory to write")
    parser.add_argument("--order", help="the order in which clients work, e.g. 2,0,1 (default: by index)")
    arguments = parser.parse_args()
    exit_with_launcher()
    settle_down()
    half: ServerHalf = load_half(ServerHalf, server_folder(arguments.roles) / "half.json")
    order = tuple(entry.client for entry in half.roster)
    if arguments.order:
        order = tuple(int(client) for client in arguments.order.split(","))
    run_inline(arguments.roles, arguments.run, order)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
