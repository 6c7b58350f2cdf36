"""One direction of a link as arithmetic: when bytes that arrive now are due at the other end. No socket and no clock.

A virtual clock per direction: bytes take their turn on a line of the given rate, whoever sends them, and are due a
latency later. The reader may run a little ahead of that clock, as a router's buffer does, so that a late wake-up costs
no bandwidth; nothing is ever due before what was taken earlier. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

import random

from steelyard.links import Profile

CHUNK_BYTES = 2**20
FRAME_BYTES = 1500  # no piece is smaller, as on Ethernet
SLICE_S = 0.004  # a piece is what the line carries in this time
AHEAD_S = 0.05  # of the virtual clock: the buffer in front of the line


class Line:
    """The state of one direction.

    Args:
        rate_mbit: 10^6 bits per second; 0: as fast as it comes.
        profile: latency and jitter.
        generator: draws the jitter.
    """

    def __init__(self, rate_mbit: float, profile: Profile, generator: random.Random) -> None:
        self._generator = generator
        self._free = 0.0  # when the last byte taken has left this end
        self._last = 0.0  # when it is due at the other
        self.shape(rate_mbit, profile)

    def shape(self, rate_mbit: float, profile: Profile) -> None:
        """Take other figures; what is under way keeps its time."""
        self._bytes_s = rate_mbit * 1e6 / 8
        self._latency_s = profile.latency_ms / 1e3
        self._jitter_s = profile.jitter_ms / 1e3

    @property
    def is_open(self) -> bool:
        """Whether it only passes bytes on."""
        return not (self._bytes_s or self._latency_s or self._jitter_s)

    @property
    def buffered_bytes(self) -> int:
        """How many bytes may be between the two ends: twice what latency and buffer hold, and never too few."""
        if not self._bytes_s:
            return 32 * CHUNK_BYTES
        return max(int(2 * self._bytes_s * (self._latency_s + self._jitter_s + AHEAD_S)), 16 * FRAME_BYTES)

    def room(self, now: float) -> int:
        """How many bytes may be taken now; 0: not before `next_room`."""
        if not self._bytes_s:
            return CHUNK_BYTES
        if self._free - now >= AHEAD_S:
            return 0
        return min(max(int(self._bytes_s * SLICE_S), FRAME_BYTES), CHUNK_BYTES)

    def next_room(self) -> float:
        """When bytes may be taken again."""
        return self._free - AHEAD_S

    def take(self, count: int, now: float) -> float:
        """Take bytes; returns when they are due at the other end."""
        self._free = max(self._free, now) + (count / self._bytes_s if self._bytes_s else 0.0)
        delay = self._latency_s + self._jitter_s * self._generator.uniform(-1.0, 1.0)
        self._last = max(self._last, self._free + max(delay, 0.0))
        return self._last
