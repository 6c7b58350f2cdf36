"""One scoring worker, `python -m steelyard.scoring.worker FOLDER SETUP`: started, asked and ended by `pool`.

Requests come as lines of JSON on stdin, a round's files or coalitions by key; an outcome goes out on stdout as E bytes
(right or not) and E float32 (cross-entropies). It ends when stdin does, that is with the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import BinaryIO

import torch

from steelyard.aggregation.fedavg import fedavg
from steelyard.aggregation.round import JoinedRound, unpacked
from steelyard.bundle import BundleFile, read_arrays
from steelyard.models import FlatModel
from steelyard.parsing import parse
from steelyard.process import run_main, settle_down
from steelyard.recording import read_vector
from steelyard.scoring.evaluation import Evaluation, Setup, on_device


def work(folder: Path, setup: Setup, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    data = read_arrays(folder / "data.safetensors")
    evaluation = Evaluation(
        on_device(FlatModel(setup.model, setup.shape), setup.device, setup.worker),
        torch.from_numpy(data["images"].copy()),
        torch.from_numpy(data["labels"].copy()),
        inner_batch=setup.inner_batch,
        path=setup.path,
    )
    states: list[torch.Tensor] = []
    samples: list[int] = []
    joined: JoinedRound | None = None
    for line in requests:
        request = json.loads(line)
        if "round" in request:
            states = [torch.from_numpy(read_vector(Path(file), private=True)) for file in request["round"]]
            samples, joined = request["samples"], None
            if "defence" in request:
                words, file = request["defence"]
                arrays = BundleFile.open(Path(file), private=True).arrays()
                joined = unpacked(words, arrays, states[0], states[1:], samples)
            else:
                states = [state_D.to(evaluation.device) for state_D in states]
        for key in request.get("keys", ()):
            members = [k for k, member in enumerate(bytes.fromhex(key)) if member]
            if joined is not None:
                state_D = joined.model(members)
            else:
                state_D = fedavg(states[0], [states[1 + k] for k in members], [samples[k] for k in members])
            outcome = evaluation.outcome(state_D)
            answers.write(outcome.example_correct.tobytes() + outcome.example_loss.tobytes())
            answers.flush()


def main() -> int:
    """Read the command line and work."""
    settle_down()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get among the answers
    setup = parse(Setup, json.loads(sys.argv[2]), "a worker's setup")
    work(Path(sys.argv[1]), setup, sys.stdin.buffer, answers)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
