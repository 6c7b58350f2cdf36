"""Which process computes where: what a placement may say, and what of it decides results."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.environment import process_environment
from deploy.prepare import client_half, server_half
from scripts.doctor import _tensors
from steelyard.config import Experiment, Shape, load_experiment, make_experiment
from steelyard.devices import use_device
from steelyard.errors import UserError

ROOT = Path(__file__).parents[2]
SHAPE = Shape(channels=1, height=8, width=8, classes=10)
NCCL = {"tensors": "nccl", "trusted_peers": True}


def make(**tables: Any) -> Any:
    return make_experiment({"name": "x", "clients": {"count": 3}, **tables}, "test")


def test_clients_share_the_devices_in_turn_and_each_half_names_its_own() -> None:
    experiment = make(placement={"server": "cuda:2", "clients": ["cuda:0", "cuda:1"]})
    assert [client_half(experiment, SHAPE, k).device for k in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert server_half(experiment, SHAPE, ()).device == "cuda:2"
    assert client_half(make(), SHAPE, 0).device == server_half(make(), SHAPE, ()).device == "cpu"


def test_the_kind_of_device_is_hashed_and_nothing_else() -> None:
    plain = make().digest()
    assert make(placement={"clients": ["cpu", "cpu"], "server": "cuda:0"}).digest() == plain
    one, other = (make(placement={"clients": [device]}).digest() for device in ("cuda:0", "cuda:1"))
    assert one == other != plain
    assert make(placement={"clients": ["cuda:0", "cpu"]}).digest() not in (one, plain)
    assert make(transport={"tensors": "gloo", "trusted_peers": True}).digest() == plain


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"placement": {"clients": ["gpu"]}}, r"\[placement\]: devices 'cpu' or 'cuda:<i>' expected, got 'gpu'"),
        ({"placement": {"clients": []}}, r"\[placement\] clients: at least one device expected"),
        ({"transport": NCCL}, "a GPU for the server expected with tensors = 'nccl', got 'cpu'; or use gloo"),
        (
            {"transport": NCCL, "placement": {"server": "cuda:0", "clients": ["cuda:1", "cuda:0"]}},
            "nccl pairs need two distinct GPUs, the server and client 1 are both on cuda:0; name other devices",
        ),
        ({"transport": {"timeout_s": 3600.5}}, r"timeout_s: at most 3600 expected, got 3600\.5"),
        ({"transport": {"tensors": "gloo"}}, r"tensors = 'gloo': trusted_peers = true expected beside it: a peer that"),
        (
            {"transport": {"tensors": "gloo", "trusted_peers": True, "interface": "0.0.0.0"}},  # noqa: S104 - refused
            "interface: the name of one network interface or one address of this host expected, got '0.0.0.0'",
        ),
    ],
)
def test_what_can_not_be_is_told_before_anything_starts(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(**tables)


def test_clients_may_share_a_gpu_that_is_not_the_servers() -> None:
    make(transport=NCCL, placement={"server": "cuda:0", "clients": ["cuda:1"]})


def test_a_device_that_is_not_there_is_the_users_mistake() -> None:
    assert use_device("cpu", "[placement] clients") == "cpu"
    with pytest.raises(UserError, match=r"\[placement\] clients = 'cuda:999': a CUDA device expected, torch sees"):
        use_device("cuda:999", "[placement] clients")


def test_every_process_is_told_how_cublas_may_work() -> None:
    assert process_environment()["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_doctor_asks_a_process_what_this_host_has() -> None:
    """Each a process of its own that loads torch, so side by side."""
    asked = {
        "gloo is there, 127.0.0.1 is an interface or address of this host; each process listens": with_gloo(),
        r"missing: \[transport\] interface: one of .*lo.* expected, got 'no0'": with_gloo("transport.interface=no0"),
        "missing: .*device = 'cuda:999': a CUDA device expected, torch sees": with_gloo("placement.server=cuda:999"),
    }
    if not torch.cuda.is_available():
        words = "missing: .*device = 'cuda': a CUDA device expected, torch sees 0 here"
        asked[words] = make(scoring={"device": "cuda"})
    with ThreadPoolExecutor(len(asked)) as pool:
        for words, said in zip(asked, pool.map(doctors_words, asked.values()), strict=True):
            assert re.match(words, said), said


def doctors_words(experiment: Experiment) -> str:
    try:
        return _tensors(experiment)
    except UserError as error:
        return f"missing: {error}"


def with_gloo(*settings: str) -> Experiment:
    overrides = ("transport.tensors=gloo", "transport.trusted_peers=true", *settings)
    return load_experiment(ROOT / "experiments" / "quickstart.toml", overrides)
