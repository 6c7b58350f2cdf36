"""Runs the cells of a sweep, several at once, each as any other run: the same directories, resumed the same way.

A thread of this process is the launcher of one cell at a time; the run's own work is in the processes that it starts,
which end with it. What is DONE is not run again. Torch-free.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from deploy.launch import Options, read_manifest, run_experiment, status
from deploy.local import ignoring_interrupts
from deploy.provenance import provenance
from steelyard.config import Experiment
from steelyard.data import load
from steelyard.decoder_store import data_digest
from steelyard.errors import SteelyardError
from steelyard.process import in_a_line
from steelyard.report.origin import Difference, check_data, data_of, differences, made
from steelyard.sweep import HONEST, Cell


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one cell ended: its seconds, or why it failed; "" when it is DONE."""

    cell: Cell
    seconds: float
    reason: str = ""


@dataclass
class Queue:
    """Cells that wait, and which may start: one whose honest run this sweep makes comes after it.

    Two cells must never make the same twin at once, and a cell whose twin failed would only fail the same way.
    """

    waiting: list[Cell]
    unfinished: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unfinished = {cell.run for cell in self.waiting}

    def take(self) -> Cell | None:
        """The first cell that may start; None while all wait for others."""
        for at, cell in enumerate(self.waiting):
            if cell.variant == HONEST or cell.honest not in self.unfinished:
                return self.waiting.pop(at)
        return None

    def settle(self, outcome: Outcome) -> list[Outcome]:
        """Note a cell's end; returns the outcomes of the cells that it takes with it."""
        run = outcome.cell.run
        self.unfinished.discard(run)
        if not outcome.reason or outcome.cell.variant != HONEST:
            return []
        lost = [cell for cell in self.waiting if cell.honest == run]
        self.waiting = [cell for cell in self.waiting if cell.honest != run]
        return [Outcome(cell=cell, seconds=0.0, reason="its honest run failed") for cell in lost]


class Stop:
    """A view that shows nothing and ends its run, as Ctrl-C would, once the sweep is to stop."""

    def __init__(self, wanted: threading.Event) -> None:
        self._wanted = wanted

    def begin(self, experiment: Experiment, run: Path, honest: Path | None) -> None:
        """Nothing to show."""

    def poll(self) -> None:
        """End this run if the sweep is to stop."""
        if self._wanted.is_set():
            raise KeyboardInterrupt

    def say(self, line: str) -> None:
        """Nothing to show."""


def unfinished(cells: Sequence[Cell], out: Path) -> list[Cell]:
    """The cells whose run directories are not DONE."""
    return [cell for cell in cells if status(out / cell.run) != "DONE"]


def check_made(cells: Sequence[Cell], mine: Sequence[Cell], out: Path) -> list[Difference]:
    """Where the cells that are DONE were made otherwise than those to come will be.

    Args:
        cells: all cells of the sweep.
        mine: those of them that are to be run here.
        out: the folder of run directories.

    Raises:
        UserError: they were made of other data; or that of the cells to come is not to be had.
    """
    manifests = {cell.run: read_manifest(out / cell.run) for cell in cells if status(out / cell.run)}
    found = [
        (cell.experiment.data.dataset, data_of(manifests[cell.run]), f"{cell.title}, {out / cell.run}")
        for cell in cells
        if cell.run in manifests
    ]
    known = {dataset for dataset, sha256, _ in found if sha256}
    for config in dict.fromkeys(cell.experiment.data for cell in mine if cell.run not in manifests):
        if config.dataset in known:
            known.remove(config.dataset)
            data = load(config)
            found.append((config.dataset, data_digest(data.images, data.labels), "what is to be had here"))
    check_data(found)
    done = {
        cell.title: made(manifest)
        for cell in cells
        if (manifest := manifests.get(cell.run)) and manifest["status"] == "DONE"
    }
    return differences(done, made(provenance())) if done else []


def share(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """The cells of one of several hosts or jobs that share a sweep; they need not know of each other.

    Cells that are compared with the same honest run go to the same one: two launchers must not make one twin at once.

    Args:
        cells: the runs of the sweep, in its order.
        part: which share, from 1.
        parts: how many there are.
    """
    twins = dict.fromkeys(cell.honest for cell in cells)
    mine = set(list(twins)[part - 1 :: parts])
    return [cell for cell in cells if cell.honest in mine]


def run_cells(cells: Sequence[Cell], options: Options, jobs: int, told: Callable[[Outcome], None]) -> list[Outcome]:
    """Run cells, `jobs` at once; a cell that fails is told, and the others go on.

    Args:
        cells: those to run, an honest run before the cells that are compared with it.
        options: as for one run.
        jobs: how many at once.
        told: called with every outcome as it comes, on this thread.

    Returns:
        All outcomes, in the order in which they came.

    Raises:
        KeyboardInterrupt: Ctrl-C; every process that was started has been ended, and every run can be continued.
    """
    queue, stop = Queue(list(cells)), threading.Event()
    outcomes: list[Outcome] = []
    running: set[Future[Outcome]] = set()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="cell")
    try:
        while queue.waiting or running:
            while len(running) < jobs and (cell := queue.take()) is not None:
                running.add(pool.submit(_run_cell, cell, options, stop))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                outcome = future.result()
                for each in (outcome, *queue.settle(outcome)):
                    outcomes.append(each)
                    told(each)
    finally:
        with ignoring_interrupts():
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return outcomes


def _run_cell(cell: Cell, options: Options, stop: threading.Event) -> Outcome:
    started = time.monotonic()
    reason = ""
    try:
        run_experiment(cell.experiment, options, Stop(stop))
    except (SteelyardError, OSError) as error:
        reason = in_a_line(error)
    except Exception as error:  # noqa: BLE001 - a bug, ours or a plug-in's, must not cost the other cells
        reason = in_a_line(error)
        sys.stderr.write(f"{cell.title}: {traceback.format_exc()}")
    return Outcome(cell=cell, seconds=time.monotonic() - started, reason=reason)
