"""A client's life: join, and in every round that counts on it fetch the model, make an update, submit it.

A client with a schedule holds a session before its first round too, as a watcher: only the server can tell which round
it is. After the last round before its `leave` it says goodbye and its session ends. One that never returns ends then;
one that returns joins anew at once and watches until its round comes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import torch

from client.attacks import check as check_attack
from client.attacks import make_attack
from client.attacks.base import Ally, Attack, Resources, Result
from client.session import DisconnectedError, Session, connect
from steelyard.bundle import read_arrays
from steelyard.certificates import ClientTls, mistake_of
from steelyard.config import ClientHalf, load_half
from steelyard.decoder_store import ROLE_FILE
from steelyard.devices import use_device
from steelyard.errors import RefusedError, RunFailedError, UserError, described
from steelyard.models import FlatModel
from steelyard.transport.base import TensorPlane
from steelyard.transport.endpoint import dial
from steelyard.transport.factory import client_plane
from steelyard.wire import pb

log = logging.getLogger("client")

ENDED = (pb.FINISHED, pb.FAILED)

Turn = Callable[[int], AbstractContextManager[None]]


class Client:
    """One client of a prepared role folder.

    Args:
        folder: the role folder: half.json, data.safetensors, token or certificates; `state/` is made inside.
        address: the server's HOST:PORT; None: the configured one.
        make_plane: makes the tensor plane over a channel; None: the configured one.
        turn: entered around the work of a round (number) and its submission; a launcher may run clients in order by it.
    """

    def __init__(
        self,
        folder: Path,
        address: str | None,
        make_plane: Callable[[grpc.Channel], TensorPlane] | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.half: ClientHalf = load_half(ClientHalf, folder / "half.json")
        self._folder = folder
        self._address = address or self.half.transport.address
        if self._address.endswith(":0"):
            raise UserError(f"the server's HOST:PORT expected, got {self._address!r}; name it with --server")
        self._turn = turn or (lambda _number: contextlib.nullcontext())
        transport = self.half.transport
        self._tls = ClientTls.load(folder / "certificates") if transport.certificates else None
        self._metadata = () if self._tls else (("steelyard-token", _token(folder)),)
        self._make_plane = make_plane or (
            lambda channel: client_plane(transport, channel, self._metadata, self.half.device)
        )
        self._attack = _attack(self.half, folder)
        self._refused = 0  # the last round whose update was refused for good, whatever session it was sent in

    def run(self) -> None:
        """Take part until the run ends, or until this client's last round is over.

        Raises:
            RunFailedError: the server could not be reached for as long as it may want this client, or the run failed.
            RefusedError: the server refused this client for good.
            UserError: the certificates don't fit the server's.
        """
        patience_s, joined = max(self.half.patience_s, self.half.transport.timeout_s), False
        while True:
            # Certificates that did fit are no mistake: whoever answers now is not the server, which may come back.
            session = connect(self._new_session, patience_s, None if joined else self._check_certificates)
            joined = True
            log.info("joined %s as client %d", self._address, session.client)
            try:
                with session:
                    is_over = self._take_part(session)
                if is_over:
                    return
                log.info("left as scheduled, joining again to watch")
            except DisconnectedError as lost:
                if _has_ended(session.state):  # a server whose run is over goes away, late clients or not
                    return
                log.info("connection lost, joining again: %s", lost)

    def _check_certificates(self, said: str) -> None:
        """Raise `UserError` if a connection did not come about as certificates don't fit, by gRPC's words."""
        mistake = mistake_of(said, self._folder / "certificates") if self._tls else None
        if mistake is not None:
            raise UserError(f"certificates: {mistake}")

    def _new_session(self) -> Session:
        channel = dial(self._address, self._tls)
        return Session(channel, self._metadata, self._make_plane, self.half.transport.timeout_s)

    def _take_part(self, session: Session) -> bool:
        """Work until the run ends or the schedule says leave; returns whether nothing is left to do after that."""
        stay, handled = self.half.stay, self._refused
        while True:
            state = session.wait_for(
                lambda s: s.phase in ENDED or stay.is_over(s.round) or (_is_work(s) and s.round > handled)  # noqa: B023 - called before `handled` changes
            )
            if _has_ended(state) or stay.is_over(state.round):
                return True
            handled = int(state.round)
            try:
                self._work(session, handled)
            except RefusedError as refused:  # the server logged it too; the next round is a new chance
                log.warning("round %d: %s", handled, refused)
                self._refused = handled
            if not stay.covers(handled + 1):
                return stay.is_over(handled + 1)

    def _work(self, session: Session, number: int) -> None:
        global_D = torch.from_numpy(session.fetch(number)).to(self.half.device)
        with self._turn(number):
            started = time.monotonic()
            result = self._update(number, global_D)
            seconds = time.monotonic() - started
            _linger(sum(slow.seconds(number, seconds) for slow in self.half.slowdowns))
            session.submit(number, result.update_D.detach().cpu().contiguous().numpy())
        note = {"round": number, "seconds": round(seconds, 3), **result.notes}
        log.info("submitted %s", json.dumps(note))

    def _update(self, number: int, global_D: torch.Tensor) -> Result:
        """The attack's update of a round; what is wrong with it or with its own files ends this client."""
        try:
            result = self._attack.update(number, global_D)
        except RefusedError as fault:
            raise RunFailedError(
                f"round {number}: the attack can't read what it kept, run the experiment anew: {fault}"
            ) from fault
        _check_result(result, global_D, f"[attack] {self.half.attack.get('name')}, round {number}")
        return result


def _check_result(result: Result, global_D: torch.Tensor, where: str) -> None:
    """Raise UserError unless an attack returned an update that can be sent; the server would refuse it each round."""
    if not isinstance(result, Result):
        raise UserError(f"{where}: a Result(update_D=...) expected from update, got {described(result)}")
    update_D = result.update_D
    if not isinstance(update_D, torch.Tensor) or update_D.shape != global_D.shape or update_D.dtype != global_D.dtype:
        raise UserError(f"{where}: update_D as a {described(global_D)} expected, got {described(update_D)}")
    for name, note in result.notes.items():
        if not isinstance(note, int | float | str):
            raise UserError(f"{where}: note {name!r} as a number or a string expected, got {described(note)}")


def _linger(seconds: float) -> None:
    """Wait as a slower processor would compute; heartbeats go on, as they do beside work."""
    if seconds:
        threading.Event().wait(seconds)


def check(path: Path) -> None:
    """Validate a client half without running it: an unknown attack or parameter is a `UserError`."""
    half: ClientHalf = load_half(ClientHalf, path)
    check_attack(half.attack, public=half.public, colludes=half.ring is not None)


def _is_work(state: pb.RoundState) -> bool:
    return bool(state.phase == pb.OPEN and state.participating and not state.submitted)


def _has_ended(state: pb.RoundState | None) -> bool:
    """Whether the run is finished; `RunFailedError` when it failed."""
    if state is None or state.phase not in ENDED:
        return False
    if state.phase == pb.FAILED:
        raise RunFailedError(f"the server ended the run: {state.reason}")
    log.info("finished: %s", state.reason)
    return True


def _token(folder: Path) -> str:
    try:
        return (folder / "token").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise UserError(
            f"a join token expected at {folder / 'token'}, there is none; run `steelyard prepare`"
        ) from None


def _attack(half: ClientHalf, folder: Path) -> Attack:
    device = use_device(half.device, "[placement] clients")
    arrays = read_arrays(folder / "data.safetensors")
    data = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
    state = folder / "state"
    state.mkdir(exist_ok=True)
    public = (data["public_images"], data["public_labels"]) if half.public else None
    others = [client for client in half.ring.clients if client != half.client] if half.ring else []
    resources = Resources(
        model=FlatModel(half.model.name, half.shape, device),
        images=data["images"],
        labels=data["labels"],
        public=public,
        training=half.training,
        seed=half.seed,
        folder=state,
        decoder=folder / ROLE_FILE if (folder / ROLE_FILE).exists() else None,
        client=half.client,
        allies=tuple(Ally(client=k, images=data[f"ally_{k}_images"], labels=data[f"ally_{k}_labels"]) for k in others),
        leader_seed=half.ring.seed if half.ring else None,
    )
    return make_attack(half.attack, resources)
