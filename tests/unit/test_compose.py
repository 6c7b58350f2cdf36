"""The compose file as a text, what containers mount, and what goes into their images: all without an engine."""

from __future__ import annotations

import argparse
import ast
import ipaddress
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.containers.boxes import close_boxes, open_boxes, prepare_boxed
from deploy.containers.compose import Box, compose_text
from deploy.containers.healthcheck import is_healthy
from deploy.containers.images import REQUIREMENTS
from scripts.compose import add_box_arguments, box_words
from steelyard.config import Experiment, load_experiment
from steelyard.errors import UserError
from steelyard.parsing import parse

ROOT = Path(__file__).parents[2]
HEADER = "  sl  local_address rem_address   st\n"
LISTENER = HEADER + "   0: 00000000:1CE8 00000000:0000 0A 00000000:00000000\n"  # 0x1CE8 = 7400
CONNECTION = HEADER + "   0: 0300530A:9C40 0200530A:1CE8 01 00000000:00000000\n"


def services(text: str) -> dict[str, str]:
    """The blocks of services and networks by name; each begins with its name, two spaces deep."""
    blocks = re.split(r"^  (?=[a-z]+(?:-\d+)?:$)", text.split("services:\n", 1)[1], flags=re.MULTILINE)
    return {block.partition(":")[0]: block for block in blocks[1:]}


def networks_of(block: str) -> dict[str, str]:
    """The networks of one service, with its address on each."""
    return dict(re.findall(r"^      ((?:near|far)-\d+): \{ipv4_address: ([\d.]+)\}$", block, flags=re.MULTILINE))


def subnets(text: str) -> dict[str, ipaddress.IPv4Network]:
    found = re.findall(r"^  ((?:near|far)-\d+):\n(?:    .*\n)*?    ipam: \{config: \[\{subnet: (.*?)\}\]\}", text, re.M)
    return {name: ipaddress.IPv4Network(subnet) for name, subnet in found}


def test_the_committed_file_is_the_quickstarts() -> None:
    clients = load_experiment(ROOT / "experiments" / "quickstart.toml").clients.present
    committed = (ROOT / "deploy" / "containers" / "compose.yaml").read_text(encoding="utf-8")
    assert committed == compose_text(clients, Box()), "steelyard compose experiments/quickstart.toml makes it anew"


def test_a_client_shares_a_network_with_its_link_alone() -> None:
    blocks = services(compose_text((0, 2, 5), Box()))
    assert set(blocks) >= {"server", "link-0", "link-2", "link-5", "client-0", "client-2", "client-5"}
    assert set(networks_of(blocks["server"])) == {"far-0", "far-2", "far-5"}
    for client in (0, 2, 5):
        assert set(networks_of(blocks[f"client-{client}"])) == {f"near-{client}"}
        assert set(networks_of(blocks[f"link-{client}"])) == {f"near-{client}", f"far-{client}"}
        link = networks_of(blocks[f"link-{client}"])[f"near-{client}"]
        assert f'extra_hosts: ["server:{link}"]' in blocks[f"client-{client}"]


def test_subnets_do_not_overlap_and_hold_their_addresses() -> None:
    text = compose_text(range(6), Box(subnets="10.90.0.0/24"), taken=(ipaddress.IPv4Network("10.90.0.8/30"),))
    found = subnets(text)
    assert len(found) == 12
    assert ipaddress.IPv4Network("10.90.0.8/29") not in found.values(), "taken in part already"
    nets = list(found.values())
    assert not any(a.overlaps(b) for at, a in enumerate(nets) for b in nets[at + 1 :])
    addresses = [
        (ipaddress.IPv4Address(address), found[name])
        for service in services(text).values()
        for name, address in networks_of(service).items()
    ]
    assert len({address for address, _ in addresses}) == len(addresses) == 24
    assert all(address in net for address, net in addresses)


@pytest.mark.parametrize(
    ("subnets", "word"),
    [("10.0.0.0/28", "has 2"), ("8.8.8.0/24", "private"), ("10.0.0.1/16", "IPv4 range"), ("10.0.0.0/30", "at least 8")],
)
def test_a_range_that_can_not_be_used_is_the_users_mistake(subnets: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        compose_text((0, 1), Box(subnets=subnets))


def test_every_service_has_every_wall() -> None:
    text = compose_text((0, 1), Box())
    walls = text.partition("services:")[0]
    for wall in ("read_only: true", 'cap_drop: ["ALL"]', "no-new-privileges", 'user: "${STEELYARD_USER:-10001:10001}"'):
        assert wall in walls
    for name, block in services(text).items():
        if name.startswith(("near", "far")):
            assert "internal: true" in block
        else:
            assert "<<: *walls" in block
            assert "mem_limit" in block
            assert "pids_limit" in block
            assert "privileged:" not in block
    assert text.count("target: /role/state}") == 2, "a client writes its state, nothing else"
    assert len(re.findall(r"target: /[a-z/]+\}", text)) == 2 + 1 + 2, "and the server its part, a link its socket"


def test_the_gpu_variant_reserves_devices_for_whoever_computes() -> None:
    blocks = services(compose_text((0,), Box(gpu=True)))
    reserved = {name for name, block in blocks.items() if "capabilities: [gpu]" in block}
    assert reserved == {"server", "client-0"}


def test_boxes_open_onto_the_servers_part_and_close_to_the_usual_places(tmp_path: Path) -> None:
    experiment = parse(Experiment, {"name": "boxed", "clients": {"count": 2}}, "test")
    roles, run = tmp_path / "roles", tmp_path
    prepare_boxed(experiment, roles)
    assert list(tmp_path.rglob("ca-key.pem")) == [], "nobody can make another certificate"
    open_boxes(roles, run, (0, 1))
    (run / "served" / "events.jsonl").write_text("one\n", encoding="utf-8")
    assert (run / "events.jsonl").read_text(encoding="utf-8") == "one\n", "whoever follows the run sees it grow"
    assert (roles / "client-1" / "state").is_dir()
    assert stat.S_IMODE((roles / "client-1").stat().st_mode) == 0o700
    close_boxes(run)
    assert not (run / "served").exists()
    assert not (run / "events.jsonl").is_symlink()
    open_boxes(roles, run, (0, 1))  # the run goes on
    with (run / "served" / "events.jsonl").open("a", encoding="utf-8") as events:
        events.write("two\n")
    close_boxes(run)
    assert (run / "events.jsonl").read_text(encoding="utf-8") == "one\ntwo\n"
    assert [path.name for path in run.glob("*.csv")] == [], "links to nothing are gone"


def test_tensors_that_pass_a_link_by_are_refused(tmp_path: Path) -> None:
    experiment = parse(Experiment, {"name": "boxed", "transport": {"tensors": "memory"}}, "test")
    with pytest.raises(UserError, match=r"transport\.tensors = 'grpc'"):
        prepare_boxed(experiment, tmp_path / "roles")


@pytest.mark.parametrize(
    ("what", "table", "port", "healthy"),
    [
        ("listens", LISTENER, 7400, True),
        ("listens", LISTENER, 7401, False),
        ("listens", CONNECTION, 7400, False),
        ("connected", CONNECTION, 7400, True),
        ("connected", CONNECTION, 40000, False),
        ("connected", LISTENER, 7400, False),
        ("listens", HEADER, 7400, False),
    ],
)
def test_health_is_read_from_the_kernels_table(what: str, table: str, port: int, *, healthy: bool) -> None:
    assert is_healthy(what, port, [HEADER, table]) is healthy


def test_the_links_image_has_what_the_link_imports() -> None:
    """Follow the imports of deploy/link/; all of ours are copied, and nothing beside Python's own is needed."""
    dockerfile = (ROOT / "deploy" / "containers" / "Dockerfile").read_text(encoding="utf-8")
    stage = dockerfile.split(" AS link\n")[1].split("\nFROM ")[0]
    copied = {
        str(path.relative_to(ROOT))
        for line in re.findall(r"^COPY ((?:.|\\\n)*?) /app/", stage, re.MULTILINE)
        for pattern in line.replace("\\\n", " ").split()
        for path in ROOT.glob(pattern)
    }
    todo, seen = ["deploy/link/__main__.py"], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for node in ast.parse((ROOT / name).read_text(encoding="utf-8")).body:  # what is imported at the top
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            path = f"{node.module.replace('.', '/')}.py"
            if node.module.split(".")[0] in ("deploy", "steelyard") and path not in seen:
                todo.append(path)
    assert seen <= copied
    assert {path for path in copied if path.startswith("steelyard/")} <= seen | {"steelyard/__init__.py"}, "no more"


def test_images_install_only_what_the_project_depends_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=]", each)[0] for each in project["dependencies"]}
    lines = (ROOT / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} <= names


def test_a_missing_engine_is_the_users_mistake(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.main", "run", "experiments/quickstart.toml", "--launcher", "compose"],
        cwd=ROOT,
        env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("steelyard: a container engine expected, none answers")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words", ["", " --gpu", " --memory 512", " --subnets 10.9.0.0/16", " --subnets 10.9.0.0/16 --memory 512 --gpu"]
)
def test_what_containers_may_have_is_said_again_where_a_run_is_to_go_on(words: str) -> None:
    parser = argparse.ArgumentParser()
    add_box_arguments(parser)
    assert box_words(parser.parse_args(words.split())) == words


def test_the_guard_lets_no_launcher_go_on_while_it_removes_containers(tmp_path: Path) -> None:
    """Or what it removes would be those of the launcher that goes on."""
    lock = tmp_path / ".lock"
    taking = ["flock", "--nonblock", "--conflict-exit-code", "7", str(lock), "true"]
    guard = [sys.executable, "-m", "deploy.containers.guard", str(lock), *taking]
    assert subprocess.run(guard, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode == 7
    assert subprocess.run(taking, check=False).returncode == 0, "it lets go when it is done"
