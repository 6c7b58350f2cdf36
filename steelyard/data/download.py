"""One file from the web into a folder: bounded in time and size, checked, and put in place in one step.

It knows no data set. A half-fetched or wrong file is never seen under the final name.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
import urllib.request
from pathlib import Path
from typing import BinaryIO

from steelyard.errors import UserError

_STALL_S = 10.0  # no single network operation may take longer
_CHUNK_BYTES = 2**18


def fetch(url: str, target: Path, *, size: int, md5: str, limit_s: float) -> None:
    """Fetch `url` to `target`.

    Args:
        url: an http or https address.
        target: the file to make; its folder is made when missing.
        size: its size in bytes.
        md5: its MD5, which is what the data set's authors publish; against mishaps, not against malice.
        limit_s: seconds until the transfer is given up.

    Raises:
        UserError: it cannot be had within the limit, or is not the file that was expected. Nothing is left behind.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")  # a sweep fetches on threads
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                got = _transfer(url, file, size, limit_s)
            if got != md5:
                raise UserError(f"{url}: MD5 {md5} expected, got {got}")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}: {error}") from None


def md5_of(path: Path) -> str:
    """The MD5 of a file, in hex; `OSError` when it can't be read."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _transfer(url: str, to: BinaryIO, size: int, limit_s: float) -> str:
    """Copy exactly `size` bytes and return their MD5."""
    deadline = time.monotonic() + limit_s
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    with urllib.request.urlopen(url, timeout=min(_STALL_S, limit_s)) as response:  # noqa: S310 - callers pass http and https only
        while chunk := response.read1(_CHUNK_BYTES):
            done += len(chunk)
            if done > size:
                raise UserError(f"{url}: {size} bytes expected, got more")
            if time.monotonic() > deadline:
                raise UserError(f"{url}: {size} bytes expected within {limit_s:g} s, got {done}")
            digest.update(chunk)
            to.write(chunk)
    if done != size:
        raise UserError(f"{url}: {size} bytes expected, got {done}")
    return digest.hexdigest()
