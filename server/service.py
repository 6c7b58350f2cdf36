"""The control plane's gRPC face: a call comes in, its caller is identified, the coordinator is asked, a reply goes out.

Holds no state. Every refusal leaves through one place, with its name and one line, and stands in the event log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import grpc

from protos import federation_pb2_grpc
from server.coordinator import Coordinator
from server.roster import Roster
from server.uploads import Receipt
from steelyard.errors import RefusedError, WaitTimeoutError
from steelyard.wire import PROTOCOL_VERSION, manifest_from_wire, manifest_to_wire, pb, refusal_value

Reply = TypeVar("Reply")


class FederationService(federation_pb2_grpc.FederationServicer):
    """Serves `protos/federation.proto`.

    Args:
        coordinator: answers.
        roster: identifies callers.
        timeout_s: bounds a receipt's wait.
    """

    def __init__(self, coordinator: Coordinator, roster: Roster, timeout_s: float) -> None:
        self._coordinator = coordinator
        self._roster = roster
        self._timeout_s = timeout_s

    def add_to(self, server: grpc.Server) -> None:
        """Have a gRPC server offer this service."""
        federation_pb2_grpc.add_FederationServicer_to_server(self, server)

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:  # noqa: N802 - gRPC's name
        """Open a session."""

        def join(client: int) -> pb.JoinReply:
            if request.protocol != PROTOCOL_VERSION:
                detail = f"protocol {PROTOCOL_VERSION} expected, client {client} speaks {request.protocol}"
                raise RefusedError("WRONG_PROTOCOL", detail)
            session = self._coordinator.join(client)
            return pb.JoinReply(
                session=session.id,
                client=client,
                lease_s=self._coordinator.lease_s,
                incarnation=self._coordinator.incarnation,
            )

        return self._answer("Join", context, join, pb.JoinReply)

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.RoundState]:  # noqa: N802
        """Push the run's state; a stream has no refusal field, so its refusals travel as the call's status."""
        client = None
        try:
            client = self._roster.identify(context)
            for state, seconds_left in self._coordinator.watch(client, request.session, context.is_active):
                yield pb.RoundState(
                    phase=state.phase.name,
                    round=state.round,
                    participating=state.participating,
                    submitted=state.submitted,
                    seconds_left=seconds_left,
                    incarnation=state.incarnation,
                    reason=state.reason,
                )
        except RefusedError as error:
            self._coordinator.refused(client, "Watch", error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    def Heartbeat(self, request: pb.HeartbeatRequest, context: grpc.ServicerContext) -> pb.HeartbeatReply:  # noqa: N802
        """Renew the lease."""

        def heartbeat(client: int) -> pb.HeartbeatReply:
            self._coordinator.heartbeat(client, request.session)
            return pb.HeartbeatReply()

        return self._answer("Heartbeat", context, heartbeat, pb.HeartbeatReply)

    def Fetch(self, request: pb.FetchRequest, context: grpc.ServicerContext) -> pb.FetchReply:  # noqa: N802
        """Offer the global model."""

        def fetch(client: int) -> pb.FetchReply:
            transfer = self._coordinator.fetch(client, request.session, request.round)
            return pb.FetchReply(transfer=transfer.id, manifest=manifest_to_wire(transfer.manifest))

        return self._answer("Fetch", context, fetch, pb.FetchReply)

    def Submit(self, request: pb.SubmitRequest, context: grpc.ServicerContext) -> pb.SubmitReply:  # noqa: N802
        """Take an update's announcement."""

        def submit(client: int) -> pb.SubmitReply:
            manifest = manifest_from_wire(request.manifest)
            got = self._coordinator.submit(client, request.session, request.round, manifest, self._timeout_s)
            if isinstance(got, Receipt):
                return pb.SubmitReply(receipt=_to_wire(got))
            return pb.SubmitReply(transfer=got.id)

        def refused(**fault: Any) -> pb.SubmitReply:
            return pb.SubmitReply(receipt=pb.Receipt(round=request.round, **fault))

        return self._answer("Submit", context, submit, refused)

    def GetReceipt(self, request: pb.ReceiptRequest, context: grpc.ServicerContext) -> pb.Receipt:  # noqa: N802
        """Wait for an update's receipt."""

        def receipt(client: int) -> pb.Receipt:
            return _to_wire(self._coordinator.receipt(client, request.session, request.transfer, self._timeout_s))

        return self._answer("GetReceipt", context, receipt, pb.Receipt)

    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> pb.LeaveReply:  # noqa: N802
        """End the session."""

        def leave(client: int) -> pb.LeaveReply:
            self._coordinator.leave(client, request.session)
            return pb.LeaveReply()

        def refused(**_fault: Any) -> pb.LeaveReply:  # it wanted to be gone, and it is
            return pb.LeaveReply()

        return self._answer("Leave", context, leave, refused)

    def _answer(
        self,
        request: str,
        context: grpc.ServicerContext,
        act: Callable[[int], Reply],
        refused: Callable[..., Reply],
    ) -> Reply:
        """Identify the caller and act; a refusal makes a reply of `refused(refusal=..., detail=...)` instead.

        A wait that ran out ends this call alone, as a call whose deadline passed: what it waited for may still come.
        """
        client = None
        try:
            client = self._roster.identify(context)
            return act(client)
        except RefusedError as error:
            self._coordinator.refused(client, request, error)
            return refused(refusal=_refusal(error.refusal), detail=error.detail)
        except WaitTimeoutError as error:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"{request}: {error}")
            raise AssertionError from None  # abort raises
        except OSError as error:  # our disk, not the peer: the run can't go on, and must say so
            self._coordinator.fail(f"{request} of client {client}: {error}")
            raise


def _refusal(name: str) -> pb.Refusal:
    return cast("pb.Refusal", refusal_value(name))


def _to_wire(receipt: Receipt) -> pb.Receipt:
    return pb.Receipt(
        refusal=_refusal(receipt.refusal) if receipt.refusal else pb.REFUSAL_UNSPECIFIED,
        detail=receipt.detail,
        round=receipt.round,
        sha256=receipt.sha256,
    )
