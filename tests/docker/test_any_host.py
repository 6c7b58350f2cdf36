"""Role folders on hosts of their own: local processes, one attacker in a container, mutual TLS between."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.containers.boxes import user_of_boxes
from deploy.containers.images import image_name
from deploy.environment import OTHERS, THREADS, process_environment
from deploy.prepare import prepare
from steelyard.certificates import write_certificates

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(500)]
NETWORK = "steelyard-test-any-host"


@pytest.fixture
def gateway(engine: Any) -> Iterator[str]:
    """This host's address on a network of ours that leads nowhere else; containers on it have distinct ones."""
    taken = engine.subnets()
    free = next(
        net for net in ipaddress.IPv4Network("10.84.0.0/16").subnets(new_prefix=28) if not any(map(net.overlaps, taken))
    )
    pool = {"Subnet": str(free), "Gateway": str(free[1])}
    network = engine.client.networks.create(NETWORK, internal=True, ipam={"Config": [pool]})
    yield str(free[1])
    network.remove()


def test_local_processes_and_one_attacker_in_a_container(
    engine: Any,
    tag: str,
    gateway: str,
    tmp_path: Path,
    make_small: Callable[..., Any],
    numbers_of: Callable[[Path], Any],
    undisturbed: Any,
) -> None:
    certificates, roles, run = tmp_path / "certificates", tmp_path / "roles", tmp_path / "run"
    write_certificates(certificates, 3, [gateway])
    transport = {"address": f"{gateway}:0", "certificates": str(certificates)}
    prepare(make_small(transport=transport), roles)
    with contextlib.ExitStack() as stack:
        server = _start(stack, "server", str(roles / "server"), "--run", str(run))
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("listening on ").strip()
        assert address.startswith(f"{gateway}:"), "not on loopback"
        local = [_start(stack, "client", str(roles / f"client-{k}"), "--server", address) for k in (1, 2)]
        box = _start_attacker(engine, tag, roles / "client-0", address, tmp_path / "elsewhere")
        stack.callback(box.remove, force=True)
        assert box.wait(timeout=200)["StatusCode"] == 0, box.logs().decode()
        assert [process.wait(100) for process in (server, *local)] == [0, 0, 0]
        assert "joined" in box.logs().decode()
    assert numbers_of(run) == undisturbed


def _start(stack: contextlib.ExitStack, module: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], env=process_environment(), stdout=subprocess.PIPE, text=True
    )
    stack.callback(process.communicate)
    stack.callback(process.kill)
    return process


def _start_attacker(engine: Any, tag: str, folder: Path, address: str, place: Path) -> Any:
    """The attacker's folder carried elsewhere, and a container that has nothing but it."""
    shutil.copytree(folder, place)
    user = user_of_boxes()
    for path in (place, *place.rglob("*")):
        shutil.chown(path, *(int(number) for number in user.split(":")))
    return engine.client.containers.run(
        image_name("client", tag),
        ["/role", "--server", address],
        detach=True,
        network=NETWORK,
        user=user,
        read_only=True,
        tmpfs={"/tmp": "size=64m"},  # noqa: S108 - the container's own
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        environment={**THREADS, **OTHERS},
        volumes={str(place): {"bind": "/role", "mode": "rw"}},
    )
