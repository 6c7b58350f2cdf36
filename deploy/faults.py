"""Has the fault plan happen: follows a run's events and a client's link, and strikes at the moment that a fault names.

A link is told beforehand to stand still after a number of bytes, so that a client is caught in the middle of its
transfer however fast it is. While it stands still the driver acts, through four verbs and the link's commands that each
launcher has its own way to do (`Hands`). Everything that happens goes into network.jsonl, so a run that is continued
does not meet the same fault twice. Knows no processes, containers or sockets.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from steelyard.bundle import BundleFile
from steelyard.errors import RunFailedError
from steelyard.network import Fault
from steelyard.recording import Recordings, drop_partial_line

RECORD = "network.jsonl"
POLL_S = 0.02  # how often a launcher should call `poll`
Stage = Literal["waiting", "armed", "lasting", "over"]


class Hands(Protocol):
    """What a launcher can do to a client; each returns when it is done."""

    def kill(self, client: int) -> None:
        """End the client's process as a power cut would."""

    def start(self, client: int) -> None:
        """Start it again from its folder."""

    def pause(self, client: int) -> None:
        """Stop it where it is."""

    def resume(self, client: int) -> None:
        """Have it go on."""

    def link(self, client: int, **command: Any) -> dict[str, Any]:
        """Have the client's link obey a command (deploy/link/control.py).

        Raises:
            RunFailedError: it does not answer, or refuses.
        """


class Record:
    """The launcher's own log of a run, network.jsonl: what it did to lines and clients, and what the links counted."""

    def __init__(self, run: Path) -> None:
        self._path = run / RECORD
        drop_partial_line(self._path)

    def add(self, name: str, **fields: Any) -> None:
        """Append one event."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "event": name, **fields}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """The events so far; half a last line never happened."""
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").split("\n")[:-1]]


def count_links(hands: Hands, clients: Iterable[int], record: Record) -> None:
    """Write down what each client's link has counted; one that died has said so already."""
    for client in clients:
        with contextlib.suppress(RunFailedError):
            record.add("link", client=client, **hands.link(client, do="stats"))


@dataclass(eq=False)
class Occurrence:
    """One fault in one round, and how far it has come.

    `acts` is the link's count before it; `until` ends one that lasts.
    """

    fault: Fault
    round: int
    stage: Stage = "waiting"
    acts: int = 0
    until: float = 0.0

    @property
    def names(self) -> dict[str, Any]:
        """What identifies it in the record."""
        return {"client": self.fault.client, "round": self.round, "kind": self.fault.kind}


@dataclass
class Progress:
    """What the run's events say so far. An unfinished last line is read once it is whole."""

    path: Path
    closed: int = 0
    received: set[tuple[int, int]] = field(default_factory=set)
    _offset: int = 0

    def read(self) -> None:
        """Take note of what is new."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")[:-1]
        for line in lines:
            self._offset += len(line) + 1
            event = json.loads(line)
            if event["event"] == "round_closed":
                self.closed = event["round"]
            elif event["event"] == "received":
                self.received.add((event["client"], event["round"]))

    def is_next(self, client: int, number: int) -> bool:
        """Whether the next update of a client would be that of a round."""
        return self.closed >= number - 1 or (client, number - 1) in self.received

    def is_past(self, client: int, number: int) -> bool:
        """Whether nothing more is to come of a client in a round."""
        return self.closed >= number or (client, number) in self.received


class FaultDriver:
    """Follows one run; a launcher calls `poll` often, the first time before its clients start.

    Args:
        faults: the plan; what the clients do by themselves (slow_compute) is left to them.
        run: the run directory; its server is up, so the first global model is there.
        hands: the launcher's.

    Attributes:
        dead: clients that a crash ended before this run was continued; a launcher does not start them again.
    """

    def __init__(self, faults: Sequence[Fault], run: Path, hands: Hands) -> None:
        self._hands = hands
        self._record = Record(run)
        self._progress = Progress(run / "events.jsonl")
        self._model = Recordings(run).global_file(1)
        struck = [event for event in self._record.read() if event["event"] == "fault"]
        known = {(event["client"], event["round"]) for event in struck}
        self.dead = frozenset(event["client"] for event in struck if event["kind"] == "crash")
        self._plan = [
            Occurrence(fault, number)
            for fault in faults
            if fault.needs_link
            for number in fault.covered
            if (fault.client, number) not in known
        ]

    def poll(self, now: float) -> None:
        """Do what is due; `now` is any monotonic clock in seconds."""
        self._progress.read()
        for one in self._plan:
            try:
                self._step(one, now)
            except RunFailedError as error:  # the link is gone: the run's own waits go on and stay bounded
                one.stage = "over"
                self._record.add("fault_failed", **one.names, detail=str(error))
        self._plan = [one for one in self._plan if one.stage != "over"]

    def _step(self, one: Occurrence, now: float) -> None:
        client = one.fault.client
        past = self._progress.is_past(client, one.round)
        if one.stage == "lasting":
            if now >= one.until:
                self._end(one)
        elif one.stage == "waiting":
            if past:
                self._miss(one)
            elif self._progress.is_next(client, one.round) and not self._is_busy(client):
                self._arm(one)
        else:
            stats = self._hands.link(client, do="stats")
            # What a reset broke may have been sent again since the last poll; what is held can't have been.
            if stats["acts"] > one.acts and (not past or one.fault.kind == "reset"):
                self._strike(one, stats, now)
            elif past:
                self._miss(one)

    def _is_busy(self, client: int) -> bool:
        """Whether an earlier fault of the client goes on."""
        return any(one.fault.client == client and one.stage in ("armed", "lasting") for one in self._plan)

    def _arm(self, one: Occurrence) -> None:
        fault = one.fault
        after = max(int(fault.fraction * BundleFile.open(self._model).manifest.nbytes), 1)
        one.acts = self._hands.link(fault.client, do="stats")["acts"]
        direction = "up" if fault.at == "upload" else "down"
        act = "reset" if fault.kind == "reset" else "hold"
        self._hands.link(fault.client, do=act, direction=direction, after=after)
        one.stage = "armed"

    def _strike(self, one: Occurrence, stats: dict[str, Any], now: float) -> None:
        fault, client = one.fault, one.fault.client
        one.stage = "lasting" if fault.seconds else "over"
        one.until = now + (fault.seconds or 0.0)
        if fault.kind in ("crash", "restart"):
            self._hands.kill(client)
            self._hands.link(client, do="reset")  # what it had sent and had not arrived is lost with it
            self._hands.link(client, do="release")
        elif fault.kind == "pause":
            self._hands.pause(client)  # the line stays held: a machine that sleeps sends nothing
        self._record.add("fault", **one.names, at=fault.at, up=stats["up"], down=stats["down"])

    def _end(self, one: Occurrence) -> None:
        client = one.fault.client
        one.stage = "over"
        if one.fault.kind == "restart":
            self._hands.start(client)
        else:
            if one.fault.kind == "pause":
                self._hands.resume(client)
            self._hands.link(client, do="release")
        self._record.add("fault_over", **one.names)

    def _miss(self, one: Occurrence) -> None:
        """The round went by first: the client was not in it, or had sent everything before the link was told."""
        if one.stage == "armed":
            self._hands.link(one.fault.client, do="release")
        one.stage = "over"
        self._record.add("fault_missed", **one.names)
