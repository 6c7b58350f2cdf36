"""One direction of one connection through a link: bytes in, held until they are due, bytes out. Never blocks.

A line that only passes bytes on has them moved by the kernel (`splice`), without a copy; any other keeps pieces in a
queue. Knows sockets and one line's arithmetic, not who connects or what may pass: `Gate` says how much.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import termios
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from deploy.link.line import CHUNK_BYTES, Line

F_SETPIPE_SZ = 1031  # from Linux's <fcntl.h>; Python names it from 3.10 on Linux alone
FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
TURNS = 16  # pieces in a row before others have their turn
Act = Literal["hold", "reset"]


@dataclass
class Gate:
    """What may pass in one direction, and what happens after a number of bytes.

    `after` counts down to `act`, a command's; `until_reset` counts down to a reset by the profile.
    """

    passed: int = 0
    act: Act | None = None
    after: int = 0
    until_reset: int | None = None

    def allowance(self) -> int:
        """How many bytes may pass before something happens."""
        limits = [CHUNK_BYTES]
        if self.act is not None:
            limits.append(self.after)
        if self.until_reset is not None:
            limits.append(self.until_reset)
        return min(limits)

    def count(self, passed: int) -> None:
        """Note bytes that have passed."""
        self.passed += passed
        self.after -= passed
        if self.until_reset is not None:
            self.until_reset -= passed


@dataclass(eq=False)
class Flow:
    """From one socket to another, both not blocking.

    A peer that closed is told to the other end in its turn, behind its last byte. `OSError` from `read` or `write`
    means that the connection is broken.
    """

    source: socket.socket
    sink: socket.socket
    line: Line
    gate: Gate
    opens: float  # nothing is read before: the connection takes a round trip to come about
    queue: deque[tuple[float, memoryview]] = field(default_factory=deque)
    queued: int = 0
    ended: bool = False  # the source sends no more
    done: bool = False  # and the sink knows
    blocked: bool = False  # the sink takes no more just now
    end_due: float = 0.0
    _pipe: tuple[int, int] | None = None
    _piped: int = 0
    _more: bool = False  # there was more to read when this was read

    def wants_read(self, now: float) -> bool:
        """Whether bytes may be taken from the source."""
        if self.ended or now < self.opens or self._piped:
            return False
        return self.queued < self.line.buffered_bytes and self.line.room(now) > 0

    def wants_write(self, now: float) -> bool:
        """Whether there is something to do at the sink."""
        if self.done:
            return False
        return bool(
            self._piped or (self.queue and self.queue[0][0] <= now) or (self._is_empty() and self._may_end(now))
        )

    def wakes(self, now: float) -> float | None:
        """When to look again, if neither socket says so first."""
        times = []
        if now < self.opens:
            times.append(self.opens)
        elif not self.ended and self.queued < self.line.buffered_bytes and not self.line.room(now):
            times.append(self.line.next_room())
        if self.queue:
            times.append(self.queue[0][0])
        elif self.ended and not self.done:
            times.append(self.end_due)
        return min((time for time in times if time > now), default=None)

    def read(self, now: float) -> None:
        """Take what the source has, as far as the line has room."""
        if self.line.is_open and not self.queue:
            for _ in range(TURNS):  # and on at once, while both ends keep up
                self._splice_in(now)
                self.write(now)
                if self._piped or self.ended or not self._more:
                    return
            return
        with contextlib.suppress(BlockingIOError):
            piece = self.source.recv(self.line.room(now))
            if piece:
                self.queue.append((self.line.take(len(piece), now), memoryview(piece)))
                self.queued += len(piece)
            else:
                self._end(now)

    def write(self, now: float) -> None:
        """Hand the sink what is due and may pass."""
        self.blocked = False
        try:
            while self._piped and (allowance := self.gate.allowance()) > 0:
                assert self._pipe is not None
                flags = FLAGS | (os.SPLICE_F_MORE if self._more else 0)  # full segments while more is to come
                moved = os.splice(self._pipe[0], self.sink.fileno(), min(self._piped, allowance), flags=flags)
                self._piped -= moved
                self.gate.count(moved)
            while not self._piped and self.queue and self.queue[0][0] <= now and (left := self.gate.allowance()) > 0:
                due, piece = self.queue.popleft()
                sent = 0
                try:
                    sent = self.sink.send(piece[:left])
                finally:
                    if sent < len(piece):
                        self.queue.appendleft((due, piece[sent:]))
                self.queued -= sent
                self.gate.count(sent)
        except BlockingIOError:
            self.blocked = True
        if self._is_empty() and self._may_end(now):
            self.sink.shutdown(socket.SHUT_WR)
            self.done = True

    def close(self) -> None:
        """Let go of the kernel's buffer; the sockets are their owner's."""
        for end in self._pipe or ():
            os.close(end)
        self._pipe, self._piped = None, 0

    def _splice_in(self, now: float) -> None:
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # a smaller one is slower, no more
                fcntl.fcntl(self._pipe[1], F_SETPIPE_SZ, CHUNK_BYTES)
        self._more = False
        with contextlib.suppress(BlockingIOError):
            moved = os.splice(self.source.fileno(), self._pipe[1], CHUNK_BYTES, flags=FLAGS)
            self._piped += moved
            if moved:
                self._more = any(fcntl.ioctl(self.source, termios.FIONREAD, bytes(4)))
            else:
                self._end(now)

    def _end(self, now: float) -> None:
        self.ended = True
        self.end_due = self.line.take(0, now)

    def _may_end(self, now: float) -> bool:
        return self.ended and self.end_due <= now

    def _is_empty(self) -> bool:
        return not (self._piped or self.queue)
