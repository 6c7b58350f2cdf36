"""How fast coalitions are evaluated, and how far each path is from the plain one.

Contenders are timed in turns, so that a neighbour on the machine slows all of them; what counts is the ratio. It is one
of processor time where a contender is one thread of the CPU, since a neighbour takes little of that, and of wall time
otherwise; several processes are compared with the published loop on one thread or on as many, whichever was faster.

Legend: E examples, D float values of a state, C coalitions, n clients.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steelyard.benchmarks.published import PublishedLoop
from steelyard.benchmarks.rounds import Case, TrainedRound, random_round
from steelyard.bundle import hand_over
from steelyard.errors import UserError
from steelyard.scoring.coalitions import Floats, Masks, all_masks
from steelyard.scoring.evaluation import Device
from steelyard.scoring.paths import PATHS
from steelyard.scoring.utility import Utility

PUBLISHED = "published loop"
Contender = Callable[[Masks], tuple[float, float]]  # wall and processor seconds that the coalitions took
LeftOut = dict[str, str]  # is filled with the paths that do not fit, and why
_WORKERS = " x"  # in the name of a contender of several processes, or of the loop with as many threads


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


def timings(
    case: Case, paths: Sequence[str], batches: tuple[int, ...], workers: int, repetitions: int, left_out: LeftOut
) -> Iterator[Timing]:
    """Time every path that fits, with each inner batch, and some with workers; in turns.

    Args:
        case: what to evaluate.
        paths: which paths, of those that there are.
        batches: inner batches to try.
        workers: how many processes the last contenders have; 1 leaves them out.
        repetitions: how often everybody has a turn; the first turn warms up and is not counted.
        left_out: is filled with the paths that do not fit, and why.
    """
    material = random_round(case)
    rng = np.random.default_rng(0)
    masks = rng.choice(all_masks(case.clients)[1:], case.coalitions, replace=False)
    with ExitStack() as stack:
        loop = stack.enter_context(closing(PublishedLoop(case)))
        contenders: dict[str, Contender] = {PUBLISHED: lambda masks: loop.time(masks, 1)}
        if workers > 1 and case.device == "cpu":
            contenders[f"{PUBLISHED}{_WORKERS}{workers}"] = lambda masks: loop.time(masks, workers)
        fitting = _fitting(material, paths, case.device, left_out)
        files: list[Path] = []
        if workers > 1:  # which read a round's recordings, and those are written before a run scores it
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="steelyard-bench-")))
            for i, state_D in enumerate((material.global_D, *material.updates)):
                files.append(hand_over(folder / f"{i}", {"state": state_D.numpy()}))
        for name, path, batch, processes in _contenders(fitting, batches, workers):
            utility = utility_of(material, path, batch, processes, case.device)
            stack.enter_context(closing(utility))
            contenders[name] = _evaluator(utility, material, files)
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for turn in range(repetitions + 1):
            for name, contender in contenders.items():
                wall, processor = contender(masks)
                if turn:
                    turns[name].append((wall / len(masks), processor / len(masks)))
    yield from _medians(turns, by_wall=case.device != "cpu")


def path_errors(
    material: TrainedRound, inner_batch: int, left_out: LeftOut, device: Device = "cpu"
) -> Iterator[PathError]:
    """Every path that fits against the CPU's plain one on all coalitions of a round that was trained."""
    masks = all_masks(len(material.updates))
    plain = _utilities(utility_of(material, "plain", inner_batch, workers=1), material, masks)
    for path in _fitting(material, list(PATHS), device, left_out):
        utility = utility_of(material, path, inner_batch, workers=1, device=device)
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


def utility_of(material: TrainedRound, path: str, inner_batch: int, workers: int, device: Device = "cpu") -> Utility:
    """The engine on a round's validation data."""
    images, labels = material.images, material.labels
    return Utility(material.model, images, labels, inner_batch=inner_batch, path=path, workers=workers, device=device)


def _fitting(material: TrainedRound, paths: Sequence[str], device: Device, left_out: LeftOut) -> list[str]:
    """The paths that fit the network and the device."""
    fitting = []
    for path in paths:
        try:
            utility_of(material, path, len(material.labels), workers=1, device=device).close()
        except UserError as error:
            left_out[path] = str(error)
        else:
            fitting.append(path)
    return fitting


def _contenders(paths: Sequence[str], batches: tuple[int, ...], workers: int) -> Iterator[tuple[str, str, int, int]]:
    """Name, path, inner batch and processes of each contender."""
    for path in paths:
        for batch in batches:
            yield f"{path}, {batch}", path, batch, 1
    if workers > 1:
        for path in (path for path in paths if path not in {"plain", "folded"}):
            yield f"{path}{_WORKERS}{workers}, {batches[0]}", path, batches[0], workers


def _evaluator(utility: Utility, material: TrainedRound, files: Sequence[Path]) -> Contender:
    """Evaluates coalitions anew each time: a game of its own has no outcome yet."""

    def evaluate(masks_Cn: Masks) -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        game = utility.round(material.global_D, material.updates, material.samples, files=files)
        game.view("accuracy").values(masks_Cn)
        return time.perf_counter() - wall, time.process_time() - processor

    return evaluate


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
