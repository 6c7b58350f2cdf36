"""Shared by the tests of pairs of torch.distributed: a server that knows its clients by the number that they say."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc

from steelyard.transport.collective_server import CollectiveServerPlane
from steelyard.transport.endpoint import bind, server_options


def authenticate(context: grpc.ServicerContext) -> int:
    return int(str(dict(context.invocation_metadata())["client"]))


@contextmanager
def served(plane: CollectiveServerPlane, wait_s: float) -> Iterator[tuple[str, ExitStack]]:
    """The plane's address, and what ends before the plane does."""
    with ExitStack() as stack:
        server = grpc.server(stack.enter_context(ThreadPoolExecutor(16)), options=server_options())
        plane.add_to(server)
        address = bind(server, "127.0.0.1:0", None)
        server.start()
        stack.callback(lambda: server.stop(None).wait(wait_s))
        stack.callback(plane.close)
        yield address, stack
