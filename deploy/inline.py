"""Runs prepared role folders inside one process: the server on the main thread, the clients as threads, one at a time.

For debugging and for the proof that the transport changes no number. The control plane stays gRPC on loopback; with
`transport.tensors = "memory"` the tensors never leave the process. It is the one place that imports both sides. Run
as `python -m deploy.inline ROLES --run RUN` in the environment that `deploy.environment` builds.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from client.app import Client
from deploy.prepare import client_folder, server_folder
from server.app import serve
from steelyard.config import ServerHalf, load_half
from steelyard.errors import RunFailedError, WaitTimeoutError
from steelyard.participation import Stay
from steelyard.process import exit_with_launcher, run_main, settle_down
from steelyard.transport.memory import MemoryHub

FAREWELL_S = 2.0  # of clients in a run that failed: one that has not joined yet would go on trying


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
        self._over = False

    def end(self) -> None:
        """Have nobody wait any longer: the run is over."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @contextmanager
    def turn(self, client: int, number: int) -> Iterator[None]:
        """Wait until all before this client are done with the round; its own turn ends with the block."""
        place = [other for other in self._order if self._stays[other].covers(number)].index(client)
        with self._changed:
            if not self._changed.wait_for(lambda: self._over or self._done.get(number, 0) >= place, self._timeout_s):
                slow = [other for other in self._order if self._stays[other].covers(number)][self._done.get(number, 0)]
                waited = f"client {client} waited {self._timeout_s:g} s for its turn in round {number}"
                raise WaitTimeoutError(f"{waited}: client {slow} is not done with it")
            if self._over:
                raise RunFailedError(f"the run was over before client {client} had its turn in round {number}")
        try:
            yield
        finally:
            with self._changed:
                self._done[number] = max(self._done.get(number, 0), place + 1)
                self._changed.notify_all()


def run_inline(roles: Path, run: Path, order: tuple[int, ...]) -> None:
    """Run one prepared experiment to its end, or to that of the first client that fails: others wait for its turn.

    Raises:
        Exception: the server or a client failed; the error of the one that did first.
    """
    half: ServerHalf = load_half(ServerHalf, server_folder(roles) / "half.json")
    hub = MemoryHub() if half.transport.tensors == "memory" else None
    turns = Turns(order, {entry.client: entry.stay for entry in half.roster}, half.protocol.round_deadline_s)
    faults: dict[str, Exception] = {}  # of clients, by the reason that each gave the server for ending the run
    threads: list[threading.Thread] = []

    def take_part(client: int, address: str, end_run: Callable[[str], None]) -> None:
        plane = None if hub is None else (lambda _channel: hub.client(client))
        try:
            Client(client_folder(roles, client), address, plane, lambda number: turns.turn(client, number)).run()
        except Exception as error:  # noqa: BLE001 - a plug-in's bug or a full disk would else end this thread unseen
            reason = f"client {client} failed: {error!r}"
            faults[reason] = error
            end_run(reason)

    def start_clients(address: str, end_run: Callable[[str], None]) -> None:
        for client in sorted(order):
            thread = threading.Thread(target=take_part, args=(client, address, end_run), name=f"client-{client}")
            thread.daemon = True
            thread.start()
            threads.append(thread)

    patience_s = FAREWELL_S
    try:
        serve(server_folder(roles), run, start_clients, hub.server if hub else None)
        patience_s = half.transport.timeout_s
    except RunFailedError as ended:
        fault = faults.get(str(ended), ended)
        raise fault from fault.__cause__  # which a plug-in may have given it
    finally:
        turns.end()
        end = time.monotonic() + patience_s
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0.0))
    if faults:
        raise next(iter(faults.values()))
    if hung := [thread.name for thread in threads if thread.is_alive()]:
        raise WaitTimeoutError(f"{hung[0]} did not end within {half.transport.timeout_s:g} s of the server")


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
