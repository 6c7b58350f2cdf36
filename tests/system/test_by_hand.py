"""Role folders carried and started by hand, as on hosts of their own: with join tokens, with certificates, watched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.forks import start

pytestmark = pytest.mark.timeout(400)  # several waits, each bounded, on a loaded machine
PATIENCE_S = 100.0

AUDITED = """
import json, os, runpy, sys
opened = set()
sys.addaudithook(lambda event, values: event == "open" and opened.add(str(values[0])))
log = sys.argv.pop(1)
code = 0
try:
    runpy.run_module("client", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
paths = [os.path.realpath(path) for path in sorted(opened) if not path.isdigit()]  # before the log is one of them
with open(log, "w") as file:
    json.dump(paths, file)
sys.exit(code)
"""


def prepare(shell: Any, roles: Path, *arguments: str) -> None:
    code, said, err = shell.steelyard("prepare", shell.experiment, "--out", str(roles), *arguments)
    assert (code, err) == (0, "")
    assert f"python -m server {roles}/server" in said


def address_of(shell: Any, run: Path) -> str:
    """Where the server of a run listens, as soon as it does."""
    look = shell.look(run)
    return str(shell.wait_until(lambda: look.events("server_started"), "the server")[0]["address"])


def test_roles_started_by_hand_keep_to_their_own_folders(undisturbed: Any, shell: Any) -> None:
    roles, run, log = shell.folder / "roles", shell.folder / "run", shell.folder / "opened.json"
    prepare(shell, roles)
    server = shell.python("-m", "server", str(roles / "server"), "--run", str(run))
    address = address_of(shell, run)
    clients = [
        shell.python("-m", "client", str(roles / "client-0"), "--server", address),
        shell.python("-c", AUDITED, str(log), str(roles / "client-1"), "--server", address),
    ]
    company = start("client", roles / "client-2", ["--server", address], roles / "client-2" / "log.txt")
    try:
        assert [shell.finish(process)[0] for process in (server, *clients)] == [0, 0, 0]
        assert company.wait(PATIENCE_S) == 0
    finally:
        company.kill()
    look = shell.look(run)
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models)
    opened = [Path(path) for path in json.loads(log.read_text(encoding="utf-8"))]
    ours = [path for path in opened if path.is_relative_to(shell.folder.resolve())]
    assert {"half.json", "data.safetensors", "token"} <= {path.name for path in ours}, "the hook sees opened files"
    strange = [path for path in ours if not path.is_relative_to((roles / "client-1").resolve())]
    assert strange == [], "another role's folder, or the server's run directory"
    code = [path for path in opened if path.suffix in (".py", ".pyc") and path.parent.parent.name == "server"]
    assert code == [], "nor a line of the server's code"


def test_roles_with_certificates(undisturbed: Any, shell: Any) -> None:
    certificates, roles, run = shell.folder / "certs", shell.folder / "roles", shell.folder / "run"
    assert shell.steelyard("certs", str(certificates), "--clients", "3", "--host", "127.0.0.1")[0] == 0
    prepare(shell, roles, "--set", f"transport.certificates={certificates}")
    assert list(roles.glob("*/token")) == [], "certificates take the tokens' place"
    assert list(roles.rglob("ca-key.pem")) == []
    folder = roles / "server"
    started = [start("server", folder, ["--run", str(run)], folder / "log.txt")]
    try:
        address = address_of(shell, run)
        folders = [roles / f"client-{k}" for k in range(3)]
        started += [start("client", folder, ["--server", address], folder / "log.txt") for folder in folders]
        assert [process.wait(PATIENCE_S) for process in started] == [0, 0, 0, 0]
    finally:
        for process in started:
            process.kill()
    look = shell.look(run)
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models)
