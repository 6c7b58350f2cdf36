"""What moving the tensors took, per client and round, from a run's events alone. Pure; knows no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Event = Mapping[str, Any]
DOWN, UP = ("fetched", "fetch_failed"), ("received", "upload_failed")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One client in one round, as the server saw it.

    Attributes:
        client: whose.
        round: which.
        bytes_down: of the global model, every whole transfer.
        bytes_up: of updates, what arrived of broken uploads included.
        transfer_seconds: of all transfers, from their announcement to their last byte.
        retries: transfers beyond the first, in either direction.
        idle_seconds: from the moment its update counted to the round's end, when it waited for others; None when its
            update did not count.
    """

    client: int
    round: int
    bytes_down: int
    bytes_up: int
    transfer_seconds: float
    retries: int
    idle_seconds: float | None


def traffic(events: Sequence[Event]) -> list[Traffic]:
    """The rows of every client that took part, by round and client.

    A restarted server opens its round again: the last closing counts, and so does every transfer.
    """
    closed = {event["round"]: event["time"] for event in events if event["event"] == "round_closed"}
    mine: dict[tuple[int, int], list[Event]] = {part: [] for part in sorted(_participants(events)) if part[0] in closed}
    for event in events:
        if event["event"] in (*DOWN, *UP) and (part := (event.get("round"), event.get("client"))) in mine:
            mine[part].append(event)
    return [_row(own, number, client, closed[number]) for (number, client), own in mine.items()]


def totals(rows: Iterable[Traffic]) -> list[dict[str, Any]]:
    """The same per client over all rounds: sums, and the number of rounds in which its update counted."""
    by_client: dict[int, list[Traffic]] = {}
    for row in rows:
        by_client.setdefault(row.client, []).append(row)
    return [
        {
            "client": client,
            "rounds": sum(row.idle_seconds is not None for row in own),
            "bytes_down": sum(row.bytes_down for row in own),
            "bytes_up": sum(row.bytes_up for row in own),
            "transfer_seconds": math.fsum(row.transfer_seconds for row in own),
            "retries": sum(row.retries for row in own),
            "idle_seconds": math.fsum(row.idle_seconds or 0.0 for row in own),
        }
        for client, own in sorted(by_client.items())
    ]


def account(events: Sequence[Event]) -> dict[str, Any]:
    """Both, ready for a summary."""
    rows = traffic(events)
    return {"by_client": totals(rows), "by_round": [asdict(row) for row in rows]}


def transfers(events: Iterable[Event]) -> int:
    """How many they tell of: a line stands for several where a client brought about very many."""
    return sum(event.get("count", 1) for event in events)


def _participants(events: Iterable[Event]) -> set[tuple[int, int]]:
    opened = [event for event in events if event["event"] == "round_opened"]
    return {(event["round"], client) for event in opened for client in event["participants"]}


def _row(mine: Sequence[Event], number: int, client: int, closed: float) -> Traffic:
    down, up = ([event for event in mine if event["event"] in kinds] for kinds in (DOWN, UP))
    counted = [event["time"] for event in up if event["event"] == "received"]
    return Traffic(
        client=client,
        round=number,
        bytes_down=sum(int(event.get("bytes", 0)) for event in down),
        bytes_up=sum(int(event.get("bytes", 0)) for event in up),
        transfer_seconds=math.fsum(float(event["seconds"]) for event in (*down, *up)),
        retries=max(transfers(down) - 1, 0) + max(transfers(up) - 1, 0),
        idle_seconds=max(closed - counted[-1], 0.0) if counted else None,
    )
