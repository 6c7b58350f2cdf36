"""How published code evaluates coalitions, in a process of its own: what the engine is compared with.

It averages state dicts, copies the network, loads it and iterates over a DataLoader of 128. In its process memory is
allocated as the C library does by itself; ours keep what is freed (`steelyard.process`), which speeds this loop up too.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from steelyard.benchmarks.rounds import Case, TrainedRound, random_round
from steelyard.errors import RunFailedError
from steelyard.parsing import parse
from steelyard.process import run_main
from steelyard.scoring.coalitions import Masks
from steelyard.scoring.evaluation import Device


class PublishedLoop:
    """The loop's process, which has a case's random round. Close it."""

    def __init__(self, case: Case) -> None:
        command = [sys.executable, "-m", "steelyard.benchmarks.published", json.dumps(asdict(case))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def time(self, masks_Cn: Masks, threads: int) -> tuple[float, float]:
        """Evaluate coalitions on so many threads; returns wall and processor time in seconds.

        Raises:
            RunFailedError: the process ended; why stands on the standard error that it shares with this one.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([threads, np.asarray(masks_Cn, dtype=int).tolist()]).encode() + b"\n")
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise RunFailedError(f"the published loop's process ended, exit code {process.wait()}")
        wall, processor = json.loads(answer)
        return wall, processor

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def published(material: TrainedRound, masks_Cn: Masks, device: Device = "cpu") -> list[float]:
    """Accuracies of coalitions, the way that published code computes them: on a GPU, batches are moved one by one."""
    names = [(spec.name, spec.shape) for spec in material.model.layout.specs]
    states = [_named(state_D.to(device), names) for state_D in (material.global_D, *material.updates)]
    loader = DataLoader(TensorDataset(material.images, material.labels), batch_size=128)
    accuracies = []
    for mask in masks_Cn:
        members = np.flatnonzero(mask).tolist()
        total = sum(material.samples[k] for k in members)
        averaged = copy.deepcopy(states[0])
        for k in members:
            for name in averaged:
                averaged[name] += states[1 + k][name] * (material.samples[k] / total)
        network: nn.Module = copy.deepcopy(material.model.module).to(device)
        network.load_state_dict(averaged, strict=False)
        network.eval()
        correct, loss = 0, 0.0
        with torch.no_grad():
            for images, labels in ((x.to(device), y.to(device)) for x, y in loader):
                logits = network(images)
                loss += functional.cross_entropy(logits, labels, reduction="sum").item()
                correct += int((logits.argmax(1) == labels).sum().item())
        accuracies.append(correct / len(material.labels))
    return accuracies


def _named(state_D: torch.Tensor, names: list[tuple[str, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    parts = torch.split(state_D, [int(np.prod(shape)) for _, shape in names])
    return {name: part.reshape(shape).clone() for (name, shape), part in zip(names, parts, strict=True)}


def main() -> int:
    """Time what is asked for, line by line, until there is no more."""
    case = parse(Case, json.loads(sys.argv[1]), "a case")
    material = random_round(case)
    for line in sys.stdin:
        threads, masks = json.loads(line)
        torch.set_num_threads(threads)
        wall, processor = time.perf_counter(), time.process_time()
        published(material, np.array(masks, dtype=bool), case.device)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - processor]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
