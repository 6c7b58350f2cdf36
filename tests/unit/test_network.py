"""The [network] section: what it says of every client, what it changes, and one line for each mistake."""

from __future__ import annotations

import re
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from deploy.prepare import client_folder, link_folder, prepare, server_folder
from scripts.doctor import _address, _network, available_bytes
from steelyard.config import ClientHalf, Experiment, load_experiment, load_half
from steelyard.errors import UserError
from steelyard.links import PROFILES, Profile
from steelyard.network import Slowdown
from steelyard.parsing import parse

DATA = {"partition": "iid", "samples_per_client": 20, "validation": 20, "test": 20}


def experiment(**network: Any) -> Experiment:
    table = {"name": "x", "data": DATA, "clients": {"count": 4}, "network": network}
    return parse(Experiment, table, "x")


def test_every_client_has_the_default_line_or_its_own() -> None:
    network = experiment(
        profile="4g", up_mbit=5, clients=[{"client": 2, "profile": "satellite"}, {"client": 3, "latency_ms": 7}]
    ).network
    assert network.line_of(0) == Profile(latency_ms=26.5, jitter_ms=8, up_mbit=5, down_mbit=14.7)
    assert network.line_of(2) == PROFILES["satellite"]
    assert network.line_of(3) == Profile(latency_ms=7)
    assert network.linked(range(4)) == (0, 1, 2, 3)


def test_only_who_needs_a_link_has_one() -> None:
    faults = [
        {"client": 1, "round": 2, "kind": "reset"},
        {"client": 0, "round": 2, "kind": "slow_compute", "factor": 3},
    ]
    network = experiment(clients=[{"client": 3, "profile": "lan"}], faults=faults).network
    assert network.linked(range(4)) == (1, 3)
    assert experiment().network.linked(range(4)) == ()


def test_a_slow_processor_takes_factor_times_as_long_in_its_rounds() -> None:
    fault = {"client": 1, "round": 2, "rounds": 2, "kind": "slow_compute", "factor": 4.0}
    network = experiment(faults=[fault]).network
    assert network.slowdowns_of(0) == ()
    (slow,) = network.slowdowns_of(1)
    assert slow == Slowdown(first=2, last=3, factor=4.0)
    assert [slow.seconds(number, 0.5) for number in (1, 2, 3, 4)] == [0.0, 1.5, 1.5, 0.0]
    assert slow.seconds(2, 1e6) == 600.0, "however slow, bounded"


def test_the_hash_covers_the_section_only_where_it_is_used() -> None:
    plain = experiment()
    assert "network" in asdict(plain)
    table = {"name": "x", "data": DATA, "clients": {"count": 4}}
    assert plain.digest() == parse(Experiment, table, "x").digest()
    others = [experiment(profile="lan"), experiment(profile="4g"), experiment(latency_ms=3)]
    assert len({each.digest() for each in (plain, *others)}) == 4
    assert others[0].honest().network == others[0].network


def test_prepare_writes_a_link_for_who_needs_one_and_tells_nobody_else(tmp_path: Path) -> None:
    bare, shaped = tmp_path / "bare", tmp_path / "shaped"
    prepare(experiment(), bare)
    faults = [{"client": 1, "round": 2, "kind": "slow_compute", "factor": 2.0}]
    prepare(experiment(clients=[{"client": 3, "profile": "4g"}], faults=faults), shaped)
    assert [link_folder(shaped, k).exists() for k in range(4)] == [False, False, False, True]
    for client in (0, 2, 3):
        one, other = (client_folder(roles, client) / "half.json" for roles in (bare, shaped))
        assert one.read_bytes() == other.read_bytes()
    half: ClientHalf = load_half(ClientHalf, client_folder(shaped, 1) / "half.json")
    assert half.slowdowns == (Slowdown(first=2, last=2, factor=2.0),)
    assert "network" not in (server_folder(shaped) / "half.json").read_text()


FAULT = "[[network.faults]]\nclient = 1\nround = 2\n"
MISTAKES = [
    ("[network]\nprofile = '3g'", "network profile: one of 'none', 'lan', "),
    ("[network]\nlatency = 3", "network: unknown key 'latency'; did you mean 'latency_ms'?"),
    ("[network]\nup_mbit = -1", "network up_mbit: >= 0 expected, got -1"),
    ("[[network.clients]]\nprofile = 'lan'", "network clients[0]: key 'client' is missing; add it"),
    ("[[network.clients]]\nclient = 4", "[network] clients client: one of 0, 1, 2, 3, each once, expected, got 4"),
    (
        "[network]\nclients = [{client = 1}, {client = 1}]",
        "[network] clients client: one of 0, 1, 2, 3, each once, expected, got 1",
    ),
    (f"{FAULT}kind = 'explode'", "network faults[0] kind: one of 'crash', 'restart', 'pause', "),
    ("[[network.faults]]\nclient = 7\nround = 2\nkind = 'crash'", "[network] faults client: one of 0, 1, 2, 3 exp"),
    (f"{FAULT}kind = 'pause'", "[network] faults client 1 pause: key 'seconds' is missing; add it"),
    (f"{FAULT}kind = 'slow_compute'", "[network] faults client 1 slow_compute: key 'factor' is missing; add it"),
    (f"{FAULT}kind = 'reset'\nseconds = 3", "[network] faults client 1 reset seconds: no such key expected, only "),
    (f"{FAULT}kind = 'crash'\nrounds = 2", "[network] faults client 1 crash rounds: 1 expected, it can happen once"),
    (f"{FAULT}kind = 'reset'\nfraction = 1.0", "network faults[0] fraction: >= 0.05 and <= 0.95 expected, got 1.0"),
    (
        f"{FAULT}kind = 'reset'\nrounds = 3",
        "[network] faults client 1 reset round: rounds in which client 1 takes part expected, got 4",
    ),
    (
        f"{FAULT}kind = 'reset'\n{FAULT}kind = 'crash'",
        "[network] faults: one fault for a client in a round expected, client 1 has reset and crash in round 2",
    ),
    (
        "[network]\nprofile = 'lan'\n[transport]\ntensors = 'memory'",
        "[network]: a line or a fault needs transport.tensors = 'grpc', 'memory' passes a link by; ",
    ),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(f"name = 'x'\nrounds = 3\n[clients]\ncount = 4\n{text}\n")
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(f"{path} {line}")
    assert "\n" not in str(caught.value)


def test_the_doctor_says_whether_the_transfers_fit_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text("name = 'x'\n[network]\nprofile = 'dsl'\n[model]\nname = 'resnet18'\n")
    shaped = load_experiment(path)
    # 11.3 million floats: 45.2 MB, 361.6 Mbit at 1 Mbit/s up and 11.3 down
    with pytest.raises(UserError, match=r"more than the 394 s that at most 45\.2 MB down and up take"):
        _network(shaped)
    assert _network(load_experiment(path, ["protocol.round_deadline_s=400"])).startswith("10 links, at most 393.6 s")
    assert _network(experiment()).startswith("no links needed; netem is ")


def test_the_doctor_tries_no_address_that_torchrun_will_choose() -> None:
    table = {"name": "x", "transport": {"address": "rank0:0"}}
    assert _address(parse(Experiment, table, "x")).startswith("rank0 is the node that torchrun chooses")
    for address in ("rank7.invalid:0", "127.0.0.1:70000", "127.0.0.1", "[::2:0"):
        with pytest.raises(UserError, match=re.escape(f"{address} can't be bound: ")):
            _address(parse(Experiment, {**table, "transport": {"address": address}}, "x"))


def test_the_doctor_takes_what_the_server_takes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        experiment = parse(Experiment, {"name": "x", "transport": {"address": address}}, "x")
        with socket.create_connection(server.getsockname()) as client:
            server.accept()[0].close()  # first, so that the kernel keeps its end for a minute, as a run's server's
            assert not client.recv(1)
        with pytest.raises(UserError, match=r"can't be bound: .*in use"):
            _address(experiment)
    assert _address(experiment) == f"{address} is free"
    if socket.has_dualstack_ipv6():
        assert _address(parse(Experiment, {"name": "x", "transport": {"address": "[::1]:0"}}, "x")) == "[::1]:0 is free"


def test_the_file_cache_is_no_memory_that_processes_lack(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16384000 kB\nMemFree:          204800 kB\nMemAvailable:   12288000 kB\n")
    assert available_bytes(meminfo) == 12_288_000 * 1024
    assert available_bytes(tmp_path / "none") > 0
