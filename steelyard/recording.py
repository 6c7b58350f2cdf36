"""Recorded rounds: where a run directory keeps them, and how to read them back. Torch-free; the server writes.

    recordings/round-0001/global.safetensors      the global model that the round began with
    recordings/round-0001/client-00.safetensors   an accepted update: trained state minus global state
    recordings/round-0001/closed.json             who took part, whose update arrived, void or not, and why it closed
    recordings/round-0001/evaluators.safetensors  what evaluators carry on from the last settled round
    recordings/round-0001/examples.safetensors    clients' totals up to it on each validation example
    recordings/round-0001/defence.safetensors     what the defence carries on from it, if it carries anything

The model after the last round is the `global` of the round that would follow.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard.bundle import BundleFile, digest, write_text
from steelyard.errors import BadBundleError, UserError
from steelyard.parsing import parse

ROLES = "roles"  # where a run directory keeps the role folders, beside the recordings
EXAMPLES = "examples.safetensors"

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ClosedRound:
    """How a round ended. `received` are the clients whose updates count, in client order."""

    round: int
    received: tuple[int, ...]
    missing: tuple[int, ...]
    void: bool
    reason: str


class Recordings:
    """The recordings folder of one run directory."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "recordings"

    def round_folder(self, number: int) -> Path:
        """The folder of one round, made if needed."""
        folder = self.place(number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def global_file(self, number: int) -> Path:
        """Where a round's global model lies."""
        return self.round_folder(number) / "global.safetensors"

    def update_file(self, number: int, client: int) -> Path:
        """Where a client's accepted update of a round lies."""
        return self.round_folder(number) / f"client-{client:02d}.safetensors"

    def state_file(self, number: int) -> Path:
        """Where lies what the evaluators carry on from a settled round."""
        return self.round_folder(number) / "evaluators.safetensors"

    def examples_file(self, number: int) -> Path:
        """Where lie the clients' totals on each validation example up to a settled round."""
        return self.round_folder(number) / EXAMPLES

    def defence_file(self, number: int) -> Path:
        """Where lies what the defence carries on from a settled round."""
        return self.round_folder(number) / "defence.safetensors"

    def updates(self, number: int) -> dict[int, Path]:
        """The accepted updates of a round by client."""
        files = self.place(number).glob("client-*.safetensors")
        return dict(sorted((int(path.stem.removeprefix("client-")), path) for path in files))

    def close(self, closed: ClosedRound) -> None:
        """Write down, atomically and durably, how a round ended."""
        text = json.dumps(asdict(closed)) + "\n"
        write_text(self.round_folder(closed.round) / "closed.json", text)

    def closed(self, number: int) -> ClosedRound | None:
        """How a round ended; None while it has not.

        Raises:
            UserError: the file that says so is damaged.
        """
        path = self.place(number) / "closed.json"
        if not path.exists():
            return None
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: a closed round as JSON expected: {error}") from None
        return parse(ClosedRound, table, str(path))

    def closed_rounds(self) -> list[ClosedRound]:
        """Every round that closed, in order.

        Raises:
            UserError: there is none.
        """
        rounds: list[ClosedRound] = []
        while (closed := self.closed(len(rounds) + 1)) is not None:
            rounds.append(closed)
        if not rounds:
            raise UserError(f"recorded rounds expected under {self.folder}, there are none; run the experiment first")
        return rounds

    def last_closed(self) -> int:
        """The highest number of a round that closed, whether those before it are there or not; 0: none did."""
        closed = self.folder.glob("round-*/closed.json")
        return max((int(path.parent.name.removeprefix("round-")) for path in closed), default=0)

    def lost_rounds(self) -> list[int]:
        """The rounds without a closing before one that has one; a server leaves none, so files are missing."""
        return [number for number in range(1, self.last_closed()) if not self.closed(number)]

    def uncache(self, number: int) -> None:
        """Have the system's file cache let go of a round's models and updates, as far as nobody has them mapped.

        Nobody reads a settled round again while the run lasts. Where memory is a virtual machine's, pages that the
        next round takes over cost a tenth of new ones; in a container the cache counts as the container's memory.
        """
        if hasattr(os, "posix_fadvise"):
            for path in self.place(number).glob("*.safetensors"):
                with contextlib.suppress(OSError), path.open("rb") as file:  # it is advice: nothing hangs on it
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def place(self, number: int) -> Path:
        """The folder of one round, there or not."""
        return self.folder / f"round-{number:04d}"


def read_events(run: Path) -> list[dict[str, Any]]:
    """The events of a run directory so far; a line still being written is left out.

    Raises:
        UserError: a line is damaged.
    """
    path = run / "events.jsonl"
    if not path.exists():
        return []
    events: list[dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            events.append(json.loads(line))  # noqa: PERF401 - how many there are says which one is damaged
    except ValueError as error:
        raise UserError(
            f"{path}, line {len(events) + 1}: an event as JSON expected: {error}; restore the file, or run anew with "
            "--force"
        ) from None
    return events


def read_vector(path: Path, *, verify: bool = False, private: bool = False) -> Vector:
    """A recorded model or update as a float32 vector [D], a view of the mapped file; `private` as `BundleFile.open`.

    Raises:
        BadBundleError: the file is malformed, or (with `verify`) its bytes do not match their digest.
    """
    file = BundleFile.open(path, private=private)
    if verify and digest(file.data) != file.manifest.sha256:
        raise BadBundleError("BAD_DIGEST", f"{path.name}: the bytes do not match the digest in the header")
    return file.flat()


def drop_partial_line(path: Path) -> None:
    """Cut a log of lines back to its last whole one: whoever wrote it was killed. No file is no error."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
