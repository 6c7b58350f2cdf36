"""What a number depends on beside the experiment: processor, versions, threads, code. Torch-free."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from deploy.environment import DETERMINISM, THREADS
from steelyard.decoder_store import file_digest

ROOT = Path(__file__).resolve().parents[1]
CODE = ("client", "deploy", "protos", "scripts", "server", "steelyard")
COMPILED = ROOT / "steelyard" / "scoring" / "paths"  # not imported: it takes torch


def provenance() -> dict[str, Any]:
    """The record, as a run's manifest has it."""
    packages = ("torch", "numpy", "grpcio", "protobuf", "scikit-learn", "steelyard")
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "threads": THREADS,
        "determinism": DETERMINISM,
        "revision": revision(),
        "compiled": {file.name: file_digest(file) for file in sorted(COMPILED.glob("winograd-*.so"))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}
    names = ("model name", "cpu family", "model")
    return ", ".join(
        fields[name] if name == "model name" else f"{name} {fields[name]}" for name in names if name in fields
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def revision() -> str:
    """The source's git revision; with `+` and a digest of the code where it differs; the digest alone elsewhere."""
    code = hashlib.sha256()
    for path in sorted(path for folder in CODE for suffix in ("*.py", "*.c") for path in (ROOT / folder).rglob(suffix)):
        code.update(str(path.relative_to(ROOT)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    answers = []
    for command in (["rev-parse", "--show-toplevel", "HEAD"], ["status", "--porcelain", "--", *CODE]):
        try:
            answers.append(
                subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True).stdout
            )
        except (OSError, subprocess.CalledProcessError):
            return f"+{code.hexdigest()[:10]}"
    top, head = answers[0].split("\n")[:2]
    if Path(top).resolve() != ROOT:  # installed within another repository
        return f"+{code.hexdigest()[:10]}"
    return head + (f"+{code.hexdigest()[:10]}" if answers[1].strip() else "")
