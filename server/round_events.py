"""The round machine's words: where a run stands, what can happen to it, and what it can ask for. Data alone.

Events go in, actions come out; `server/rounds.py` says which follows from which.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Where the run stands; the names are the wire's."""

    WAITING = "waiting"
    OPEN = "open"
    CLOSED = "closed"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class Joined:
    """A client opened a session."""

    client: int


@dataclass(frozen=True)
class Left:
    """A client said goodbye: nobody waits for it in the open round, unless it joins again before the close."""

    client: int


@dataclass(frozen=True)
class Expired:
    """A client's lease ran out: it stays in the open round, but the next one opens without it."""

    client: int


@dataclass(frozen=True)
class Received:
    """A client's update of the open round is verified and durable."""

    client: int


@dataclass(frozen=True)
class Refused:
    """A client's update of the open round arrived and holds what no update may: nobody waits for another one of it."""

    client: int


@dataclass(frozen=True)
class Settled:
    """The closed round is aggregated and scored, and its state is durable."""


@dataclass(frozen=True)
class Tick:
    """Time went by."""


@dataclass(frozen=True)
class Broke:
    """The server itself can't go on: no decision of the machine's, but the clients must learn the reason."""

    reason: str


Event = Joined | Left | Expired | Received | Refused | Settled | Tick | Broke


@dataclass(frozen=True)
class OpenRound:
    """Offer the round to its participants (fixed now, in client order) until `deadline`."""

    round: int
    participants: tuple[int, ...]
    deadline: float
    reason: str


@dataclass(frozen=True)
class CloseRound:
    """Aggregate and score what was received, then apply `Settled`; when `void`, only record it.

    `received` and `missing` are the participants with and without an update, in client order.
    """

    round: int
    received: tuple[int, ...]
    missing: tuple[int, ...]
    void: bool
    reason: str


@dataclass(frozen=True)
class Finish:
    """The last round is settled."""

    reason: str


@dataclass(frozen=True)
class Abort:
    """The run cannot go on."""

    reason: str


Action = OpenRound | CloseRound | Finish | Abort
