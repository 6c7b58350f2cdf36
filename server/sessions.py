"""Live sessions: one per identity at most, with a lease that heartbeats and arriving bytes renew. No I/O, no clock."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from steelyard.errors import RefusedError


@dataclass(slots=True)
class Session:
    """One client's session. A session whose watch stream broke may be replaced.

    `watching` counts the open streams, `streams` all that there ever were; `left`: its client said goodbye.
    """

    id: str
    client: int
    expires: float
    watching: int = 0
    streams: int = 0
    left: bool = False


class Sessions:
    """The sessions of a run; `now` is any monotonic clock in seconds."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._by_client: dict[int, Session] = {}

    def open(self, client: int, now: float) -> Session:
        """A fresh session for a client.

        Raises:
            RefusedError: ALREADY_LIVE, the identity has a session whose lease runs and whose stream is not broken.
        """
        held = self._by_client.get(client)
        if held is not None and held.expires > now and (held.watching or not held.streams):
            left = held.expires - now
            detail = f"client {client} has a live session; free again {left:.1f} s after its last sign of life"
            raise RefusedError("ALREADY_LIVE", detail)
        session = Session(secrets.token_hex(16), client, now + self.lease_s)
        self._by_client[client] = session
        return session

    def get(self, session_id: str, client: int, now: float) -> Session:
        """The session that a request names, renewed.

        Raises:
            RefusedError: STALE_SESSION, the identity's session is another one, or there is none.
        """
        session = self._by_client.get(client)
        if session is None or session.id != session_id:
            raise RefusedError(
                "STALE_SESSION", f"client {client}'s session was superseded, left or expired; join again"
            )
        session.expires = now + self.lease_s
        return session

    def is_current(self, session: Session) -> bool:
        """Whether a session is still its client's."""
        return self._by_client.get(session.client) is session

    def renew(self, client: int, now: float) -> None:
        """Renew a client's lease because its bytes arrive."""
        if client in self._by_client:
            self._by_client[client].expires = now + self.lease_s

    def close(self, client: int) -> None:
        """End a client's session, because it said goodbye."""
        if client in self._by_client:
            self._by_client.pop(client).left = True

    def expire(self, now: float) -> tuple[int, ...]:
        """End the sessions whose lease ran out; returns their clients in order."""
        gone = tuple(sorted(client for client, session in self._by_client.items() if session.expires <= now))
        for client in gone:
            del self._by_client[client]
        return gone

    @property
    def live(self) -> tuple[int, ...]:
        """The clients with a session, in order."""
        return tuple(sorted(self._by_client))

    def next_expiry(self) -> float | None:
        """When the next lease runs out."""
        return min((session.expires for session in self._by_client.values()), default=None)
