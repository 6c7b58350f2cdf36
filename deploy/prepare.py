"""Cuts an experiment into one self-contained folder per role; a process or container is handed its own alone.

    server/     half.json, data.safetensors (validation and test sets; the root set if declared), certificates/
    link-3/     link.json (the line's figures, whom to dial), only where [network] puts a link before the client
    client-3/   half.json, data.safetensors (its shard; the public set if declared), token or certificates/, and for an
                attacker decoder.safetensors if the experiment names one trained beforehand

The server's folder has no word of who attacks, and a client's has nothing of any other client's, with one exception
that the experiment must declare: colluding attackers hold each other's shards. Absent clients have no folder; what the
others are handed is the same with and without them. Torch-free.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deploy.decoders import allowed_decoder
from steelyard.bundle import write_arrays, write_text
from steelyard.config import ClientHalf, Experiment, Ring, RosterEntry, ServerHalf, Shape, to_json
from steelyard.data.deal import Deal, deal
from steelyard.decoder_store import ROLE_FILE
from steelyard.errors import UserError
from steelyard.scoring.subset import draw_subset
from steelyard.seeding import derive_seed


def client_folder(folder: Path, client: int) -> Path:
    """One client's role folder."""
    return folder / f"client-{client}"


def server_folder(folder: Path) -> Path:
    """The server's role folder."""
    return folder / "server"


def link_folder(folder: Path, client: int) -> Path:
    """The folder of the link between one client and the server."""
    return folder / f"link-{client}"


def prepare(experiment: Experiment, folder: Path) -> Deal:
    """Write every role's folder and return how the data was dealt.

    Raises:
        UserError: the data can't be had or is too small, [scoring] examples does not fit it, certificates are missing,
            the folder is in use, or a decoder is named that is not to be had or not the attacker's to have.
    """
    if any(path.name == "server" or path.name.startswith("client-") for path in folder.glob("*")):
        raise UserError(f"an empty place for role folders expected, {folder} holds some; name another with --out")
    _check_certificates(experiment)
    dealt = deal(experiment)
    draw_subset(
        dealt.validation.labels, experiment.scoring.examples, experiment.seed
    )  # refuses before any process runs
    decoder = allowed_decoder(experiment, dealt)
    tokens = {client: secrets.token_hex(16) for client in experiment.clients.present}
    _write_server(experiment, dealt, tokens, server_folder(folder))
    for client, token in tokens.items():
        _write_client(experiment, dealt, client, token, client_folder(folder, client))
        if decoder is not None and client in experiment.attackers:
            shutil.copyfile(decoder, client_folder(folder, client) / ROLE_FILE)
    for client in experiment.network.linked(experiment.clients.present):
        _write_link(experiment, client, link_folder(folder, client))
    return dealt


def server_half(experiment: Experiment, shape: Shape, roster: tuple[RosterEntry, ...]) -> ServerHalf:
    """The server's half: everything but who attacks."""
    return ServerHalf(
        seed=experiment.seed,
        rounds=experiment.rounds,
        shape=shape,
        model=experiment.model,
        roster=roster,
        evaluators=experiment.evaluators,
        scoring=experiment.scoring,
        protocol=experiment.protocol,
        transport=experiment.transport,
        clients=experiment.clients.count,
        device=experiment.placement.server,
        training=experiment.training,
        defence=experiment.defence,
    )


def client_half(experiment: Experiment, shape: Shape, client: int) -> ClientHalf:
    """One client's half: its own seed, rounds and attack."""
    ring, protocol = experiment.ring_of(client), experiment.protocol
    return ClientHalf(
        client=client,
        seed=derive_seed(experiment.seed, "client", client),
        shape=shape,
        model=experiment.model,
        training=experiment.training,
        attack=experiment.attack_of(client),
        public=experiment.knows_public(client),
        transport=experiment.transport,
        stay=experiment.clients.stays[client],
        ring=Ring(clients=ring, seed=derive_seed(experiment.seed, "client", ring[0])) if ring else None,
        slowdowns=experiment.network.slowdowns_of(client),
        device=experiment.placement.client(client),
        # A round is open so long, a server that started again waits so long, and one holds an earlier session so long.
        patience_s=max(protocol.round_deadline_s, protocol.join_timeout_s, protocol.lease_s),
    )


def _write_server(experiment: Experiment, dealt: Deal, tokens: dict[int, str], folder: Path) -> None:
    _make(folder)
    secure = bool(experiment.transport.certificates)
    hashes = {k: "" if secure else hashlib.sha256(token.encode()).hexdigest() for k, token in tokens.items()}
    roster = tuple(
        RosterEntry(client=k, samples=len(dealt.shards[k]), token_sha256=hashes[k], stay=stay)
        for k, stay in experiment.clients.stays.items()
    )
    write_text(folder / "half.json", to_json(server_half(experiment, dealt.shape, roster)))
    write_arrays(
        folder / "data.safetensors",
        {
            "validation_images": dealt.validation.images,
            "validation_labels": dealt.validation.labels,
            "test_images": dealt.test.images,
            "test_labels": dealt.test.labels,
            **({"root_images": dealt.root.images, "root_labels": dealt.root.labels} if len(dealt.root) else {}),
        },
    )
    if secure:
        _copy_certificates(Path(experiment.transport.certificates), "server", folder)


def _write_client(experiment: Experiment, dealt: Deal, client: int, token: str, folder: Path) -> None:
    _make(folder)
    half = client_half(experiment, dealt.shape, client)
    write_text(folder / "half.json", to_json(half))
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "images": dealt.shards[client].images,
        "labels": dealt.shards[client].labels,
    }
    if half.public:
        arrays |= {"public_images": dealt.public.images, "public_labels": dealt.public.labels}
    for ally in half.ring.clients if half.ring else ():
        if ally != client:
            shard = dealt.shards[ally]
            arrays |= {f"ally_{ally}_images": shard.images, f"ally_{ally}_labels": shard.labels}
    write_arrays(folder / "data.safetensors", arrays)
    if experiment.transport.certificates:
        _copy_certificates(Path(experiment.transport.certificates), f"client-{client}", folder)
    else:
        path = folder / "token"
        path.touch(mode=0o600)
        path.write_text(token, encoding="ascii")


def _write_link(experiment: Experiment, client: int, folder: Path) -> None:
    """A link's folder holds no secret: it passes on bytes that it can't read beyond loopback, and no data."""
    _make(folder)
    table = {
        "listen": "127.0.0.1:0",
        "target": experiment.transport.address,
        "profile": asdict(experiment.network.line_of(client)),
        "seed": derive_seed(experiment.seed, "network", client),
    }
    write_text(folder / "link.json", to_json(table))


def _make(folder: Path) -> None:
    """Make a role's folder, closed to other users of the host: the roles of a run may be users of their own."""
    try:
        folder.mkdir(parents=True)
        folder.chmod(0o700)
    except OSError as error:
        raise UserError(f"a place for role folders expected at {folder.parent}: {error}") from None


def _check_certificates(experiment: Experiment) -> None:
    """See that every role's certificates are there before anything is written."""
    if not experiment.transport.certificates:
        return
    source = Path(experiment.transport.certificates)
    roles = ("server", *(f"client-{client}" for client in experiment.clients.present))
    for path in (source / "ca.pem", *(source / role for role in roles)):
        if not path.exists():
            raise UserError(f"certificates expected, there is no {path}; make them with `steelyard certs`")


def _copy_certificates(source: Path, role: str, folder: Path) -> None:
    """Copy a role's own certificate and key, and the authority's certificate, never its key."""
    shutil.copytree(source / role, folder / "certificates")
    shutil.copyfile(source / "ca.pem", folder / "certificates" / "ca.pem")
