"""Which bytes each role of a run could see: its own folder's files, and what came to it over the wire.

The folder is all that a role is handed beforehand; whether the system kept it to that, the summary's `boundary` says.
Torch-free; reads role folders, never what is in them beyond a digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steelyard.decoder_store import file_digest
from steelyard.recording import ROLES
from steelyard.report.traffic import transfers

UNHASHED = ("log.txt", "token")  # one grows, the other is a secret


def seen(run: Path, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per role: its files (bytes and SHA-256) and the tensors that it received; empty where no role has a folder.

    A client receives global models and the receipts of its own updates; the server every update. What a link passes on
    is its client's, not its own.
    """
    folders = sorted(path for path in (run / ROLES).glob("*") if path.is_dir())
    return {folder.name: {"files": _files(folder), **_wire(folder.name, events)} for folder in folders}


def _files(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "name": str(path.relative_to(folder)),
            "bytes": path.stat().st_size,
            "sha256": None if path.name in UNHASHED else file_digest(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _wire(role: str, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kind, _, client = role.partition("-")
    if kind == "server":
        return _arrived([event for event in events if event["event"] == "received"], "updates")
    if kind == "client":
        mine = [event for event in events if event["event"] == "fetched" and event["client"] == int(client)]
        return _arrived(mine, "global models")
    return {"arrived": "nothing of its own", "transfers": 0, "bytes": 0}


def _arrived(events: Sequence[Mapping[str, Any]], what: str) -> dict[str, Any]:
    return {"arrived": what, "transfers": transfers(events), "bytes": sum(int(event["bytes"]) for event in events)}
