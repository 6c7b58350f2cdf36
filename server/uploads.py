"""Updates on their way: announced, received, checked, made durable, told to the round machine, receipted.

In this order: who reads in a receipt that an update was accepted has it on the server's disk and in the round. Knows no
sessions; asks the machine whether the round is open, and leaves to the coordinator what follows from an update.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from server.acceptance import FAULTS, fault_of
from server.ledger import Ledger
from server.round_events import Event, Phase, Received, Refused
from server.rounds import RoundMachine
from steelyard.bundle import BundleFile, Manifest, TensorSpec
from steelyard.errors import RefusedError, RemoteFault, UserError, WaitTimeoutError
from steelyard.recording import Recordings
from steelyard.transport.base import TensorPlane, Transfer


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of an update; `refusal` is empty when it was accepted and is durable."""

    round: int
    sha256: str
    refusal: str = ""
    detail: str = ""


@dataclass(eq=False, slots=True)
class Upload:
    """An announced update whose bytes are expected, are coming, or are being made durable."""

    client: int
    round: int
    transfer: Transfer
    file: BundleFile
    started: float
    arrived: int = 0  # bytes so far
    claimed: bool = False  # its bytes are verified and it is being made durable: it can't be superseded any more
    awaited: bool = False
    outcome: Future[Receipt] = field(default_factory=Future)

    def receipt(self, timeout_s: float) -> Receipt:
        """Wait for what becomes of it.

        Raises:
            WaitTimeoutError: nothing did in time, e.g. because it was never sent.
        """
        try:
            return self.outcome.result(timeout_s)
        except TimeoutError:  # builtin, and so an OSError: left as it is, it would be taken for our disk's
            raise WaitTimeoutError(f"client {self.client}'s update: no receipt within {timeout_s:g} s") from None
        finally:
            self.awaited = False


class Uploads:
    """The updates that clients hand in: of each client one at most is on its way, the last that it announced.

    Callers hold the coordinator's lock, but for `expect`. It makes an update's file, and the tensor plane's thread that
    has the last byte makes that durable, and both take the lock only for what is theirs to tell, so that a slow disk
    blocks no heartbeat.

    Args:
        changed: the coordinator's lock; reentrant, as an upload may end inside the call that cancels it.
        machine: is asked which round is open; it changes by `apply` alone.
        recordings: where updates lie; what a killed server left half received there is dropped.
        ledger: the event log.
        specs: names and shapes that an update must have.
        apply: tells the machine what happened and does what it decides, which at a round's close includes `cancel`.
        fail: ends the run because the server itself can't go on.
    """

    def __init__(
        self,
        *,
        changed: threading.Condition,
        machine: RoundMachine,
        recordings: Recordings,
        ledger: Ledger,
        specs: tuple[TensorSpec, ...],
        apply: Callable[[Event], None],
        fail: Callable[[str], None],
    ) -> None:
        self.plane: TensorPlane | None = None  # there before the first update
        self._changed = changed
        self._machine = machine
        self._recordings = recordings
        self._ledger = ledger
        self._specs = specs
        self._apply = apply
        self._fail = fail
        self._in_flight: dict[int, Upload] = {}
        self._creating: set[int] = set()  # whose next one's file is being made
        # By client, one each; kept over the round, for who asks late what became of it.
        self._latest: dict[int, Upload] = {}
        for part in recordings.folder.glob("round-*/*.part"):  # only whole, durable updates have the final name
            part.unlink()

    def accepted(self, client: int, number: int, sha256: str, timeout_s: float) -> Receipt | None:
        """The receipt of an update that is accepted already; None: none is accepted. Waits while a file is at work.

        Raises:
            RefusedError: EQUIVOCATION, another update of the client is accepted.
            WaitTimeoutError: the file of an update of the same client that came before was not made, or made durable,
                in time.
        """
        end = time.monotonic() + timeout_s
        while self._is_at_work(client):
            if not self._changed.wait(end - time.monotonic()):  # it crosses one of its own, which ends first
                raise WaitTimeoutError(f"client {client}'s update was not durable within {timeout_s:g} s")
        accepted = self._accepted_digest(number, client)
        if accepted is None:
            return None
        if accepted != sha256:
            detail = f"client {client}, round {number}: update {accepted[:12]} is accepted, {sha256[:12]} came"
            raise RefusedError("EQUIVOCATION", detail)
        return Receipt(round=number, sha256=accepted)

    def announce(self, client: int, manifest: Manifest) -> None:
        """Take an announcement, which supersedes the client's update on its way; `expect` must follow.

        Raises:
            RefusedError: BAD_LAYOUT.
        """
        assert self.plane is not None
        if manifest.tensors != self._specs:
            raise RefusedError("BAD_LAYOUT", layout_difference(self._specs, manifest.tensors))
        if client in self._in_flight:
            self.plane.cancel(self._in_flight[client].transfer.id)
        self._creating.add(client)

    def expect(
        self, client: int, number: int, manifest: Manifest, base: BundleFile, check: Callable[[], None]
    ) -> Transfer:
        """Make the file of an announced update to the model `base`, and have the plane expect its bytes.

        Without the lock: where a file system can't allocate a file at once, all of it is written.

        Args:
            client: whose update it is.
            number: the round's.
            manifest: the update's.
            base: the round's global model.
            check: asked, with the lock held, once the file is there; raises if nobody wants it any more.

        Raises:
            OSError: the disk has no room for it.
        """
        assert self.plane is not None
        transfer = Transfer(id=secrets.token_hex(16), peer=client, manifest=manifest)
        try:
            part = self._recordings.update_file(number, client).with_suffix(f".{transfer.id}.part")
            file = BundleFile.create(part, manifest)
            try:
                with self._changed:
                    check()
                    arrived = self.plane.receive(transfer, file.data, file.put)
                    upload = Upload(client, number, transfer, file, time.monotonic())
                    self._in_flight[client] = self._latest[client] = upload
            except BaseException:
                file.close()
                part.unlink()
                raise
        finally:
            with self._changed:
                self._creating.remove(client)
                self._changed.notify_all()
        arrived.add_done_callback(functools.partial(self._arrived, upload, base))
        return transfer

    def _is_at_work(self, client: int) -> bool:
        held = self._in_flight.get(client)
        return client in self._creating or (held is not None and held.claimed)

    def bytes_arrived(self, client: int, count: int) -> None:
        """Count the bytes of a client's update on its way."""
        if client in self._in_flight:
            self._in_flight[client].arrived += count

    def cancel(self) -> None:
        """End every upload but those that are being made durable already: they end by themselves, and soon."""
        assert self.plane is not None
        for upload in list(self._in_flight.values()):
            if not upload.claimed:
                self.plane.cancel(upload.transfer.id)

    def awaited(self, client: int, transfer_id: str) -> Upload:
        """An announced update, for the caller to wait for its receipt without the lock.

        Raises:
            RefusedError: BAD_TRANSFER, this client announced no such update, or another one after it, or it waits
                for this receipt already (a wait holds a thread).
        """
        upload = self._latest.get(client)
        if upload is None or upload.transfer.id != transfer_id:
            raise RefusedError("BAD_TRANSFER", f"client {client} announced no update by that transfer")
        if upload.awaited and not upload.outcome.done():
            raise RefusedError("BAD_TRANSFER", f"client {client} waits for the receipt of that transfer already")
        upload.awaited = True
        return upload

    def _arrived(self, upload: Upload, base: BundleFile, arrived: Future[None]) -> None:
        """Take an update to `base` that arrived, or refuse it; its receipt comes after all that follows, and always.

        What goes wrong by no fault of its client or its line ends the run, and the update's file stays as it is: the
        server that continues the run counts it if it is durable, and else drops it.
        """
        seconds, refusal = time.monotonic() - upload.started, None
        try:
            refusal = self._take(upload, base, arrived, seconds)
            if refusal is not None:
                self._refuse(upload, refusal, seconds)
        except Exception as error:  # noqa: BLE001 - e.g. a full disk, of the recordings or of the log
            refusal = refusal or RefusedError("LATE", f"the upload failed: {error}")
            self._fail(f"taking client {upload.client}'s update of round {upload.round} failed: {error!r}")
        finally:
            with self._changed:
                if self._in_flight.get(upload.client) is upload:
                    del self._in_flight[upload.client]
                self._changed.notify_all()
            told = {} if refusal is None else {"refusal": refusal.refusal, "detail": refusal.detail}
            upload.outcome.set_result(Receipt(round=upload.round, sha256=upload.transfer.manifest.sha256, **told))
            upload.file.close()

    def _take(self, upload: Upload, base: BundleFile, arrived: Future[None], seconds: float) -> RefusedError | None:
        """Make an update durable and have the machine count it; returns why it is refused instead, if it is."""
        try:
            arrived.result()
            self._claim(upload, base)
            upload.file.commit(self._recordings.update_file(upload.round, upload.client))
            self._count(upload, seconds)
        except RefusedError as refusal:
            return refusal
        except (RemoteFault, WaitTimeoutError, UserError) as error:  # while it moved
            return RefusedError("LATE", f"the upload failed: {error}")
        return None

    def _refuse(self, upload: Upload, refusal: RefusedError, seconds: float) -> None:
        """Drop an update and log why; the round no longer waits for its client if another one would be no better."""
        number, client = upload.round, upload.client
        upload.file.path.unlink(missing_ok=True)
        self._ledger.counted("refused", client, request="Submit", refusal=refusal.refusal, detail=refusal.detail)
        fault = {"refusal": refusal.refusal, "seconds": round(seconds, 6)}
        self._ledger.counted("upload_failed", client, round=number, bytes=upload.arrived, **fault)
        if refusal.refusal not in FAULTS:
            return
        with self._changed:
            machine = self._machine
            here = machine.phase is Phase.OPEN and machine.round == number and client in machine.participants
            latest = self._in_flight.get(client, upload) is upload and client not in self._creating
            if here and latest:  # else it sends another one already
                self._apply(Refused(client))

    def _claim(self, upload: Upload, base: BundleFile) -> None:
        fault = fault_of(upload.client, self._specs, base.flat(), upload.file.flat())
        if fault is not None:
            raise fault
        with self._changed:
            if self._in_flight.get(upload.client) is not upload:
                raise RefusedError("LATE", f"client {upload.client} announced its update anew; this copy is dropped")
            self._machine.check_open(upload.client, upload.round)
            upload.claimed = True

    def _count(self, upload: Upload, seconds: float) -> None:
        with self._changed:
            self._machine.check_open(upload.client, upload.round)
            self._ledger.event(
                "received",
                round=upload.round,
                client=upload.client,
                bytes=upload.transfer.manifest.nbytes,
                sha256=upload.transfer.manifest.sha256,
                seconds=round(seconds, 6),
            )
            try:
                self._apply(Received(upload.client))
            except OSError as error:  # it counts; what follows from it, e.g. the round's close, could not be written
                self._fail(f"taking client {upload.client}'s update of round {upload.round} failed: {error!r}")

    def _accepted_digest(self, number: int, client: int) -> str | None:
        """The digest of the client's update that a round counts, in this life of the server or an earlier one.

        A file alone does not say that it counts: it may have come too late, of a server that was killed before it
        dropped it, or its event could not be logged.
        """
        machine, closed = self._machine, self._recordings.closed(number)
        if closed is not None:
            counts = client in closed.received
        else:  # before its first round, a restarted machine has received updates of the one that follows
            counts = 1 <= number == machine.round and client in machine.received
        if not counts:
            return None
        return BundleFile.open(self._recordings.update_file(number, client)).manifest.sha256


def layout_difference(expected: tuple[TensorSpec, ...], got: tuple[TensorSpec, ...]) -> str:
    """The first difference between the tensors that an update must have and those announced, for a person."""
    for ours, theirs in zip(expected, got, strict=False):
        if ours != theirs:
            want = f"{ours.name} {ours.dtype} {list(ours.shape)}"
            return f"{want} expected, got {theirs.name} {theirs.dtype} {list(theirs.shape)}"
    return f"{len(expected)} tensors expected, got {len(got)}"
