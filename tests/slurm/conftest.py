"""A Slurm of two virtual nodes on loopback: real daemons, started for the tests and stopped by their ids."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "sinfo", "squeue", "scancel")
NODES = ("node1", "node2")
START_S, JOB_S = 30.0, 280.0
CONFIGURATION = """
ClusterName=steelyard
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """The cluster's folder, environment and daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "STEELYARD_PYTHON": sys.executable}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start munge, the controller and both nodes, and wait until these are idle."""
        controller, *ports = free_ports(1 + len(NODES))
        lines = [
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=8 State=UNKNOWN"
            for name, port in zip(NODES, ports, strict=True)
        ]
        text = CONFIGURATION.format(
            controller=controller, folder=self.folder, user=getpass.getuser(), nodes="\n".join(lines)
        )
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{ending}" for option, ending in places.items()]
        self._daemon("munged", "--foreground", *options)
        wait_until((self.folder / "munge.socket").exists, "munge's socket", START_S)
        self._daemon("slurmctld", "-D", "-i")
        for name in NODES:
            self._daemon("slurmd", "-D", "-N", name)
        wait_until(lambda: self.ask("sinfo", "-h", "-o", "%D %T") == "2 idle", "two idle nodes", START_S)

    def stop(self) -> None:
        """End every job, then every daemon, the last started first."""
        if len(self._daemons) == 2 + len(NODES):
            self.ask("scancel", "--quiet", *self.jobs())
            wait_until(lambda: not self.jobs(), "the end of every job", START_S)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(START_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints; "" where it can't reach the controller."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=START_S, check=False
        ).stdout.strip()

    def jobs(self) -> list[str]:
        """The jobs that are not over."""
        return self.ask("squeue", "-h", "-o", "%A").split()

    def submit(self, *arguments: str) -> tuple[int, str]:
        """Submit a batch script, wait until it is over; its exit code and what its jobs wrote."""
        output = self.folder / "jobs"
        output.mkdir(exist_ok=True)
        command = ["sbatch", "--wait", f"--output={output}/%j.txt", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=JOB_S, check=False
        )
        said = "\n".join(path.read_text(encoding="utf-8") for path in sorted(output.iterdir()))
        return done.returncode, f"{done.stdout}{done.stderr}\n{said}"

    def _daemon(self, *command: str) -> None:
        with (self.folder / "daemons.txt").open("ab") as output:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=output, stderr=output))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


def wait_until(check: Callable[[], bool], what: str, patience_s: float) -> None:
    end, pause = time.monotonic() + patience_s, threading.Event()
    while not check():
        assert time.monotonic() < end, f"{what} did not come within {patience_s:g} s"
        pause.wait(0.1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        assert "slurm" not in os.environ.get("STEELYARD_REQUIRE", ""), f"required, and not installed: {missing}"
        pytest.skip(f"{missing[0]} is not installed: apt-get install slurmctld slurmd slurm-client munge")
    with tempfile.TemporaryDirectory(prefix="steelyard-slurm-") as folder:  # pytest's own is closed to others
        Path(folder).chmod(0o711)  # munge demands that any user may come in through its socket
        made = Cluster(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()
