"""Rounds without training in other platforms, real processes: Flower's SuperLink and SuperNodes, NVFlare's simulator.

They live in an environment of their own (`make peers`), whose programs are run with a home folder of their own, so that
their packages and files meet nothing of ours. A round is timed where the platform's server code is: from the first send
to the average of all replies. Torch-free.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from steelyard.benchmarks.transport import Case, Cell, private_bytes

HERE = Path(__file__).parent
START_S = 90.0
POLL_S = 0.05
APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "peer"
version = "1.0.0"
description = "rounds without training"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "peer_flower:server"
clientapp = "peer_flower:client"
[tool.flwr.app.config]
floats = 1
clients = 1
rounds = 1
out = ""
"""
HOME = """
[superlink]
default = "bench"
[superlink.bench]
address = "{address}"
insecure = true
"""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One platform: the program that shows that it is installed, and what starts its rounds.

    `start` takes (environment's bin, case, rounds, file for the seconds, folder, stack that ends processes) and
    returns the process whose tree is the server.
    """

    program: str
    start: Callable[[Path, Case, int, Path, Path, ExitStack], subprocess.Popen[bytes]]


def measure(name: str, environment: Path | None, case: Case, rounds: int, patience_s: float, folder: Path) -> Cell:
    """Median seconds of a platform's rounds, the first left out, and the peak memory of its server's processes.

    A cell that can't be had says why instead.
    """
    peer = PEERS[name]
    if environment is None or not (environment / "bin" / peer.program).exists():
        return Cell(way=name, case=case, reason="not installed: make peers, then --peers VENV")
    out = folder / "seconds.json"
    out.unlink(missing_ok=True)
    memory = 0
    with ExitStack() as stack:
        server = peer.start(environment.resolve() / "bin", case, 1 + rounds, out, folder, stack)
        end = time.monotonic() + START_S + (1 + rounds) * patience_s
        pause = threading.Event()
        while len(taken := _seconds(out)) <= rounds:
            if time.monotonic() > end:
                reason = f"{len(taken)} rounds within {START_S + (1 + rounds) * patience_s:.0f} s"
                return Cell(way=name, case=case, reason=reason)
            if server.poll() is not None:
                return Cell(way=name, case=case, reason=f"its server ended early with code {server.returncode}")
            memory = max(memory, sum(map(private_bytes, tree(server.pid))))
            pause.wait(POLL_S)
    return Cell(way=name, case=case, seconds=statistics.median(taken[1:]), peak_bytes=memory)


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found.extend(children.get(each, []))
    return found


def _flower(
    programs: Path, case: Case, rounds: int, out: Path, folder: Path, stack: ExitStack
) -> subprocess.Popen[bytes]:
    ports = [_free_port() for _ in range(1 + case.clients)]
    address = f"127.0.0.1:{ports[0]}"
    app, home = folder / "app", folder / "home"
    for made in (app, home):
        made.mkdir(exist_ok=True)
    (app / "pyproject.toml").write_text(APP, encoding="utf-8")
    shutil.copy(HERE / "peer_flower.py", app)
    (home / "config.toml").write_text(HOME.format(address=address), encoding="utf-8")
    environment = _environment(programs, home) | {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    environment |= {"FLWR_DISABLE_UPDATE_CHECK": "1"}

    def start(*command: str) -> subprocess.Popen[bytes]:
        log = (folder / f"{Path(command[0]).name}.txt").open("ab")
        stack.callback(log.close)
        return stack.enter_context(_ended([str(programs / command[0]), *command[1:]], environment, folder, log))

    server = start(
        "flower-superlink", "--insecure", "--port", str(ports[0]), "--disable-runtime-dependency-installation"
    )
    _await_port(ports[0])
    for port in ports[1:]:
        start("flower-supernode", "--insecure", "--superlink", address, "--port", str(port))
    settings = f'floats={case.nbytes // 4} clients={case.clients} rounds={rounds} out="{out}"'
    start("flwr", "run", str(app), "bench", "--run-config", settings)
    return server


def _nvflare(
    programs: Path, case: Case, rounds: int, out: Path, folder: Path, stack: ExitStack
) -> subprocess.Popen[bytes]:
    script = Path(shutil.copy(HERE / "peer_nvflare.py", folder))
    workspace = folder / "workspace"
    shutil.rmtree(workspace, ignore_errors=True)
    numbers = [str(number) for number in (case.nbytes // 4, case.clients, rounds)]
    command = [str(programs / "python"), str(script), *numbers, str(out), str(workspace)]
    log = stack.enter_context((folder / "nvflare.txt").open("ab"))
    return stack.enter_context(_ended(command, _environment(programs, folder), folder, log))


PEERS = {
    "flower": Peer(program="flower-superlink", start=_flower),
    "nvflare": Peer(program="nvflare", start=_nvflare),
}


@contextmanager
def _ended(
    command: list[str], environment: Mapping[str, str], folder: Path, log: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which ends with the block, with all that it started in it."""
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,  # type: ignore[call-overload]  # an open file
        stderr=log,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in tree(process.pid):  # at once: a second signal to us while it ends kindly would leave it running
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _environment(programs: Path, home: Path) -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**threads, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "LANG": "C.UTF-8"}


def _seconds(path: Path) -> list[float]:
    try:
        found: list[float] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none yet, or half written
        return []
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


def _await_port(port: int) -> None:
    """Wait until something listens there."""
    end, pause = time.monotonic() + START_S, threading.Event()
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            pause.wait(POLL_S)
        else:
            return
