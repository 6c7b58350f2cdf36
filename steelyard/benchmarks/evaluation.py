"""How fast coalitions are evaluated, and how far each path is from the plain one.

Contenders are timed in turns, so that a neighbour on the machine slows all of them; what counts is the ratio. It is one
of processor time where a contender is one thread of the CPU, since a neighbour takes little of that, and of wall time
otherwise; several processes are compared with the loop on one thread or on as many, whichever was faster. That loop is
how published code evaluates a coalition: average state dicts, copy the network, load, iterate over a DataLoader of 128.

Legend: E examples, D float values of a state, C coalitions, n clients.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from steelyard.benchmarks.rounds import TrainedRound
from steelyard.config import Shape
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.scoring.coalitions import Floats, Masks, all_masks
from steelyard.scoring.evaluation import Device
from steelyard.scoring.paths import PATHS
from steelyard.scoring.utility import Utility
from steelyard.seeding import torch_generator

PUBLISHED = "published loop"
_WORKERS = " x"  # in the name of a contender of several processes, or of the loop with as many threads


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is timed: a network, how many images [E] of which shape, how many coalitions a turn has, and on what."""

    model: str
    shape: Shape
    examples: int
    coalitions: int
    clients: int = 10
    device: Device = "cpu"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One contender's medians per coalition, and the median and extremes of how much faster than published it was.

    `seconds` is wall time; `processor_s` is processor time, None with several processes or threads or on a GPU, and
    decides the ratio where it is known. Several processes are compared with the faster of the published loop's two
    forms.
    """

    name: str
    seconds: float
    processor_s: float | None
    ratio: float
    ratios: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PathError:
    """The largest and the mean difference of a path's utilities from the plain path's, over all coalitions.

    That of the loss is relative where the loss is above 1, as `Bound` has it.
    """

    path: str
    accuracy: tuple[float, float]
    loss: tuple[float, float]


def random_round(case: Case) -> TrainedRound:
    """Random images, weights and updates: what evaluating them costs does not depend on what they are."""
    generator = torch_generator(0, "benchmark", case.model)
    model = FlatModel(case.model, case.shape)
    global_D = model.initial_state(generator)
    shape = case.shape
    return TrainedRound(
        model=model,
        images=torch.rand(case.examples, shape.channels, shape.height, shape.width, generator=generator),
        labels=torch.randint(0, shape.classes, (case.examples,), generator=generator),
        global_D=global_D,
        updates=tuple(0.01 * torch.randn(len(global_D), generator=generator) for _ in range(case.clients)),
        samples=tuple(range(100, 100 + case.clients)),
    )


def timings(
    case: Case, paths: Sequence[str], batches: tuple[int, ...], workers: int, repetitions: int
) -> Iterator[Timing]:
    """Time every path that fits, with each inner batch, and some with workers; in turns.

    Args:
        case: what to evaluate.
        paths: which paths, of those that there are.
        batches: inner batches to try.
        workers: how many processes the last contenders have; 1 leaves them out.
        repetitions: how often everybody has a turn; the first turn warms up and is not counted.
    """
    material = random_round(case)
    rng = np.random.default_rng(0)
    masks = rng.choice(all_masks(case.clients)[1:], case.coalitions, replace=False)
    with ExitStack() as stack:
        contenders: dict[str, Callable[[Masks], object]] = {
            PUBLISHED: lambda masks: published(material, masks, case.device)
        }
        if workers > 1 and case.device == "cpu":
            contenders[f"{PUBLISHED}{_WORKERS}{workers}"] = lambda masks: _on_threads(workers, material, masks)
        for name, path, batch, processes in _contenders(paths, batches, workers):
            try:
                utility = utility_of(material, path, batch, processes, case.device)
            except UserError:  # the path does not fit this network
                continue
            stack.enter_context(closing(utility))
            contenders[name] = _evaluator(utility, material)
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for turn in range(repetitions + 1):
            for name, contender in contenders.items():
                wall, processor = time.perf_counter(), time.process_time()
                contender(masks)
                taken = (time.perf_counter() - wall, time.process_time() - processor)
                if turn:
                    turns[name].append((taken[0] / len(masks), taken[1] / len(masks)))
    yield from _medians(turns, by_wall=case.device != "cpu")


def path_errors(material: TrainedRound, inner_batch: int, device: Device = "cpu") -> Iterator[PathError]:
    """Every path against the CPU's plain one on all coalitions of a round that was trained."""
    masks = all_masks(len(material.updates))
    plain = _utilities(utility_of(material, "plain", inner_batch, workers=1), material, masks)
    for path in PATHS:
        try:
            utility = utility_of(material, path, inner_batch, workers=1, device=device)
        except UserError:
            continue
        same = path == "plain" and device == "cpu"
        accuracy, loss = plain if same else _utilities(utility, material, masks)
        off_accuracy = abs(accuracy - plain[0])
        off_loss = abs(loss - plain[1]) / np.maximum(1.0, abs(plain[1]))
        yield PathError(
            path=path,
            accuracy=(float(off_accuracy.max()), float(off_accuracy.mean())),
            loss=(float(off_loss.max()), float(off_loss.mean())),
        )


def _utilities(utility: Utility, material: TrainedRound, masks_Cn: Masks) -> tuple[Floats, Floats]:
    """Accuracies and negated losses of coalitions."""
    game = utility.round(material.global_D, material.updates, material.samples)
    return game.view("accuracy").values(masks_Cn), game.view("loss").values(masks_Cn)


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


def utility_of(material: TrainedRound, path: str, inner_batch: int, workers: int, device: Device = "cpu") -> Utility:
    """The engine on a round's validation data."""
    images, labels = material.images, material.labels
    return Utility(material.model, images, labels, inner_batch=inner_batch, path=path, workers=workers, device=device)


def _contenders(paths: Sequence[str], batches: tuple[int, ...], workers: int) -> Iterator[tuple[str, str, int, int]]:
    """Name, path, inner batch and processes of each contender."""
    for path in paths:
        for batch in batches:
            yield f"{path}, {batch}", path, batch, 1
    if workers > 1:
        for path in (path for path in paths if path not in {"plain", "folded"}):
            yield f"{path}{_WORKERS}{workers}, {batches[0]}", path, batches[0], workers


def _on_threads(threads: int, material: TrainedRound, masks_Cn: Masks) -> list[float]:
    """The published loop on several threads, which is what it does with several cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return published(material, masks_Cn)
    finally:
        torch.set_num_threads(before)


def _evaluator(utility: Utility, material: TrainedRound) -> Callable[[Masks], object]:
    """Evaluates coalitions anew each time: a game of its own has no outcome yet."""
    return lambda masks: (
        utility.round(material.global_D, material.updates, material.samples).view("accuracy").values(masks)
    )


def _medians(turns: Mapping[str, list[tuple[float, float]]], *, by_wall: bool) -> Iterator[Timing]:
    for name, taken in turns.items():
        clock = 0 if by_wall or _WORKERS in name else 1
        loops = (
            [turns[PUBLISHED]] if clock else [theirs for loop, theirs in turns.items() if loop.startswith(PUBLISHED)]
        )
        best = [min(theirs[clock] for theirs in turn) for turn in zip(*loops, strict=True)]
        ratios = [theirs / ours[clock] for theirs, ours in zip(best, taken, strict=True)]
        yield Timing(
            name=name,
            seconds=statistics.median(wall for wall, _ in taken),
            processor_s=statistics.median(processor for _, processor in taken) if clock else None,
            ratio=statistics.median(ratios),
            ratios=(min(ratios), max(ratios)),
        )


def _named(state_D: torch.Tensor, names: list[tuple[str, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    parts = torch.split(state_D, [int(np.prod(shape)) for _, shape in names])
    return {name: part.reshape(shape).clone() for (name, shape), part in zip(names, parts, strict=True)}
