"""Addresses, ports and channels: how a server listens and a client dials, and with which gRPC options.

Beyond loopback only with mutual TLS. Nothing here knows what is served.
"""

from __future__ import annotations

import ipaddress
import resource
from typing import TypeAlias

import grpc

from steelyard.certificates import ClientTls, ServerTls
from steelyard.errors import UserError
from steelyard.transport.settings import LONGEST_CALL_S

MESSAGE_BYTES = 8 * 2**20
WINDOW_BYTES = 4 * 2**20  # that a peer may send ahead of its reader, by stream
STREAMS = 16  # calls that a connection may have open, those that are just ending included: far above an honest client's
Options: TypeAlias = tuple[tuple[str, int], ...]

_KEEPALIVE: Options = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The answer to a ping waits behind all that is on its way already: minutes on a slow line, under which gRPC's own
    # limit of one minute would break the connection, bytes arriving or not. A host that is gone is noticed anyway, by
    # the kernel within half a minute; a frozen process by leases and the deadlines that all calls have.
    ("grpc.http2.ping_timeout_ms", round(1000 * LONGEST_CALL_S)),
)


_WINDOW: Options = (
    ("grpc.http2.bdp_probe", 0),  # which would let the window grow with the bandwidth
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
)


def connections() -> int:
    """How many connections a server has at most: half of the files that its process may open, the rest is the run's.

    Else whoever opens connections and keeps them ends the run, by the first update whose file can't be opened.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(files // 2, 1) if 0 <= files < 2**20 else 2**19


def server_options() -> Options:
    """Options of every `grpc.Server`: sizes, calls, connections, window, keepalive, and a busy port is an error."""
    return (
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.max_allowed_incoming_connections", connections()),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        *_KEEPALIVE,
        *_WINDOW,
    )


def channel_options() -> Options:
    """Options of every channel: sizes, window, keepalive, quick reconnection, no proxy, no retries behind our back."""
    return (
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 10_000),  # how long a connection may take to come about, whatever its name
        ("grpc.max_reconnect_backoff_ms", 2_000),
        *_KEEPALIVE,
        *_WINDOW,
    )


def bind(server: grpc.Server, address: str, tls: ServerTls | None) -> str:
    """Let a server listen; it must have been made with `server_options()`.

    Args:
        server: not yet started.
        address: HOST:PORT; port 0 takes any free one.
        tls: required beyond loopback.

    Returns:
        The bound HOST:PORT.

    Raises:
        UserError: a malformed address, no TLS beyond loopback, or a port that cannot be had.
    """
    host, _ = _split(address, tls)
    try:
        secure = None if tls is None else tls.credentials()
        port = server.add_secure_port(address, secure) if secure else server.add_insecure_port(address)
    except RuntimeError:
        raise UserError(
            f"address {address}: a free port on this host expected, it is busy or not ours; free it or use port 0"
        ) from None
    return f"{host}:{port}"


def dial(address: str, tls: ClientTls | None) -> grpc.Channel:
    """A channel to a server; it connects with its first call.

    Raises:
        UserError: a malformed address, or no TLS beyond loopback.
    """
    _, port = _split(address, tls)
    if port == 0:
        raise UserError(f"address {address}: the server's port expected, got 0")
    if tls is None:
        return grpc.insecure_channel(address, options=channel_options())
    return grpc.secure_channel(address, tls.credentials(), options=channel_options())


def _split(address: str, tls: ServerTls | ClientTls | None) -> tuple[str, int]:
    """Host (an IPv6 one in brackets) and port of an address that may be used with this TLS or with none."""
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = (host[:1], host[-1:]) == ("[", "]")
    if not bare or bracketed != (":" in bare) or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise UserError(f"address: HOST:PORT with a port below 65536 expected (IPv6 as [::1]:PORT), got {address!r}")
    if tls is None and not _is_loopback(bare):
        raise UserError(
            f"address {address}: beyond loopback only with mutual TLS; make certificates with `steelyard certs` "
            "and name their folder in [transport] certificates"
        )
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
