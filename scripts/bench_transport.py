"""`steelyard bench transport`: how fast models move, against raw TCP and against whole rounds of other platforms.

As for `bench evaluation` the work runs in a child process with a run's environment: `python -m scripts.bench_transport
OPTIONS`. Rounds of Steelyard itself are a real run of free-riders, from a round's opening to its closing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.table import Table

from deploy.endings import run_child
from deploy.launch import Options, run_experiment
from deploy.provenance import provenance
from scripts.console import make_console
from steelyard.benchmarks.transport import WAYS, Case, Cell, compare
from steelyard.benchmarks.transport_peers import PEERS, measure
from steelyard.bundle import write_text
from steelyard.config import ClientsConfig, DataConfig, Experiment, ModelConfig
from steelyard.errors import SteelyardError, UserError
from steelyard.process import exit_with_launcher, run_main
from steelyard.recording import read_events
from steelyard.report.figures import BENIGN, HONEST, Span, interval_figure

OWN = "steelyard-round"
NAMES = (*WAYS, OWN, *PEERS)
READERS = {  # which ways look at an option; raw TCP is always timed, and repeated
    **dict.fromkeys(("ways", "sizes", "clients", "repetitions", "out"), NAMES),
    **dict.fromkeys(("peer_rounds", "patience"), (OWN, *PEERS)),
    "peers": tuple(PEERS),
}
MODELS = {1: ("cnn28_large", "fashion_mnist"), 47: ("resnet18", "fashion_mnist")}  # of 1.8 and 44.7 MB
MEGABYTE = 10**6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that are this benchmark's alone."""
    group = parser.add_argument_group("transport")
    group.add_argument("--sizes", default="1,47,350", help="megabytes of the models (default: 1,47,350)")
    group.add_argument("--clients", default="1,2,10", help="numbers of clients (default: 1,2,10)")
    group.add_argument("--ways", default=",".join(NAMES), help="which ways (default: all)")
    group.add_argument("--peers", type=Path, metavar="VENV", help="the environment that `make peers` made")
    group.add_argument("--peer-rounds", type=int, default=3, help="rounds of a peer or run that are timed (default: 3)")
    group.add_argument("--patience", type=float, default=60.0, help="longest round of a peer in seconds (default: 60)")


def act(arguments: argparse.Namespace) -> int:
    """Measure in a child process; returns its exit code."""
    numbers = (arguments.repetitions, arguments.peer_rounds, *_numbers(arguments.sizes), *_numbers(arguments.clients))
    if min(numbers) < 1 or not arguments.patience > 0:
        raise UserError("--repetitions, --peer-rounds, --sizes, --clients, --patience: 1 or more expected")
    keys = ("repetitions", "sizes", "clients", "ways", "peer_rounds", "patience")
    options = {key: getattr(arguments, key) for key in keys}
    options |= {"peers": str(arguments.peers or ""), "out": str(arguments.out or "")}
    return run_child("scripts.bench_transport", json.dumps(options)).returncode


def cells(options: dict[str, object], folder: Path) -> Iterator[Cell]:
    """Every cell in turn: the small cases first, so that a hopeless one can be told from them."""
    ways = str(options["ways"]).split(",")
    peers = Path(str(options["peers"])) if options["peers"] else None
    known: list[Cell] = []
    for megabytes in _numbers(str(options["sizes"])):
        for clients in _numbers(str(options["clients"])):
            case = Case(megabytes=megabytes, clients=clients)
            yield from compare(case, [way for way in ways if way in WAYS], int(str(options["repetitions"])), folder)
            for way in ways:
                if way in WAYS:
                    continue
                reason = hopeless(way, case, known, float(str(options["patience"])))
                rounds = int(str(options["peer_rounds"]))
                if reason:
                    known.append(Cell(way=way, case=case, reason=reason))
                elif way == OWN:
                    known.append(own_rounds(case, rounds, folder))
                else:
                    known.append(measure(way, peers, case, rounds, float(str(options["patience"])), folder))
                yield known[-1]


def hopeless(way: str, case: Case, known: Sequence[Cell], patience_s: float) -> str:
    """Why a case isn't tried: a round would take longer than one has patience for, going by the last one measured.

    Seconds are taken to grow with the bytes moved, from the largest case that was timed; "" where it is worth a try.
    """
    timed = [cell for cell in known if cell.way == way and math.isfinite(cell.seconds) and cell.case.megabytes > 1]
    if not timed:
        return ""
    last = max(timed, key=lambda cell: cell.case.nbytes * cell.case.clients)
    expected = last.seconds * (case.nbytes * case.clients) / (last.case.nbytes * last.case.clients)
    if expected <= patience_s:
        return ""
    where = f"{last.seconds:.1f} s at {last.case.megabytes} MB, {last.case.clients} clients"
    return f"about {expected:.0f} s a round expected ({where}), patience {patience_s:g} s"


def own_rounds(case: Case, rounds: int, folder: Path) -> Cell:
    """A real run of free-riders, server and clients as processes, with receipts and recordings.

    A round's time is that from its opening to its closing less the client's own that was quickest with its update: all
    of them make theirs at once, and a free-rider keeps its state on disk.
    """
    if case.megabytes not in MODELS:
        return Cell(way=OWN, case=case, reason="no network of ours is near that size")
    model, dataset = MODELS[case.megabytes]
    attack = {"name": "free_rider", "send": "nothing", "clients": list(range(case.clients)), "compare_honest": False}
    experiment = Experiment(
        name="bench",
        rounds=1 + rounds,
        data=DataConfig(dataset=dataset, partition="iid", samples_per_client=20, validation=10, test=10),
        model=ModelConfig(name=model),
        clients=ClientsConfig(count=case.clients),
        attack=attack,
        evaluators=({"name": "loo", "kind": "loo", "utility": "loss"},),
    )
    out = folder / f"own-{case.megabytes}-{case.clients}"
    try:
        run = run_experiment(experiment, Options(out=out), Silent())
    except SteelyardError as error:
        return Cell(way=OWN, case=case, reason=str(error))
    at = {(event["event"], event.get("round")): event["time"] for event in read_events(run)}
    making = own_seconds(run)
    numbers = range(2, 2 + rounds)
    taken = [at["round_closed", number] - at["round_opened", number] - min(making[number]) for number in numbers]
    return Cell(way=OWN, case=case, seconds=statistics.median(taken))


def own_seconds(run: Path) -> dict[int, list[float]]:
    """By round, the seconds that each client took to make its update, from the clients' logs."""
    found: dict[int, list[float]] = {}
    for path in sorted(run.glob("roles/client-*/log.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if " submitted {" in line:
                note = json.loads(line[line.index("{") :])
                found.setdefault(note["round"], []).append(note["seconds"])
    return found


class Silent:
    """A view that shows nothing."""

    def begin(self, experiment: Experiment, run: Path, honest: Path | None) -> None:
        """Nothing."""

    def poll(self) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


def report(options: dict[str, object]) -> None:
    """Print the table, write transport.json and draw transport.svg."""
    console = make_console()
    found, today = provenance(), dt.datetime.now(dt.UTC).date()
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "grpcio", "steelyard"))
    load = os.getloadavg()
    console.print(f"{today}  {found['processor']}, {found['cores']} cores, load {load[0]:.1f} before; {versions}")
    measured = []
    with tempfile.TemporaryDirectory(prefix="steelyard-bench-") as folder:
        for cell in cells(options, Path(folder)):
            measured.append(cell)
            console.print(f"  {cell.case.megabytes} MB, {cell.case.clients} clients, {cell.way}: {_words(cell)}")
    heads = ("MB", "clients", "way", "ms a round", "of raw TCP", "range", "processor ms", "of raw TCP's")
    table = Table(*heads, "server MB", "x update", title="Transport")
    for cell in measured:
        case = (str(cell.case.megabytes), str(cell.case.clients), cell.way)
        if cell.reason:
            table.add_row(*case, "-", "", cell.reason)
            continue
        middle, low, high = cell.ratio
        spread = f"{low:.2f} - {high:.2f}" if math.isfinite(low) else ""
        processor = (_or_blank(1e3 * cell.processor_s, ".1f"), _or_blank(cell.processor_ratio, ".2f"))
        memory = (_or_blank(cell.peak_bytes / MEGABYTE, ".0f"), _or_blank(cell.memory, ".2f"))
        table.add_row(*case, f"{1e3 * cell.seconds:.1f}", _or_blank(middle, ".2f"), spread, *processor, *memory)
    console.print(table)
    for line in against_peers(measured):
        console.print(line)
    console.print(f"load {os.getloadavg()[0]:.1f} after")
    if options["out"]:
        out = Path(str(options["out"]))
        rows = [{**asdict(cell), "memory": cell.memory} for cell in measured]
        record = {"date": str(today), "options": options, "load": [load[0], os.getloadavg()[0]], **found, "cells": rows}
        write_text(out / "transport.json", json.dumps(_finite(record), indent=1) + "\n")
        spans = list(_spans(measured))
        unit = "share of raw TCP's speed: median and extremes of the turns"
        write_text(out / "transport.svg", interval_figure("Moving a model to the clients and back", unit, spans) + "\n")
        console.print(f"files {out}/transport.json, transport.svg")


def against_peers(measured: Sequence[Cell]) -> Iterator[str]:
    """How many times longer a peer's round takes than ours in the same case."""
    seconds = {(cell.way, cell.case): cell.seconds for cell in measured if math.isfinite(cell.seconds)}
    for (way, case), theirs in seconds.items():
        if way in PEERS:
            for own in (OWN, "grpc-sha256"):
                if mine := seconds.get((own, case)):
                    what = f"{case.megabytes} MB, {case.clients} clients"
                    yield f"{way}, {what}: {theirs / mine:.0f} x the seconds of {own} ({theirs:.2f} to {mine:.3f})"


def _spans(measured: Sequence[Cell]) -> Iterator[Span]:
    for cell in measured:
        if math.isfinite(cell.ratio[0]) and cell.ratio != (1.0, 1.0, 1.0):
            yield Span(
                label=f"{cell.case.megabytes} MB x {cell.case.clients}, {cell.way}",
                mean=cell.ratio[0],
                low=cell.ratio[1],
                high=cell.ratio[2],
                words=f"{cell.ratio[0]:.2f}",
                colour=HONEST if cell.way == "gloo" else BENIGN,
            )


def _words(cell: Cell) -> str:
    if cell.reason:
        return cell.reason
    if not math.isfinite(cell.ratio[0]):
        return f"{1e3 * cell.seconds:.1f} ms a round"
    return (
        f"{1e3 * cell.seconds:.1f} ms a round, {cell.ratio[0]:.2f} of raw TCP; "
        f"processor {1e3 * cell.processor_s:.1f} ms, {cell.processor_ratio:.2f} of raw TCP's"
    )


def _or_blank(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else ""


def _finite(value: object) -> object:
    """The same with null for what is no number, as JSON has none for it."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"numbers with commas between them expected, got {text!r}") from None


def _child() -> int:
    def stop(_signal: int, _frame: FrameType | None) -> None:  # whatever ends us, what we started ends in order
        raise KeyboardInterrupt

    exit_with_launcher()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    report(json.loads(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(_child))
