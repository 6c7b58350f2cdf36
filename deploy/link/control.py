"""A link's control socket, both ends: JSON lines in, one JSON line out for each. Carries commands, obeys none.

    {"do": "partition", "on": true}        nothing passes, either way, nor any new connection; "on": false ends it
    {"do": "stall", "seconds": 2}          the same for a time
    {"do": "reset"}                        breaks every connection now
    {"do": "reset", "after": 100000}       and this after so many more bytes from the client
    {"do": "hold", "after": 100000}        stands still after so many more; `stats` says "held"; with "direction":
                                           "down" either counts bytes to the client
    {"do": "release"}                      ends a partition, a stall and a hold, and forgets what was to come
    {"do": "profile", "profile": {...}}    other figures (steelyard/links.py) from now on
    {"do": "stats"}                        bytes passed up and down, connections, resets, stalls, held,
                                           partitioned, acts ("hold" and "reset" that came about)

A reply is {"ok": true, ...} or {"ok": false, "error": "one line"}.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steelyard.errors import RunFailedError, SteelyardError

SOCKET = "control.sock"
LONGEST_LINE = 2**16
MAX_PATH = 100  # the kernel's limit is 108 bytes
TIMEOUT_S = 10.0
Obey = Callable[[dict[str, Any]], dict[str, Any]]


class ControlServer:
    """The link's end; its sockets are for the link's own loop to wait on.

    Args:
        folder: where the socket goes; one that a killed link left there is replaced.
        obey: carries out a command and returns what the reply adds; a `SteelyardError` becomes the reply's `error`.
    """

    def __init__(self, folder: Path, obey: Obey) -> None:
        self._obey = obey
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (folder / SOCKET).unlink(missing_ok=True)
        with _short(folder) as path:
            self._listener.bind(path)
        self._listener.listen(8)
        self._listener.settimeout(0)
        self._peers: dict[socket.socket, bytes] = {}

    @property
    def sockets(self) -> list[socket.socket]:
        """Those to wait on for reading."""
        return [self._listener, *self._peers]

    def serve(self, readable: list[Any]) -> None:
        """Answer what has come."""
        if self._listener in readable:
            with contextlib.suppress(OSError):
                peer, _ = self._listener.accept()
                peer.settimeout(TIMEOUT_S)
                self._peers[peer] = b""
        for peer in [peer for peer in self._peers if peer in readable]:
            try:
                self._answer(peer)
            except OSError:  # it went away; it can come back
                del self._peers[peer]
                peer.close()

    def _answer(self, peer: socket.socket) -> None:
        data = peer.recv(LONGEST_LINE)
        if not data or len(self._peers[peer]) > LONGEST_LINE:
            raise OSError("the peer is gone, or sends no lines")
        *lines, self._peers[peer] = (self._peers[peer] + data).split(b"\n")
        for line in lines:
            peer.sendall(json.dumps(self._reply(line)).encode() + b"\n")

    def _reply(self, line: bytes) -> dict[str, Any]:
        try:
            command = json.loads(line)
            if not isinstance(command, dict):
                raise TypeError("an object expected")
            return {"ok": True, **self._obey(command)}
        except (ValueError, TypeError, SteelyardError) as error:
            return {"ok": False, "error": " ".join(str(error).splitlines())}


def command(folder: Path, **fields: Any) -> dict[str, Any]:
    """Have a running link do something; returns its reply.

    Raises:
        RunFailedError: the link can't be reached, or refuses.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(TIMEOUT_S)
        try:
            with _short(folder) as path:
                peer.connect(path)
            peer.sendall(json.dumps(fields).encode() + b"\n")
            reply = dict(json.loads(peer.makefile("rb").readline()))
        except (OSError, ValueError) as error:
            raise RunFailedError(f"the link of {folder} does not answer: {error}") from None
    if not reply.pop("ok", False):
        raise RunFailedError(f"the link of {folder} refuses: {reply.get('error')}")
    return reply


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path, by way of an open folder where it would be too long for the kernel."""
    path = str(folder / SOCKET)
    if len(os.fsencode(path)) <= MAX_PATH:
        yield path
        return
    descriptor = os.open(folder, os.O_PATH)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
