"""Compiles minimal filtering (steelyard/scoring/paths/winograd.c) when steelyard is built or installed.

One small library per kind of processor lies beside its source, plain C that Python loads by ctypes, so it hangs on no
version of Python. Without a compiler the rest works, and the paths that need it say so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("steelyard/scoring/paths")
VARIANTS = {  # named as filtering.py looks for them
    "avx512_bf16": ["-mavx512f", "-mavx512bf16", "-mfma"],
    "avx512": ["-mavx512f", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "default": [],
}
TIMEOUT_S = 300


class CustomBuildHook(BuildHookInterface):
    """What hatchling calls before it packs a wheel, of an editable installation too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, and make it a wheel of this machine's if there is something compiled in it."""
        folder = Path(self.root) / FOLDER
        variants = VARIANTS if platform.machine().lower() in {"x86_64", "amd64"} else {"default": VARIANTS["default"]}
        for name, flags in variants.items():
            library = folder / f"winograd-{name}.so"
            failure = _compile(folder / "winograd.c", library, flags)
            if failure:
                self.app.display_warning(f"{library.name} of paths with 'winograd' in their names left out: {failure}")
                library.unlink(missing_ok=True)  # of another source, maybe, and in the way of one that was made
            else:
                build_data["artifacts"].append(str(FOLDER / library.name))
        if build_data["artifacts"]:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{re.sub(r'[^a-z0-9_]', '_', sysconfig.get_platform())}"


def _compile(source: Path, library: Path, flags: list[str]) -> str | None:
    """Returns what went wrong, if anything did; otherwise what was there before was replaced at once."""
    made = library.with_name(f"{library.stem}.{os.getpid()}.so")  # another installation may run beside this one
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    command = [*shlex.split(os.environ.get("CC", "cc")), "-O3", "-std=gnu11", "-shared", "-fPIC", *flags]
    command += [f'-DSOURCE_SHA256="{digest}"', "-o", str(made), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            return f"{command[0]} failed: {done.stderr.strip()[-500:]}"
        made.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        with contextlib.suppress(OSError):  # a source that can't be written has nothing to remove
            made.unlink(missing_ok=True)
    return None
