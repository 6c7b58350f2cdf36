"""The gate of a server's calls: who may have one open, for how long, and how many at once. Knows no methods.

gRPC's server for threads waits for the request of a unary method in a thread of the pool, before any of our code runs:
whoever opens calls and sends nothing would hold every thread, known to us or not. So every method is served here as
one that takes a stream, which is the same on the wire: we have the call first, and its message when we ask for it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc

from steelyard.errors import RefusedError
from steelyard.transport.faults import refuse
from steelyard.transport.settings import LONGEST_CALL_S

CALLS_PER_CLIENT = 6  # an honest one has up to three, and as many of a connection that broke without a word
SPARE_THREADS = 8  # that no client can hold: they refuse


def threads(clients: int) -> int:
    """The size of the pool of a server behind a gate: every client's share, and what refuses."""
    return CALLS_PER_CLIENT * clients + SPARE_THREADS


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses a call before it can hold a thread for longer than that takes.

    Args:
        identify: the calling client's index in the roster, or `RefusedError`.
        on_refused: hears of every refusal: the client (None: nobody known), the method's name and the error.
    """

    def __init__(
        self,
        identify: Callable[[grpc.ServicerContext], int],
        on_refused: Callable[[int | None, str, RefusedError], None] = lambda _client, _method, _error: None,
    ) -> None:
        self._identify = identify
        self._on_refused = on_refused
        self._lock = threading.Lock()
        self._open: Counter[int] = Counter()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The hook of gRPC: a method's handler, behind the gate; None for a method that nobody serves."""
        handler = continuation(details)
        if handler is None:
            return None
        method = details.method.rpartition("/")[2]
        act = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        def asked(arriving: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return arriving if handler.request_streaming else self._only(arriving, method, context)

        def one(arriving: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with self._admitted(method, context):
                return act(asked(arriving, context), context)

        def many(arriving: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._admitted(method, context):
                yield from act(asked(arriving, context), context)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                many, handler.request_deserializer, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(one, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _admitted(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Count a call as its client's while its thread is at work, which may be longer than the peer stays."""
        client: int | None = None
        try:
            client = self._identify(context)
            if not context.time_remaining() <= LONGEST_CALL_S:
                raise RefusedError("BAD_CALL", f"{method}: a deadline of at most {LONGEST_CALL_S:g} s expected")
            self._enter(client)
        except RefusedError as refusal:
            self._refuse(client, method, context, refusal)
        try:
            yield
        finally:
            with self._lock:
                self._open[client] -= 1

    def _enter(self, client: int) -> None:
        with self._lock:
            if self._open[client] >= CALLS_PER_CLIENT:
                raise RefusedError("TOO_MANY_CALLS", f"client {client} has {CALLS_PER_CLIENT} calls open already")
            self._open[client] += 1

    def _only(self, arriving: Iterator[Any], method: str, context: grpc.ServicerContext) -> Any:
        for message in arriving:
            return message
        refusal = RefusedError("BAD_CALL", f"{method}: a message expected, the call ended without one")
        return self._refuse(self._identify(context), method, context, refusal)

    def _refuse(
        self, client: int | None, method: str, context: grpc.ServicerContext, refusal: RefusedError
    ) -> NoReturn:
        self._on_refused(client, method, refusal)
        refuse(context, refusal)
