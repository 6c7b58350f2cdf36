"""What containers mount: role folders with certificates of the run's own, and the server's part of the run directory.

    roles/server/       to the server, read only
    roles/client-3/     to client 3, read only, but for its state/
    roles/link-3/       to the link before client 3: its figures, and the socket that it takes commands by
    served/             to the server: events, scores, metrics, recordings, and nothing else of the run directory

While containers run, the run directory has links to what is in served/, so that whoever follows a run reads the usual
places; afterwards the files themselves are moved there. Starts nothing, knows no engine. Torch-free.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from deploy.containers.compose import PORT, SERVED, SERVER_NAME, USER
from deploy.link.control import SOCKET
from deploy.prepare import client_folder, prepare, server_folder
from steelyard.bundle import write_text
from steelyard.certificates import write_certificates
from steelyard.config import Experiment, to_json
from steelyard.data.deal import Deal
from steelyard.errors import UserError

SERVERS_FILES = ("events.jsonl", "scores.csv", "metrics.csv", "recordings")


def prepare_boxed(experiment: Experiment, folder: Path) -> Deal:
    """Write role folders for containers: mutual TLS by an authority whose key is thrown away, and a fixed port.

    Args:
        experiment: its own address and certificates do not matter.
        folder: where the role folders go.

    Raises:
        UserError: as `prepare` does; or tensors that do not travel by gRPC, which is all that a link passes on.
    """
    if experiment.transport.tensors != "grpc":
        raise UserError(
            f"containers need transport.tensors = 'grpc', got {experiment.transport.tensors!r}: their walls let only "
            "the server's port through"
        )
    with tempfile.TemporaryDirectory() as place:
        certificates = Path(place) / "certificates"
        write_certificates(certificates, experiment.clients.count, [SERVER_NAME])
        transport = replace(experiment.transport, address=f"0.0.0.0:{PORT}", certificates=str(certificates))
        return prepare(replace(experiment, transport=transport), folder)


def user_of_boxes() -> str:
    """UID:GID that containers run as: this user's, who owns what they mount; for root one without any rights."""
    return f"{os.getuid()}:{os.getgid()}" if os.geteuid() else USER


def open_boxes(roles: Path, run: Path, clients: Iterable[int]) -> None:
    """Make what containers mount and hand it to their user; a run that was interrupted is continued.

    Args:
        roles: role folders that `prepare_boxed` wrote.
        run: the run directory.
        clients: who takes part.
    """
    served = run / SERVED
    served.mkdir(mode=0o700, exist_ok=True)
    for name in SERVERS_FILES:
        path = run / name
        if path.is_symlink():
            continue
        if path.exists():
            path.rename(served / name)
        path.symlink_to(Path(SERVED) / name)
    folders = [served, server_folder(roles)]
    for client in clients:
        link = roles / f"link-{client}"
        if not link.exists():
            link.mkdir(mode=0o700)
            write_text(link / "link.json", to_json({"seed": 0}))  # a line that only passes bytes on
        (link / SOCKET).unlink(missing_ok=True)  # an earlier life's; it says that the link takes commands
        (client_folder(roles, client) / "state").mkdir(mode=0o700, exist_ok=True)
        folders += [client_folder(roles, client), link]
    if os.geteuid() == 0:
        owner, group = (int(number) for number in USER.split(":"))
        for folder in folders:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, owner, group, follow_symlinks=False)


def close_boxes(run: Path) -> None:
    """Move what the server wrote to its places in the run directory."""
    served = run / SERVED
    if not served.exists():
        return
    for name in SERVERS_FILES:
        path = run / name
        if path.is_symlink():
            path.unlink()
        if (served / name).exists() and not path.exists():
            (served / name).rename(path)
    if not any(served.iterdir()):
        served.rmdir()
