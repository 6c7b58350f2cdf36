"""A link's loop: accepts a client's connections, dials the server for each, passes bytes on, obeys commands.

Needs no privilege and no torch. `LinkConfig` says where to listen, whom to dial, the line's figures and a seed;
FOLDER/control.sock takes commands (`deploy/link/control.py`). One loop, one thread, nothing blocks.
What a TCP link can't be: packets lost, duplicated or overtaking each other, and whatever TCP would make of that.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.link.address import listen, resolve, split
from deploy.link.control import ControlServer
from deploy.link.flow import Flow, Gate
from deploy.link.line import Line
from steelyard.errors import UserError
from steelyard.links import Profile
from steelyard.parsing import NonNegative, parse
from steelyard.seeding import derive_seed

MAX_CONNECTIONS = 64  # at once; a client needs one or two
LONGEST_WAIT_S = 1.0
DIAL_TIMEOUT_S = 20.0
SHAPED_BUFFER_BYTES = 2**16  # the kernel's own buffers would hold seconds of a slow line


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """What link.json says: HOST:PORT to listen at (port 0: any free one) and to dial, the line's figures, a seed."""

    listen: str = "127.0.0.1:0"
    target: str = ""
    profile: Profile = field(default_factory=Profile)
    seed: NonNegative = 0


@dataclass(eq=False)
class Connection:
    """A client's connection and ours to the server, one flow each way."""

    near: socket.socket
    far: socket.socket
    up: Flow
    down: Flow
    dialled: float
    connected: bool = False

    @property
    def flows(self) -> tuple[Flow, Flow]:
        """Both directions."""
        return self.up, self.down


class Link:
    """Listens and passes bytes on until its process ends.

    Args:
        config: what to be.
        folder: where control.sock goes.

    Raises:
        UserError: an address that can't be used.
    """

    def __init__(self, config: LinkConfig, folder: Path) -> None:
        self._target = config.target
        split(config.target, "target")
        self._listener = listen(config.listen)
        self._control = ControlServer(folder, self._obey)
        self._generators = {
            name: random.Random(derive_seed(config.seed, "link", name)) for name in ("up", "down", "stall", "reset")
        }
        self._up, self._down = Gate(), Gate()
        self._lines = {name: Line(0.0, Profile(), self._generators[name]) for name in ("up", "down")}
        self._connections: list[Connection] = []
        self._partitioned = self._held = False
        self._stalled_until = 0.0
        self._next_stall: float | None = None
        self._counts = {"connections": 0, "resets": 0, "stalls": 0, "acts": 0}  # acts: told beforehand, and come about
        self._take_profile(config.profile)

    @property
    def address(self) -> str:
        """The bound HOST:PORT."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def run(self) -> None:
        """Pass bytes on; does not return."""
        while True:
            self._turn()

    def _turn(self) -> None:
        """Wait for something to do and do it."""
        now = time.monotonic()
        is_open = not (self._partitioned or self._held or now < self._stalled_until)
        reads: list[Any] = self._control.sockets
        writes: list[Any] = []
        times = [now + LONGEST_WAIT_S, *self._timers(now)]
        if is_open:
            if len(self._connections) < MAX_CONNECTIONS:
                reads.append(self._listener)
            for connection in self._connections:
                if not connection.connected:
                    writes.append(connection.far)
                    times.append(connection.dialled + DIAL_TIMEOUT_S)
                    continue
                for flow in connection.flows:
                    if flow.wants_read(now):
                        reads.append(flow.source)
                    if flow.wants_write(now):
                        writes.append(flow.sink)
                    if (wakes := flow.wakes(now)) is not None:
                        times.append(wakes)
        readable, writable, _ = select.select(reads, writes, [], max(min(times) - now, 0.0))
        self._control.serve(readable)
        self._act(set(readable), set(writable))

    def _act(self, readable: set[Any], writable: set[Any]) -> None:
        now = time.monotonic()
        if self._next_stall is not None and now >= self._next_stall:
            self._stall(self._profile.stall_s, now)
            self._next_stall = self._stalled_until + self._draw("stall", self._profile.stall_every_s)
        if self._listener in readable:
            self._accept(now)
        for connection in list(self._connections):
            if self._partitioned or self._held or now < self._stalled_until:
                return
            try:
                self._serve(connection, readable, writable, now)
            except OSError:  # either end is gone: so is the connection, at both ends
                self._drop(connection)

    def _serve(self, connection: Connection, readable: set[Any], writable: set[Any], now: float) -> None:
        if not connection.connected:
            if connection.far in writable:
                if error := connection.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, "the target can't be reached")
                connection.connected = True
            elif now - connection.dialled > DIAL_TIMEOUT_S:
                raise OSError("the target did not answer")
            return
        for flow in connection.flows:
            if flow.source in readable and flow.wants_read(now):
                flow.read(now)
            if flow.wants_write(now) and (flow.sink in writable or not flow.blocked):
                flow.write(now)
            self._after(flow.gate)
            if connection not in self._connections:
                return
        if connection.up.done and connection.down.done:
            self._drop(connection, reset=False)

    def _after(self, gate: Gate) -> None:
        """Do what was to happen after a number of bytes, if they have passed."""
        if gate.act is not None and gate.after <= 0:
            act, gate.act = gate.act, None
            self._counts["acts"] += 1
            if act == "hold":
                self._held = True
            else:
                self._reset()
        if gate.until_reset is not None and gate.until_reset <= 0:
            gate.until_reset = self._bytes_to_reset()
            self._reset()

    def _accept(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            near, _ = self._listener.accept()
            try:
                family, target = resolve(self._target, "target")  # anew each time: its host may have moved
            except UserError:  # a name that nobody has just now: as if nobody answered there
                near.close()
                return
            far = socket.socket(family, socket.SOCK_STREAM)
            for end in (near, far):
                end.settimeout(0)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not all(line.is_open for line in self._lines.values()):
                for end in (near, far):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SHAPED_BUFFER_BYTES)
            with contextlib.suppress(BlockingIOError):
                far.connect_ex(target)
            opens = now + 2 * self._profile.latency_ms / 1e3
            up = Flow(near, far, self._lines["up"], self._up, opens)
            down = Flow(far, near, self._lines["down"], self._down, opens)
            self._connections.append(Connection(near, far, up, down, now))
            self._counts["connections"] += 1

    def _drop(self, connection: Connection, *, reset: bool = True) -> None:
        self._connections.remove(connection)
        for flow in connection.flows:
            flow.close()
        for end in (connection.near, connection.far):
            if reset:  # no goodbye: both ends learn that the connection broke
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()

    def _reset(self) -> None:
        self._counts["resets"] += 1
        for connection in list(self._connections):
            self._drop(connection)

    def _stall(self, seconds: float, now: float) -> None:
        self._counts["stalls"] += 1
        self._stalled_until = max(self._stalled_until, now + seconds)

    def _timers(self, now: float) -> list[float]:
        timers = [self._stalled_until] if now < self._stalled_until else []
        return timers if self._next_stall is None else [*timers, self._next_stall]

    def _take_profile(self, profile: Profile) -> None:
        self._profile = profile
        self._lines["up"].shape(profile.up_mbit, profile)
        self._lines["down"].shape(profile.down_mbit, profile)
        self._up.until_reset = self._bytes_to_reset()
        stalls = profile.stall_every_s and profile.stall_s
        self._next_stall = time.monotonic() + self._draw("stall", profile.stall_every_s) if stalls else None

    def _bytes_to_reset(self) -> int | None:
        every = self._profile.reset_every_mb * 1e6
        return max(int(self._draw("reset", every)), 1) if every else None

    def _draw(self, name: str, mean: float) -> float:
        return self._generators[name].expovariate(1.0 / mean)

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command; the reply's `ok` is added by the caller."""
        match command:
            case {"do": "partition", "on": bool(on)}:
                self._partitioned = on
            case {"do": "release"}:
                self._partitioned = self._held = False
                self._stalled_until = 0.0
                self._up.act = self._down.act = None
            case {"do": "stall", "seconds": int() | float() as seconds} if seconds > 0:
                self._stall(seconds, time.monotonic())
            case {"do": "reset" | "hold" as act, "after": int(after)} if after > 0:
                gate = self._down if command.get("direction") == "down" else self._up
                gate.act, gate.after = act, after
            case {"do": "reset"}:
                self._reset()
            case {"do": "profile", "profile": dict(table)}:
                self._take_profile(parse(Profile, table, "profile"))
            case {"do": "stats"}:
                return self._stats()
            case _:
                raise UserError(
                    "a command expected: partition (on), release, stall (seconds), reset (after), hold (after, "
                    f"direction), profile (profile) or stats, got {json.dumps(command)}"
                )
        return {}

    def _stats(self) -> dict[str, Any]:
        return {
            "up": self._up.passed,
            "down": self._down.passed,
            "live": len(self._connections),
            "held": self._held,
            "partitioned": self._partitioned,
            **self._counts,
        }
