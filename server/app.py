"""Wires the server's parts together and runs them: folder in, run directory out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import grpc

from server.coordinator import Coordinator
from server.ledger import Ledger
from server.roster import Roster
from server.rounds import RoundMachine
from server.service import FederationService
from server.sessions import Sessions
from server.settlement import Settlement
from steelyard.aggregation import make_defence
from steelyard.bundle import BundleFile, read_arrays
from steelyard.certificates import ServerTls
from steelyard.config import ServerHalf, Shape, load_half
from steelyard.models import FlatModel
from steelyard.recording import ClosedRound, Recordings, read_events
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.paths import make_path
from steelyard.transport.base import TensorPlane
from steelyard.transport.endpoint import bind, server_options
from steelyard.transport.factory import add_server_plane
from steelyard.transport.gate import Gate, threads

CHECKED = Shape(channels=3, height=32, width=32, classes=10)  # of a half's check, which has no data set's
FAREWELL_S = 5.0  # how long a finished server waits for its clients to leave


def check(path: Path) -> None:
    """Validate a server half without running it.

    Raises:
        UserError: an unknown evaluator, rule or parameter, or an evaluation path that does not fit the network.
    """
    half = load_half(ServerHalf, path)
    make_evaluators(half.evaluators, len(half.roster))
    make_defence(half.defence, len(half.roster))
    if half.scoring.path != "plain":
        # whether a path fits is decided by the layers, not by their sizes, and by the device, which may not be here
        model = FlatModel(half.model.name, CHECKED, "cpu" if half.scoring.device == "cpu" else "meta")
        make_path(half.scoring.path, model, [])


def serve(
    folder: Path,
    run: Path,
    announce: Callable[[str, Callable[[str], None]], None],
    make_plane: Callable[[Callable[[int, int], None]], TensorPlane] | None = None,
) -> None:
    """Run the server of a prepared role folder until the experiment ends.

    Args:
        folder: the server's role folder, as `steelyard prepare` wrote it.
        run: the run directory; one that holds an unfinished run is continued.
        announce: called with the bound HOST:PORT once clients may dial it, and with what fails the run, for a reason.
        make_plane: makes the tensor plane from the hook for arriving bytes; None: the configured one.

    Raises:
        UserError: the configuration or the address can't be used.
        RunFailedError: the run aborted; the message says why.
    """
    half: ServerHalf = load_half(ServerHalf, folder / "half.json")
    tls = ServerTls.load(folder / "certificates") if half.transport.certificates else None
    roster = Roster(half.roster)
    recordings = Recordings(run)
    with Ledger(run) as ledger:
        settlement = Settlement(half, read_arrays(folder / "data.safetensors"), recordings, ledger)
        with contextlib.closing(settlement):
            coordinator = _coordinator(half, settlement, recordings, roster, ledger)
            _serve(half, tls, coordinator, roster, ledger, announce, make_plane)


def _serve(
    half: ServerHalf,
    tls: ServerTls | None,
    coordinator: Coordinator,
    roster: Roster,
    ledger: Ledger,
    announce: Callable[[str, Callable[[str], None]], None],
    make_plane: Callable[[Callable[[int, int], None]], TensorPlane] | None,
) -> None:
    """Open the planes and conduct the run; whatever happens, say goodbye properly."""
    workers = ThreadPoolExecutor(threads(len(roster.clients)), thread_name_prefix="grpc")
    gate = Gate(roster.identify, coordinator.refused)
    server = grpc.server(workers, interceptors=[gate], options=server_options())
    if make_plane is None:
        hear = coordinator.bytes_arrived
        coordinator.attach(add_server_plane(server, half.transport, roster.identify, hear, half.device))
    else:
        coordinator.attach(make_plane(coordinator.bytes_arrived))
    FederationService(coordinator, roster, half.transport.timeout_s).add_to(server)
    address = bind(server, half.transport.address, tls)
    server.start()
    try:
        ledger.event("server_started", address=address, incarnation=ledger.incarnation)
        announce(address, coordinator.fail)
        coordinator.run()
    except Exception as error:  # whatever it is, the clients must learn that the run is over
        coordinator.fail(str(error))
        raise
    finally:
        with contextlib.ExitStack() as goodbye:  # every step happens, last one first, even if one before it failed
            goodbye.callback(workers.shutdown, wait=False, cancel_futures=True)
            goodbye.callback(lambda: server.stop(grace=1.0).wait(FAREWELL_S))
            goodbye.callback(coordinator.close)
            goodbye.callback(coordinator.wait_until_left, FAREWELL_S)


def _coordinator(
    half: ServerHalf, settlement: Settlement, recordings: Recordings, roster: Roster, ledger: Ledger
) -> Coordinator:
    """Continue where the recordings end: settle what was closed, reopen what was open."""
    settlement.write_initial_model()
    unsettled = recordings.closed(ledger.settled_rounds + 1)
    _tell_untold(ledger.settled_rounds + 1, unsettled, recordings, ledger)
    if unsettled is not None:
        settlement.settle(unsettled)
    protocol, next_round = half.protocol, ledger.settled_rounds + 1
    machine = RoundMachine(
        clients=roster.clients,
        stays=roster.stays,
        rounds=half.rounds,
        quorum=protocol.quorum,
        round_deadline_s=protocol.round_deadline_s,
        join_timeout_s=protocol.join_timeout_s,
        max_void_rounds=protocol.max_void_rounds,
        now=time.monotonic(),
        next_round=next_round,
        void_rounds=_void_rounds_before(next_round, recordings),
        received=frozenset(recordings.updates(next_round)),
    )
    return Coordinator(
        machine=machine,
        sessions=Sessions(protocol.lease_s),
        recordings=recordings,
        ledger=ledger,
        specs=settlement.specs,
        settle=settlement.settle,
    )


def _tell_untold(number: int, closed: ClosedRound | None, recordings: Recordings, ledger: Ledger) -> None:
    """Write the events of what an earlier server made durable in a round and was killed before it could tell.

    Their time is now's. How long an update was on its way is not known any more: it counts as 0 s.
    """
    events = [event for event in read_events(ledger.run) if event.get("round") == number]
    told = {event["client"] for event in events if event["event"] == "received"}
    counting = recordings.updates(number)
    if closed is not None:  # one that came too late may lie there still
        counting = {client: path for client, path in counting.items() if client in closed.received}
    for client, path in counting.items():
        if client not in told:
            manifest = BundleFile.open(path).manifest
            size = {"bytes": manifest.nbytes, "sha256": manifest.sha256}
            ledger.event("received", round=number, client=client, **size, seconds=0.0)
    if closed is not None and not any(event["event"] == "round_closed" for event in events):
        ledger.event("round_closed", **asdict(closed))


def _void_rounds_before(number: int, recordings: Recordings) -> int:
    """How many rounds in a row were void right before a round."""
    count = 0
    while (closed := recordings.closed(number - 1 - count)) is not None and closed.void:
        count += 1
    return count
