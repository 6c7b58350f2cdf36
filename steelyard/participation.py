"""Who takes part when: clients that are absent, join late, leave or return. Knows rounds and indices, nothing else.

An experiment's schedule becomes one `Stay` per client. The server's roster holds every stay, so what a round expects is
decided before the run starts, by no launcher and by no order of joining; a client is told its own alone. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from steelyard.errors import UserError
from steelyard.parsing import NonNegative, Positive, nearest

KEYS = ("client", "join", "leave", "return")


@dataclass(frozen=True, kw_only=True)
class Stay:
    """The rounds of one client: from `join` on, none from `leave` on, and again from `back` on (0: never)."""

    join: Positive = 1
    leave: NonNegative = 0
    back: NonNegative = 0

    def covers(self, round_: int) -> bool:
        """Whether the client takes part in a round."""
        left, returned = 0 < self.leave <= round_, 0 < self.back <= round_
        return self.join <= round_ and (returned or not left)

    def is_over(self, round_: int) -> bool:
        """Whether the client takes part neither in a round nor in any later one."""
        return 0 < self.leave <= round_ and not self.back


def stays(clients: Sequence[int], schedule: Sequence[Mapping[str, int]]) -> dict[int, Stay]:
    """The stay of each client; one without a line in the schedule takes part in every round."""
    lines = {line["client"]: line for line in schedule}
    return {client: _stay(lines.get(client, {})) for client in clients}


def expected(stays_: Mapping[int, Stay], round_: int) -> frozenset[int]:
    """The clients that take part in a round."""
    return frozenset(client for client, stay in stays_.items() if stay.covers(round_))


def check_schedule(clients: Sequence[int], schedule: Sequence[Mapping[str, int]], rounds: int, where: str) -> None:
    """Check a schedule's lines.

    Args:
        clients: the clients that are there at all.
        schedule: the `[[clients.schedule]]` tables.
        rounds: the number of rounds.
        where: what to call the schedule in an error.

    Raises:
        UserError: an unknown or missing key, a client that is absent or has two lines, or rounds out of order.
    """
    seen: set[int] = set()
    for line in schedule:
        for key in line:
            if key not in KEYS:
                raise UserError(f"{where}: unknown key {key!r}{nearest(key, KEYS)}")
        client = line.get("client")
        if client is None or client not in clients or client in seen:
            raise UserError(f"{where} client: one of {listed(clients)}, each once, expected, got {client!r}")
        seen.add(client)
        _check_line(line, rounds, f"{where} client {client}")


def check_rounds(stays_: Mapping[int, Stay], rounds: int, quorum: int, where: str) -> None:
    """Check that no round expects fewer clients than it needs updates (`quorum`, and at least 1).

    Raises:
        UserError: one does.
    """
    turns = {turn for stay in stays_.values() for turn in (stay.join, stay.leave, stay.back) if 0 < turn <= rounds}
    for round_ in sorted({1, *turns}):  # between two turns nothing changes
        there = len(expected(stays_, round_))
        if there < max(quorum, 1):
            raise UserError(
                f"{where}: at least {max(quorum, 1)} clients in every round expected (the quorum), "
                f"round {round_} has {there}"
            )


def _stay(line: Mapping[str, int]) -> Stay:
    return Stay(join=line.get("join", 1), leave=line.get("leave", 0), back=line.get("return", 0))


def _check_line(line: Mapping[str, int], rounds: int, where: str) -> None:
    if len(line) == 1:
        raise UserError(f"{where}: join, leave or return expected, got none")
    if "return" in line and "leave" not in line:
        raise UserError(f"{where} return: leave expected beside it, there is none")
    after = 0
    for key in KEYS[1:]:
        if key not in line:
            after = after or 1  # who has no late start is there in round 1, so the first round without it is later
        elif not after < line[key] <= rounds:
            raise UserError(f"{where} {key}: a round from {after + 1} to {rounds} expected, got {line[key]}")
        else:
            after = line[key]


def listed(clients: Iterable[int]) -> str:
    """Clients for an error's line, e.g. "0, 2, 3"."""
    return ", ".join(map(str, clients))
