"""Decoders trained beforehand: where they are kept, how their content names them, and what they were made of.

A stored decoder is named by the SHA-256 of its file, and what it was made of is part of the file: whoever names a
decoder by digest has named its source too. Torch-free: it knows no decoder's inside.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from steelyard.bundle import raw, read_arrays
from steelyard.errors import BadBundleError, UserError
from steelyard.parsing import NonNegative, Positive, parse

FOLDER_VARIABLE = "STEELYARD_DECODERS"
FOLDER = "decoders"
ROLE_FILE = "decoder.safetensors"  # its name in the folder of an attacker that is handed it

Source = Literal["own", "public"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a decoder was made of, all that decides it.

    `source` "own" is the shard of `client`, "public" the public set; `data_sha256` names these very `samples`. `seed`
    is the training's own, `params` its parameters, every default filled in. `dataset` and `partition_seed` are for
    people.
    """

    source: Source
    client: NonNegative
    dataset: str
    partition_seed: NonNegative
    samples: Positive
    data_sha256: str
    seed: NonNegative
    params: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The form that is part of a decoder's file."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def store_folder() -> Path:
    """Where decoders are kept: the folder that STEELYARD_DECODERS names, else `decoders` where the command stands.

    It can change no result, since a digest names the content: so it is no key of the experiment.
    """
    return Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)


def find(sha256: str, folder: Path) -> Path:
    """The stored decoder of a digest, its content verified.

    Raises:
        UserError: that is no digest, there is no such decoder, or its file is damaged.
    """
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise UserError(f"[attack] decoder_sha256: 64 lower-case hex digits expected, got {sha256[:80]!r}")
    path = folder / f"{sha256}.safetensors"
    if not path.is_file():
        raise UserError(
            f"[attack] decoder_sha256: a decoder expected at {path}, there is none; make it with `steelyard decoder "
            f"train`, or name its folder in {FOLDER_VARIABLE}"
        )
    verify(path, sha256)
    return path


def verify(path: Path, sha256: str) -> None:
    """Check a file against the digest that names it.

    Raises:
        UserError: it is another, or damaged.
    """
    got = file_digest(path)
    if got != sha256:
        raise UserError(f"{path}: content of SHA-256 {sha256} expected, got {got}; delete it and train anew")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_digest(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> str:
    """SHA-256 over training data, images [n, channels, height, width] then labels [n], in hex."""
    hasher = hashlib.sha256(repr((images.shape, labels.shape)).encode())
    for array in (images, labels):
        hasher.update(raw(np.ascontiguousarray(array)))
    return hasher.hexdigest()


def read_provenance(path: Path) -> Provenance:
    """What a stored decoder says that it was made of.

    Raises:
        UserError: the file is no decoder, or does not say.
    """
    try:
        table = json.loads(read_arrays(path)["provenance"].tobytes())
    except (BadBundleError, KeyError, ValueError, RecursionError):
        raise UserError(f"{path}: a decoder stored by `steelyard decoder train` expected") from None
    return parse(Provenance, table, str(path))
