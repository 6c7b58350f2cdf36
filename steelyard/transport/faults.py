"""Refusals and broken calls across gRPC: mapped to our errors once, at this boundary.

A refusal travels as a call's status: its name in the trailing metadata, its line for a person as the details.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from steelyard.errors import RefusedError, RemoteFault, SteelyardError, WaitTimeoutError
from steelyard.wire import pb

REFUSAL_KEY = "steelyard-refusal"


def refuse(context: grpc.ServicerContext, error: RefusedError) -> NoReturn:
    """End a call, in its handler's thread, with a refusal."""
    context.set_trailing_metadata(((REFUSAL_KEY, error.refusal),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.detail)
    raise AssertionError  # abort raises


def refusal_of(error: Any) -> RefusedError | None:
    """The refusal that a failed call's status carries, if it is one."""
    name = next((str(value) for key, value in error.trailing_metadata() or () if key == REFUSAL_KEY), "")
    known = name in pb.Refusal.keys()  # noqa: SIM118 - an enum wrapper, not a dict
    return RefusedError(name, error.details() or "") if known else None


def fault_of(error: Any, what: str) -> SteelyardError:
    """What a failed call means to us.

    Args:
        error: the `grpc.RpcError` or failed call; gRPC's are `grpc.Call` too, which its types do not say.
        what: what the call was for, e.g. "sending the update", for a person.

    Returns:
        `RefusedError` when the peer refused (LATE when it ended the call, TOO_LARGE when a message was above its
        limit), `WaitTimeoutError` when the call ran out of time, else `RemoteFault`: the peer is gone or broken.
    """
    code, details = error.code(), error.details() or ""
    if (refusal := refusal_of(error)) is not None:
        return refusal
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RefusedError("TOO_LARGE", f"{what}: {details}")
    if code is grpc.StatusCode.CANCELLED:
        return RefusedError("LATE", f"{what}: the peer ended the call before it was complete")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return WaitTimeoutError(f"{what}: not complete within the call's deadline")
    return RemoteFault(f"{what}: {code.name}: {details}")
