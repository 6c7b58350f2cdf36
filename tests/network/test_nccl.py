"""The nccl plane and training on a GPU: untried where there is none, so each test says what it needs.

On a host with two GPUs: `python -m pytest -m gpu`.
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
[clients]
count = 3
"""


def run(folder: Path, out: str, *settings: str) -> str:
    """Run the small experiment; its scores, exact text."""
    path = folder / "gpu.toml"
    path.write_text(SMALL, encoding="utf-8")
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "scripts.main", "run", str(path), "--out", str(folder / out), *words]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = (folder / out).glob("gpu-*")
    scores = (made / "scores.csv").read_text(encoding="utf-8").splitlines()
    return "\n".join(",".join(row.split(",")[:4]) for row in scores)


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(GPUS < 2, reason=f"nccl pairs need two GPUs, torch sees {GPUS} here")
def test_nccl_gives_the_bits_of_grpc(tmp_path: Path) -> None:
    placement = ('placement.server="cuda:0"', 'placement.clients=["cuda:1"]')
    ours = run(tmp_path, "nccl", "transport.tensors=nccl", "transport.trusted_peers=true", *placement)
    theirs = run(tmp_path, "grpc", *placement)
    assert ours == theirs


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(GPUS < 1, reason=f"training on a GPU needs one, torch sees {GPUS} here")
def test_clients_that_share_a_gpu_train_to_the_same_bits_each_time(tmp_path: Path) -> None:
    first = run(tmp_path, "first", 'placement.clients=["cuda:0"]')
    assert run(tmp_path, "again", 'placement.clients=["cuda:0"]') == first
