"""A link's addresses: HOST:PORT taken apart, looked up, listened at. Knows no bytes."""

from __future__ import annotations

import socket
from typing import Any

from steelyard.errors import UserError

BACKLOG = 64


def split(text: str, what: str) -> tuple[str, int]:
    """Host, without brackets, and port.

    Raises:
        UserError: it is none; `what` names it.
    """
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise UserError(f"link {what}: HOST:PORT with a port below 65536 expected, got {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def resolve(text: str, what: str) -> tuple[int, Any]:
    """The family and address that a socket takes.

    Raises:
        UserError: as `split`, or the host has no address.
    """
    try:
        found = socket.getaddrinfo(*split(text, what), type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"link {what}: a host that has an address expected, got {text!r}: {error}") from None
    return found[0][0], found[0][4]


def listen(text: str) -> socket.socket:
    """A listening socket that does not block.

    Raises:
        UserError: as `resolve`, or the address can't be had.
    """
    family, address = resolve(text, "listen")
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.settimeout(0)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"link listen: {text} can't be bound: {error}") from None
    listener.listen(BACKLOG)
    return listener
