"""The attacker in its box: what it can read, whom it can reach, what it may do; found by trying, from inside.

One run stands still in its first round while the tests try. Each wall is also tried where there is none, so that a test
that can't see anything is not taken for a wall.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(500)]

TRY_TO_CONNECT = """
import json, socket
from concurrent.futures import ThreadPoolExecutor
def attempt(place):
    with socket.socket() as s:
        s.settimeout(3)
        try:
            s.connect(tuple(place))
        except OSError as error:
            return type(error).__name__
        return "connected"
places = json.loads(%r)
with ThreadPoolExecutor(len(places)) as pool:
    print(json.dumps({f"{p[0]}:{p[1]}": what for p, what in zip(places, pool.map(attempt, places))}))
"""
LOOK_AROUND = """
import json, os
print(json.dumps([os.path.join(folder, name) for top in ("/role", "/served", "/run", "/app", "/tmp", "/home", "/mnt",
    "/srv", "/root", "/var", "/etc", "/opt/venv/bin") for folder, _, names in os.walk(top) for name in names]))
"""
TRY_TO_WRITE = """
import json
found = {}
for path in ("/role/half.json", "/role/new", "/role/state/new", "/app/client/new", "/etc/hosts", "/tmp/new", "/new"):
    try:
        open(path, "a").close()
        found[path] = "written"
    except OSError as error:
        found[path] = type(error).__name__
print(json.dumps(found))
"""
WHAT_MAY_I = """
import json, os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
raw = "made"
try:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
except OSError as error:
    raw = type(error).__name__
processes = [open(f"/proc/{pid}/cmdline").read().split("\\0")[:4] for pid in os.listdir("/proc") if pid.isdigit()]
print(json.dumps({
    "uid": os.getuid(), "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": int(status["NoNewPrivs"]), "raw": raw, "processes": processes,
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "devices": [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "mem", "kmem", "loop"))],
}))
"""


@pytest.fixture(scope="module")
def scene(open_scene_for_module: Callable[..., Any]) -> Any:
    """A run whose first round waits for client 1, which is frozen."""
    made = open_scene_for_module(protocol={"round_deadline_s": 600.0, "lease_s": 600.0})
    made.up("server", *(f"link-{client}" for client in range(3)))
    made.hold_upload(1)
    made.up()
    made.await_held(1)
    return made


def connect_from(scene: Any, service: str, places: list[tuple[str, int]]) -> dict[str, str]:
    return dict(json.loads(scene.exec(service, TRY_TO_CONNECT % json.dumps(places))))


@contextmanager
def host_listener() -> Iterator[int]:
    """A port that this host listens on, at every address."""
    with closing(socket.create_server(("0.0.0.0", 0))) as listener:  # noqa: S104 - to see who reaches it
        yield listener.getsockname()[1]


def host_address() -> str:
    """An address of this host beyond loopback; connecting a datagram socket sends nothing."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def test_it_reaches_its_link_and_nobody_else(scene: Any) -> None:
    project = scene.project
    link = project.address("link-0", "near-0")
    others = [(project.address(f"client-{k}", f"near-{k}"), 7400) for k in (1, 2)]
    others += [(project.address(f"link-{k}", f"near-{k}"), 7400) for k in (1, 2)]
    others += [(project.address(f"link-{k}", f"far-{k}"), 7400) for k in (0, 1, 2)]
    server = [(project.address("server", f"far-{k}"), 7400) for k in (0, 1, 2)]
    outside = [("192.0.2.1", 80), ("1.1.1.1", 53), ("8.8.8.8", 443), ("169.254.169.254", 80)]
    gateway = f"{link.rpartition('.')[0]}.{int(link.rpartition('.')[2]) - 1}"
    with host_listener() as port:
        host = [(gateway, port), (host_address(), port), ("172.17.0.1", port), ("172.17.0.1", 2375)]
        found = connect_from(scene, "client-0", [(link, 7400), *others, *server, *outside, *host])
    assert [place for place, what in found.items() if what == "connected"] == [f"{link}:7400"]
    seen = list(connect_from(scene, "link-0", [server[0], server[1], others[0]]).values())
    assert seen[0] == "connected", "the server does listen there, and its link reaches it"
    assert "connected" not in seen[1:], "at its own network's address alone, and no other client"


def test_no_name_leads_out(scene: Any) -> None:
    code = """
import socket
for name in ("example.org", "client-1"):
    try:
        print(name, socket.getaddrinfo(name, 80))
    except OSError as error:
        print(type(error).__name__)
print(socket.gethostbyname("server"))
"""
    *strange, server = scene.exec("client-0", code).split()
    assert set(strange) == {"gaierror"}
    assert server == scene.project.address("link-0", "near-0")


def test_it_sees_its_own_folder_and_code_alone(scene: Any) -> None:
    found = json.loads(scene.exec("client-0", LOOK_AROUND))
    of_roles = {path for path in found if path.startswith(("/role", "/served", "/run/", "/home", "/srv", "/mnt"))}
    certificates = {f"/role/certificates/{name}" for name in ("ca.pem", "cert.pem", "key.pem")}
    assert {path for path in of_roles if not path.startswith("/role/state/")} == {
        "/role/half.json",
        "/role/data.safetensors",
        *certificates,
    }
    assert [path for path in found if path.endswith(".safetensors")] == ["/role/data.safetensors"]
    packages = {path.split("/")[2] for path in found if path.startswith("/app/")}
    assert packages == {"client", "steelyard", "protos", "healthcheck.py", "__pycache__"}
    assert "steelyard://client/0" not in scene.exec("client-0", "print(open('/role/half.json').read())")


def test_the_server_sees_its_own_part_of_the_run_alone(scene: Any) -> None:
    found = json.loads(scene.exec("server", LOOK_AROUND))
    served = {path.split("/")[2] for path in found if path.startswith("/served/")}
    assert served <= {"events.jsonl", "scores.csv", "metrics.csv", "recordings"}
    assert "events.jsonl" in served
    assert not [path for path in found if path.endswith(("manifest.json", "compose.yaml")) or "client-0/" in path]
    assert {path.split("/")[2] for path in found if path.startswith("/app/")} == {
        "server",
        "steelyard",
        "protos",
        "healthcheck.py",
        "__pycache__",
    }


def test_it_writes_its_state_and_nothing_else(scene: Any) -> None:
    found = json.loads(scene.exec("client-0", TRY_TO_WRITE))
    assert {path for path, what in found.items() if what == "written"} == {"/role/state/new", "/tmp/new"}  # noqa: S108 - in the box


@pytest.mark.parametrize("service", ["client-0", "server", "link-0"])
def test_it_has_no_rights(scene: Any, service: str) -> None:
    found = json.loads(scene.exec(service, WHAT_MAY_I))
    assert found["uid"] != 0
    assert found["capabilities"] == 0
    assert found["no_new_privileges"] == 1
    assert found["raw"] == "PermissionError"
    assert found["devices"] == []
    own = [words for words in found["processes"] if words[1:2] == ["-m"]]
    assert len(own) == 1, "it sees its own process and no other role's"
    interfaces = {"client-0": 1, "link-0": 2, "server": 3}
    assert len([name for name in found["interfaces"] if name.startswith("eth")]) == interfaces[service]


def test_its_memory_and_processes_have_bounds(scene: Any) -> None:
    code = """
import subprocess, sys
started = []
try:
    for _ in range(400):
        started.append(subprocess.Popen(["sleep", "30"]))
except OSError as error:
    print(type(error).__name__)
finally:
    for each in started:
        each.kill()
    for each in started:
        each.wait()
"""
    assert scene.exec("client-0", code).split() == ["BlockingIOError"]
    limit = scene.project.container("client-0").attrs["HostConfig"]["Memory"]
    assert limit == 4096 * 2**20
    assert scene.project.exit_code("client-0") is None, "and its own process lives on"


def test_a_healthy_container_says_so(scene: Any) -> None:
    check = (
        "import subprocess, sys\n"
        "print(subprocess.run([sys.executable, '/app/healthcheck.py', {!r}, '7400']).returncode)"
    )
    assert scene.exec("client-0", check.format("connected")).strip() == "0"
    assert scene.exec("server", check.format("listens")).strip() == "0"
    assert scene.exec("link-0", check.format("listens")).strip() == "0"
    assert scene.exec("server", check.format("connected")).strip() == "1"
