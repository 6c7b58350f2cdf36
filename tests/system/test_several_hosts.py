"""Two hosts as the network sees them: namespaces of the kernel with an address of their own each, and a cable between.

What runs in one has its own loopback and ports, and reaches the other over the cable alone, which can be pulled.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # several waits, each bounded, on a loaded machine
PATIENCE_S = 100.0
CABLE = "cable0"
HOSTS = ("10.85.7.1", "10.85.7.2")
GLOO = ("transport.tensors=gloo", "transport.trusted_peers=true", f"transport.interface={CABLE}")


class Hosts:
    """Two namespaces, by the addresses in `HOSTS`."""

    def __init__(self) -> None:
        self.names = [f"steelyard-{secrets.token_hex(3)}-{k}" for k in range(2)]
        self.certificates = Path()

    def start(self) -> None:
        for name in self.names:
            self.ip("netns", "add", name)
        self.ip("link", "add", CABLE, "netns", self.names[0], "type", "veth", "peer", CABLE, "netns", self.names[1])
        for name, address in zip(self.names, HOSTS, strict=True):
            self.ip("-n", name, "addr", "add", f"{address}/24", "dev", CABLE)
            for device in ("lo", CABLE):
                self.ip("-n", name, "link", "set", device, "up")

    def stop(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def on(self, host: int, *arguments: str) -> tuple[str, ...]:
        """Arguments for Python that have it be `python ARGUMENTS` on a host."""
        words = ["ip", "netns", "exec", self.names[host], sys.executable, *arguments]
        return ("-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *words)

    def plug(self, state: str) -> None:
        """Pull the cable ("down") or put it back ("up"); nobody is told, packets go nowhere."""
        self.ip("-n", self.names[1], "link", "set", CABLE, state)

    @staticmethod
    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts(shell: Any) -> Iterator[Hosts]:
    reason = "" if os.geteuid() == 0 and shutil.which("ip") else "namespaces need root and the program ip (iproute2)"
    if reason:
        assert "hosts" not in os.environ.get("STEELYARD_REQUIRE", ""), reason
        pytest.skip(reason)
    made = Hosts()
    try:
        made.start()
        made.certificates = shell.folder / "certificates"
        named = [word for host in HOSTS for word in ("--host", host)]
        assert shell.steelyard("certs", str(made.certificates), "--clients", "3", *named)[0] == 0
        yield made
    finally:
        shell.stop()
        made.stop()


def settings(hosts: Hosts, *more: str) -> list[str]:
    return [word for each in (f"transport.certificates={hosts.certificates}", *more) for word in ("--set", each)]


@pytest.mark.parametrize("plane", [(), GLOO], ids=["grpc", "gloo"])
def test_a_torchrun_job_over_two_hosts_has_the_scores_of_one(
    undisturbed: Any, shell: Any, hosts: Hosts, plane: tuple[str, ...]
) -> None:
    options = settings(hosts, "transport.address=rank0:0", *plane)
    torchrun = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d")
    meeting = ("--rdzv-id", "7", "--rdzv-endpoint", f"{HOSTS[0]}:29500")
    jobs = []
    for host, address in enumerate(HOSTS):
        ranks = ("-m", "deploy.torchrun", shell.experiment, "--out", str(shell.out), *options)
        here = ("--local-addr", address, "--rdzv-conf", f"is_host={int(host == 0)}")  # or it goes by the host's name
        jobs.append(shell.python(*hosts.on(host, *torchrun, *meeting, *here, *ranks)))
    ended = [shell.finish(job) for job in jobs]
    assert [code for code, _, _ in ended] == [0, 0], ended
    run = shell.the_run()
    for mine, other in ((run, undisturbed.run), (run / "honest", undisturbed.run / "honest")):
        assert shell.look(mine).scores == shell.look(other).scores
        assert shell.look(mine).models == shell.look(other).models
    assert "pthread_create" not in "".join(err for _, _, err in ended), "gRPC's threads live and end with a client"


@pytest.mark.parametrize("plane", [(), GLOO], ids=["grpc", "gloo"])
def test_a_pulled_cable_costs_time_and_no_score(
    undisturbed: Any, shell: Any, hosts: Hosts, plane: tuple[str, ...]
) -> None:
    roles, run = shell.folder / "roles", shell.folder / "run"
    prepared = settings(hosts, f"transport.address={HOSTS[0]}:0", "protocol.lease_s=3", "protocol.quorum=3", *plane)
    assert shell.steelyard("prepare", shell.experiment, "--out", str(roles), *prepared)[0] == 0
    look = shell.look(run)
    server = shell.python(*hosts.on(0, "-m", "server", str(roles / "server"), "--run", str(run)))
    address = shell.wait_until(lambda: look.events("server_started"), "the server")[0]["address"]
    assert address.startswith(f"{HOSTS[0]}:")
    clients = [
        shell.python(*hosts.on(1, "-m", "client", str(roles / f"client-{k}"), "--server", address)) for k in range(3)
    ]
    shell.wait_until(lambda: look.events("received", round=1), "an update of the first round")
    hosts.plug("down")
    shell.wait_until(lambda: {event["client"] for event in look.events("expired")} == {0, 1, 2}, "every lease's end")
    hosts.plug("up")
    assert [shell.finish(process)[0] for process in (server, *clients)] == [0, 0, 0, 0]
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models)
