"""A real client's end when something of its own fails: it ends with one line, and never waits for good."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.forks import start
from deploy.prepare import client_folder

MakeFederation = Callable[..., Any]
PATIENCE_S = 30.0
ROOT = Path(__file__).parents[2]
STARVED = """
import resource, sys, threading
import client.session
from pathlib import Path
from steelyard.transport.endpoint import dial
from steelyard.transport.grpc_plane import GrpcClientPlane

client.session.WATCH_S = 0.3
metadata = (("steelyard-token", sys.argv[2]),)
session = client.session.Session(dial(sys.argv[1], None), metadata, GrpcClientPlane, 30.0)
session.join()
session.wait_for(lambda state: True)
threading.stack_size(2**28)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
session.wait_for(lambda state: state.round == 1)
"""


def test_a_client_that_can_start_no_thread_says_so_and_ends(make_federation: MakeFederation) -> None:
    """Its next watch stream needs one; without the stream it would wait for good, its heartbeats going on."""
    federation = make_federation()
    token = federation.client(0).metadata[0][1]
    command = [sys.executable, "-c", STARVED, federation.address, token]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stderr.splitlines()[-1].endswith("following the server failed: RuntimeError: can't start new thread")


def test_a_client_whose_own_files_are_damaged_ends_with_a_line(make_federation: MakeFederation) -> None:
    federation = make_federation(attack={"name": "free_rider", "clients": [0]})
    folder = client_folder(federation.roles, 0)
    (folder / "state").mkdir()
    (folder / "state" / "attack-000000.safetensors").write_bytes(b"cut")
    for k in (1, 2):
        federation.client(k).join()
    process = start("client", folder, ["--server", federation.address], folder / "log.txt")
    try:
        assert process.wait(PATIENCE_S) == 1
    finally:
        process.kill()
    line = (folder / "log.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert "round 1: the attack can't read what it kept, run the experiment anew: TRUNCATED: attack-000000" in line
    assert federation.await_event("left", client=0)
