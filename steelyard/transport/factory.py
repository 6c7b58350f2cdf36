"""Makes the tensor plane that a configuration names; torch.distributed is loaded only for one that needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc

from steelyard.transport.base import TensorPlane
from steelyard.transport.grpc_plane import GrpcClientPlane, GrpcServerPlane
from steelyard.transport.settings import TransportConfig


def add_server_plane(
    server: grpc.Server,
    transport: TransportConfig,
    authenticate: Callable[[grpc.ServicerContext], int],
    on_bytes: Callable[[int, int], None],
    device: str,
) -> TensorPlane:
    """The server's end, offered by a gRPC server that has not started yet.

    Args:
        server: serves the control plane too.
        transport: names the plane.
        authenticate: the calling client's index in the roster, or `RefusedError`.
        on_bytes: hears of bytes that arrive: the client's index and their number.
        device: with nccl, the server's GPU.

    Raises:
        UserError: the plane can't be had here.
    """
    if transport.is_collective:
        from steelyard.transport.collective_server import CollectiveServerPlane

        plane = CollectiveServerPlane(transport, authenticate, on_bytes, device)
        plane.add_to(server)
        return plane
    streams = GrpcServerPlane(authenticate, transport.chunk_bytes, on_bytes)
    server.add_generic_rpc_handlers((streams.handler(),))
    return streams


def client_plane(
    transport: TransportConfig,
    channel: grpc.Channel,
    metadata: Sequence[tuple[str, str]],
    device: str,
) -> TensorPlane:
    """A client's end, over the channel of its control plane; `device` is its GPU, with nccl.

    Raises:
        UserError: the plane can't be had here.
    """
    if transport.is_collective:
        from steelyard.transport.collective_client import CollectiveClientPlane

        return CollectiveClientPlane(transport, channel, metadata, device)
    return GrpcClientPlane(channel, metadata, transport.chunk_bytes, transport.timeout_s)
