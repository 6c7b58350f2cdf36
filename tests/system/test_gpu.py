"""Whole runs on GPUs, each with its honest twin, and the nccl plane: skipped where there are too few, and why.

`python -m pytest -m gpu` runs these and the other tests that need a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
SMALL = """
name = "gpu"
rounds = 2
[data]
samples_per_client = 40
validation = 30
test = 40
public = 40
[clients]
count = 3
[attack]
name = "latent"
clients = [0]
knowledge = "public"
decoder_source = "public"
reference = "public"
align = "update"
samples = 8
steps = 3
decoder = { steps = 50 }
[[evaluators]]
name = "fedsv_accuracy"
kind = "fedsv"
utility = "accuracy"
[[evaluators]]
name = "dig_fl"
kind = "dig_fl"
utility = "loss"
"""
COMPUTING = ('placement.clients=["cuda:0"]', "scoring.device=cuda")


def steelyard(*words: str | Path) -> str:
    command = [sys.executable, "-m", "scripts.main", *map(str, words)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(folder: Path, out: str, *settings: str) -> Path:
    """Run the small experiment; its folder."""
    path = folder / "gpu.toml"
    path.write_text(SMALL, encoding="utf-8")
    steelyard("run", path, "--out", folder / out, *(word for setting in settings for word in ("--set", setting)))
    (made,) = (folder / out).glob("gpu-*")
    return made


def scores(run: Path) -> str:
    """The run's scores, exact text."""
    rows = (run / "scores.csv").read_text(encoding="utf-8").splitlines()
    return "\n".join(",".join(row.split(",")[:4]) for row in rows)


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(GPUS < 2, reason=f"nccl pairs need two GPUs, torch sees {GPUS} here")
def test_nccl_gives_the_bits_of_grpc(tmp_path: Path) -> None:
    placement = ('placement.server="cuda:0"', 'placement.clients=["cuda:1"]')
    ours = run(tmp_path, "nccl", "transport.tensors=nccl", "transport.trusted_peers=true", *placement)
    assert scores(ours) == scores(run(tmp_path, "grpc", *placement))


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(GPUS < 1, reason=f"computing on a GPU needs one, torch sees {GPUS} here")
def test_an_attacked_run_on_a_gpu_gives_the_same_bits_again_by_gloo_with_workers_and_in_replay(tmp_path: Path) -> None:
    first = run(tmp_path, "first", *COMPUTING)
    steelyard("replay", first)  # which fails unless all is bit-equal
    assert scores(run(tmp_path, "again", *COMPUTING, "scoring.workers=2")) == scores(first)
    by_gloo = ("transport.tensors=gloo", "transport.trusted_peers=true")
    assert scores(run(tmp_path, "gloo", *COMPUTING, *by_gloo)) == scores(first)
    cpu = run(tmp_path, "cpu")
    assert scores(cpu) != scores(first), "another kind of device, other bits"
    for ours, theirs in zip(scores(first).splitlines()[1:], scores(cpu).splitlines()[1:], strict=True):
        assert float(ours.split(",")[3]) == pytest.approx(float(theirs.split(",")[3]), abs=0.2)
