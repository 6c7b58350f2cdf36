"""Who may import whom. No role's package reaches the other's: that is half of what makes attacks honest."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("protos", "steelyard", "server", "client", "deploy", "scripts")
ALLOWED = {
    "protos": {"protos"},
    "steelyard": {"steelyard", "protos"},
    "server": {"server", "steelyard", "protos"},
    "client": {"client", "steelyard", "protos"},
    "deploy": {"deploy", "steelyard"},
    "scripts": {"scripts", "deploy", "steelyard"},
}
EXCEPTIONS = {("deploy/inline.py", "server"), ("deploy/inline.py", "client")}  # all roles in one process, on purpose
MESSAGES = {"steelyard/wire.py"}  # the only users of the generated messages
STUBS = {  # and of the generated services: the control plane's, and the collective tensor plane's part of it
    "server/service.py",
    "client/session.py",
    "steelyard/transport/collective_server.py",
    "steelyard/transport/collective_client.py",
}
FILES = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in path.name]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_package_may(path: Path) -> None:
    place = path.relative_to(ROOT)
    names = imported(path)
    for name in names & {n for n in names if n.split(".")[0] in OURS}:
        package = name.split(".")[0]
        assert package in ALLOWED[place.parts[0]] or (str(place), package) in EXCEPTIONS, f"{place} imports {name}"
    if any("federation_pb2_grpc" in name for name in names):
        assert str(place) in STUBS
    elif any("federation_pb2" in name for name in names):
        assert str(place) in MESSAGES


@pytest.mark.parametrize("package", ["scripts", "deploy"])
def test_launchers_and_commands_touch_no_torch_at_import(package: str) -> None:
    """Files may use torch inside a function that runs in a child process; at import, none does."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if path.relative_to(ROOT).parts[0] == package and path.name != "inline.py"
    ]
    run_without_torch("; ".join(f"import {module}" for module in modules))


def test_the_configuration_loads_without_torch() -> None:
    run_without_torch("import steelyard.config")


def test_help_loads_without_torch() -> None:
    run_without_torch(
        "import scripts.main, contextlib\nwith contextlib.suppress(SystemExit): scripts.main.main(['--help'])"
    )


def run_without_torch(code: str) -> None:
    check = f"import sys\n{code}\nassert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
