"""What one client or one disk may not do to a run: block, leak, mislead or end it without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from steelyard.bundle import Manifest, TensorSpec, digest, raw
from steelyard.recording import Recordings
from steelyard.transport.base import SERVER, Transfer
from steelyard.transport.faults import refusal_of
from steelyard.wire import pb

MakeFederation = Callable[..., Any]
PATIENCE_S = 30.0
PATIENT = {"round_deadline_s": 60.0, "join_timeout_s": 30.0, "lease_s": 60.0, "quorum": 2}


def opened(federation: Any) -> tuple[Any, Any, np.ndarray[Any, Any]]:
    """Two of three joined clients in an open round, and an update that fits the model."""
    clients = [federation.client(k) for k in range(3)]
    for client in clients:
        assert client.join().refusal == ""
    for client in clients[:2]:
        client.wait_for(lambda s: s.phase == pb.OPEN)
        vector = client.fetch(1)
    return clients[0], clients[1], np.full_like(vector, 0.001)


def told(call: Any) -> str:
    """The refusal that a call came to, by its reply or by its status; else the status's name."""
    try:
        return pb.Refusal.Name(call.result(PATIENCE_S).refusal)
    except grpc.RpcError as error:
        refusal = refusal_of(error)
        return str(error.code().name) if refusal is None else refusal.refusal


def test_watch_streams_of_one_client_leave_threads_for_the_others(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol=PATIENT)
    greedy, other, update = opened(federation)
    streams = [greedy.states() for _ in range(40)]  # more than the server has threads
    assert other.submit(1, update).refusal == ""
    assert sum(1 for _ in streams[0]) <= 1, "a newer stream ended it"


def test_the_newest_watch_stream_is_the_one_that_lives(make_federation: MakeFederation) -> None:
    client, _, _ = opened(make_federation(protocol=PATIENT))
    older = client.states()
    assert next(older).phase == pb.OPEN  # or the server's threads may take the newer one first
    newer = client.states()
    assert next(newer).phase == pb.OPEN
    assert not list(older)


def test_waits_for_receipts_of_one_client_leave_threads_for_the_others(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol=PATIENT)
    greedy, other, update = opened(federation)
    transfer = greedy.offer(1, Manifest(greedy.specs, digest(raw(update)))).transfer
    request = pb.ReceiptRequest(session=greedy.session, transfer=transfer)
    waits = [greedy.stub.GetReceipt.future(request, metadata=greedy.metadata, timeout=PATIENCE_S) for _ in range(40)]
    assert other.submit(1, update).refusal == ""
    assert sum(wait.done() for wait in waits) <= 39
    assert greedy.submit(1, update).refusal == "", "announcing anew ends the wait"
    excess = {"TOO_MANY_CALLS", "UNAVAILABLE"}  # more than a client, or a connection, may have open
    assert {told(wait) for wait in waits} - excess == {"BAD_TRANSFER", "LATE"}


def test_a_receipt_of_an_update_that_is_never_sent_ends_with_its_time_for_its_client_alone(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(protocol=PATIENT, transport={"timeout_s": 1.0})
    silent, other, update = opened(federation)
    transfer = silent.offer(1, Manifest(silent.specs, digest(raw(update)))).transfer
    with pytest.raises(grpc.RpcError) as late:
        silent.receipt(transfer)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert late.value.details() == "GetReceipt: client 0's update: no receipt within 1 s"
    for client in (other, silent):  # which may still send
        assert client.submit(1, update).refusal == ""
    assert not federation.events("failed")
    federation.kill()
    assert "Traceback" not in federation.log.read_text(encoding="utf-8")


def test_a_client_has_one_offer_of_the_model_at_a_time(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol=PATIENT)
    client, _, _ = opened(federation)
    first = client.call("Fetch", pb.FetchRequest(session=client.session, round=1))
    client.fetch(1)
    pulled = client.plane.receive(
        Transfer(id=first.transfer, peer=SERVER, manifest=Manifest((), "0" * 64)), memoryview(bytearray())
    )
    assert "BAD_TRANSFER" in str(pulled.exception(PATIENCE_S))


def test_refused_uploads_leave_no_mapping_behind(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol=PATIENT)
    client, _, update = opened(federation)
    for _ in range(12):
        assert client.submit(1, update, sent=update * 2).refusal == "BAD_DIGEST"
    maps = Path(f"/proc/{federation.server.pid}/maps").read_text(encoding="utf-8")
    assert maps.count(".part") <= 1


def test_a_long_name_does_not_fill_the_event_log(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol=PATIENT)
    client, _, _ = opened(federation)
    reply = client.offer(1, Manifest((TensorSpec("x" * 10**6, "F32", (3,)),), "0" * 64))
    assert reply.receipt.refusal == pb.BAD_LAYOUT
    assert len(reply.receipt.detail) == 500
    assert federation.await_event("refused", request="Submit")["detail"] == reply.receipt.detail


def test_a_goodbye_whose_round_cannot_be_closed_ends_the_run(make_federation: MakeFederation) -> None:
    """Nobody else would notice: the round was over, and its scoring never began."""
    federation = make_federation(protocol=PATIENT)
    _, _, update = opened(federation)
    clients = federation.opened
    for client in clients[:2]:
        assert client.submit(1, update).refusal == ""
    (Recordings(federation.run).place(1) / "closed.json.part").mkdir()  # where the closing would be written
    with pytest.raises(grpc.RpcError):
        clients[2].call("Leave", pb.LeaveRequest(session=clients[2].session))
    assert "Leave of client 2" in federation.await_event("failed")["reason"]


def test_a_damaged_model_ends_a_resumed_run_and_is_no_fault_of_who_joins(make_federation: MakeFederation) -> None:
    federation = make_federation(protocol=PATIENT)
    federation.kill()
    model = Recordings(federation.run).global_file(1)
    model.write_bytes(model.read_bytes()[:-1])
    federation.start()
    clients = [federation.client(k) for k in range(3)]
    assert [client.join().refusal for client in clients] == [""] * 3
    reason = federation.await_event("failed")["reason"]
    assert reason.startswith("opening round 1 failed: TRUNCATED: global.safetensors: ")
    assert clients[2].wait_for(lambda state: state.phase == pb.FAILED).reason == reason
