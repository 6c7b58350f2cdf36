"""`steelyard sweep`: a sweep file in; run directories, tables over the seeds and a figure out."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.launch import Options, check_roles
from deploy.sweep import Outcome, check_made, run_cells, share, unfinished
from scripts.console import make_console
from scripts.progress import command_name
from steelyard.csv_rows import read_rows
from steelyard.errors import UserError
from steelyard.report.origin import Difference
from steelyard.report.sweep_files import FILES, write_sweep
from steelyard.sweep import Sweep, load_sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("sweep", type=Path, help="the sweep file (TOML)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where run directories go (default: runs)")
    parser.add_argument("--jobs", type=int, help="runs side by side (default: the sweep file's, else one per core)")
    parser.add_argument("--launcher", choices=("local", "inline"), help="how runs are started (default: the file's)")
    parser.add_argument("--part", metavar="I/N", help="run the I-th of N shares only, and leave the tables to another")
    parser.add_argument("--table-only", action="store_true", help="run nothing; tabulate what is done")


def act(arguments: argparse.Namespace) -> int:
    """Run the sweep; returns the exit code."""
    sweep = load_sweep(arguments.sweep)
    part = _part(arguments)
    failed: list[Outcome] = []
    if not arguments.table_only:
        try:
            failed = _run(sweep, arguments, part)
        except KeyboardInterrupt:
            sys.stderr.write(f"\nsteelyard: interrupted; every process was ended. To go on: {_again(arguments)}\n")
            return 130
    if part is not None:  # others may be writing; whoever comes last tabulates
        return _tell(failed, len(sweep.runs))
    try:
        text = write_sweep(sweep, arguments.out)
    except UserError as error:
        if not failed:
            raise
        sys.stderr.write(f"steelyard: no tables: {error}\n")
        return _tell(failed, len(sweep.runs))
    console = make_console()
    console.print(f"\n{text}")
    console.print(f"files   {arguments.out / 'sweeps' / sweep.config.name}/  {', '.join(FILES)}")
    return _tell(failed, len(sweep.runs))


def _tell(failed: list[Outcome], runs: int) -> int:
    """Say what failed; returns the exit code."""
    if failed:
        names = "; ".join(f"{outcome.cell.title}: {outcome.reason}" for outcome in failed)
        sys.stderr.write(f"steelyard: {len(failed)} of {runs} runs failed: {names}\n")
    return 1 if failed else 0


def _part(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """Which share of how many; None: the whole sweep."""
    if arguments.part is None:
        return None
    part, _, parts = arguments.part.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)) or arguments.table_only:
        raise UserError(f"--part: I/N with 1 <= I <= N expected, without --table-only, got {arguments.part!r}")
    return int(part), int(parts)


def _again(arguments: argparse.Namespace) -> str:
    """The command line that continues the sweep as it was started."""
    options = {"--out": arguments.out, "--jobs": arguments.jobs, "--launcher": arguments.launcher}
    options |= {"--part": arguments.part}
    given = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    return shlex.join([command_name(), "sweep", str(arguments.sweep), *given])


def _run(sweep: Sweep, arguments: argparse.Namespace, part: tuple[int, int] | None) -> list[Outcome]:
    launcher = arguments.launcher or sweep.config.launcher
    jobs = (sweep.config.jobs if arguments.jobs is None else arguments.jobs) or os.cpu_count() or 1
    if jobs < 0:
        raise UserError(f"--jobs: a positive number expected, got {jobs}")
    if launcher != "inline" and any(cell.experiment.transport.tensors == "memory" for cell in sweep.cells):
        raise UserError('transport.tensors = "memory" lives in one process; set launcher = "inline"')
    mine = share(sweep.runs, *part) if part else list(sweep.runs)
    cells = unfinished(mine, arguments.out)
    view = Lines(sweep, arguments.out, (len(cells), len(mine)), jobs)
    view.begin(check_made(sweep.runs, cells, arguments.out))
    check_roles(*(cell.experiment for cell in cells))
    view.start()
    options = Options(out=arguments.out, launcher=launcher, checked=True)
    outcomes: Sequence[Outcome] = run_cells(cells, options, jobs, view.told)
    return [outcome for outcome in outcomes if outcome.reason]


class Lines:
    """One line for every run that ended, and when the sweep will."""

    def __init__(self, sweep: Sweep, out: Path, cells: tuple[int, int], jobs: int) -> None:
        self._console = make_console()
        self._sweep, self._out, self._jobs = sweep, out, jobs
        self._cells, self._mine = cells  # those to run, of all those that are this command's
        self._ended = 0
        self.start()

    def begin(self, otherwise: Sequence[Difference]) -> None:
        """Announce the sweep, and which of its runs were made otherwise than those to come will be."""
        share = "" if self._mine == len(self._sweep.runs) else f" of {len(self._sweep.runs)}"
        self._console.print(
            f"{self._sweep.config.name}: {self._mine}{share} runs, {self._mine - self._cells} of them done already, "
            f"{self._jobs} at once, in {self._out}/"
        )
        for each in otherwise:
            self._console.print(f"done with other {each.what} ({each.other}, here {each.usual}): {each.names}")

    def start(self) -> None:
        """From here on the time that runs take tells when the sweep ends."""
        self._started = time.monotonic()

    def told(self, outcome: Outcome) -> None:
        """Show how a run ended."""
        self._ended += 1
        left = (time.monotonic() - self._started) / self._ended * (self._cells - self._ended)
        eta = f"ETA {int(left) // 60}:{int(left) % 60:02d}"
        count = f"{self._ended:>{len(str(self._cells))}}/{self._cells}"
        said = f"FAILED: {outcome.reason}" if outcome.reason else self._value(outcome)
        self._console.print(f"  {count}  {outcome.cell.title}  {said}  {outcome.seconds:.1f} s  {eta}")

    def _value(self, outcome: Outcome) -> str:
        """The watched clients' total under the primary evaluator."""
        rows = read_rows(self._out / outcome.cell.run / "scores.csv", ("client", "evaluator", "value"))
        total = sum(
            row.number("value")
            for row in rows
            if row["evaluator"] == self._sweep.evaluator and row.whole("client") in outcome.cell.watched
        )
        who = ", ".join(map(str, outcome.cell.watched))
        return f"client {who} {self._sweep.evaluator} {total:+.4f}"
