"""`steelyard bench evaluation`: coalitions per second against published style, path errors, estimators' errors.

`--parts` names what to measure: `speed` and `paths` of evaluation, `estimators` (errors by calls on complete games, and
on a recorded round with `--run`), `growth` (calls by number of clients).
`steelyard bench transport` is in `bench_transport.py`.

The work runs in a child process with the environment of a run's processes, since threads and library settings of the
caller's shell would be measured too: `python -m scripts.bench OPTIONS` is that child.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

from rich.console import Console
from rich.table import Table

from deploy.endings import run_child
from deploy.prepare import server_folder
from deploy.provenance import provenance
from scripts import bench_transport
from scripts.console import make_console
from steelyard.bundle import read_arrays, write_text
from steelyard.config import (
    ClientsConfig,
    DataConfig,
    Experiment,
    ModelConfig,
    ScoringConfig,
    ServerHalf,
    Shape,
    TrainingConfig,
    load_half,
)
from steelyard.errors import UserError
from steelyard.process import exit_with_launcher, run_main, settle_down
from steelyard.recording import ROLES, Recordings
from steelyard.report.figures import ATTACKER, BENIGN, HONEST, INK, Line, Span, curve_figure, interval_figure
from steelyard.scoring.coalitions import Floats, all_masks

if TYPE_CHECKING:
    from steelyard.benchmarks.estimators import Estimate
    from steelyard.benchmarks.evaluation import Timing
    from steelyard.scoring.evaluation import Device

COLOURS = (ATTACKER, BENIGN, INK, HONEST, "#4f9d69", "#b8862b")  # as many curves as a legend has room for
COLOUR = Shape(channels=3, height=32, width=32, classes=10)
SHAPES = {
    "cnn8": Shape(channels=1, height=8, width=8, classes=10),
    "cnn28": Shape(channels=1, height=28, width=28, classes=10),
    "cnn28_large": Shape(channels=1, height=28, width=28, classes=10),
}
BASELINE = "fedsv permutation"
PATHS = get_args(get_type_hints(ScoringConfig)["path"])
PARTS = ("speed", "paths", "estimators", "growth")
READERS = {  # which parts look at an option
    **dict.fromkeys(("repetitions", "models", "images", "coalitions", "workers", "paths", "batches"), ("speed",)),
    "parts": PARTS,
    "device": ("speed", "paths"),
    "games": ("estimators",),
    "run": ("estimators",),
    "draws": ("estimators", "growth"),
    "out": ("speed", "estimators", "growth"),
}
FEWEST, MOST = 6, 12  # clients of a recorded round: below, no budget is smaller than the game; above, it is too large
GROWTH_DRAWS = 4  # at most: every repetition is a whole search of budgets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("what", choices=("evaluation", "transport"), help="what to measure")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, e.g. speed (default: all)")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of every contender (default: 5)")
    parser.add_argument("--models", default="cnn28_large,cnn8", help="networks to time (default: cnn28_large,cnn8)")
    parser.add_argument("--images", type=int, default=2000, help="images; of 8x8 at most 300 (default: 2000)")
    parser.add_argument("--coalitions", type=int, default=2, help="coalitions per turn; of 8x8 16 (default: 2)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="scoring workers (default: cores)")
    parser.add_argument("--paths", default=",".join(PATHS), help="evaluation paths to time (default: all)")
    parser.add_argument("--batches", help="inner batches to time, workers the first (default: by the images' size)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of speed and paths (default: cpu)")
    parser.add_argument("--games", type=Path, default=Path("tests/data/games"), help="complete games as CSV files")
    parser.add_argument("--run", type=Path, help="a run directory, whose last round becomes two games more")
    parser.add_argument("--draws", type=int, default=50, help="repetitions of every estimator (default: 50)")
    parser.add_argument("--out", type=Path, help="folder for figures, tables, and transport.json")
    bench_transport.add_arguments(parser)


def act(arguments: argparse.Namespace) -> int:
    """Measure in a child process; returns its exit code."""
    _refuse_ignored(arguments)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)  # now: one that can't be made would cost all that was measured
    if arguments.what == "transport":
        return bench_transport.act(arguments)
    if min(arguments.repetitions, arguments.images, arguments.coalitions, arguments.workers, arguments.draws) < 1:
        raise UserError("--repetitions, --images, --coalitions, --workers, --draws: 1 or more expected")
    if unknown := set(arguments.paths.split(",")) - set(PATHS):
        raise UserError(f"--paths: some of {', '.join(PATHS)} expected, got {', '.join(sorted(unknown))}")
    batches = (arguments.batches or "1").split(",")
    if not all(batch.isdecimal() and int(batch) > 0 for batch in batches):
        raise UserError(f"--batches: whole numbers from 1 on, as in 100,32, expected, got {arguments.batches!r}")
    options = {key: str(getattr(arguments, key) or "") for key in READERS}
    return run_child("scripts.bench", json.dumps(options)).returncode


def _refuse_ignored(arguments: argparse.Namespace) -> None:
    """Refuse what would not be looked at: who sets an option must not take what was measured without it for its effect.

    An option at its default is as good as left out.
    """
    here, other, key, known, readers = (
        ("evaluation", "transport", "parts", PARTS, READERS)
        if arguments.what == "evaluation"
        else ("transport", "evaluation", "ways", bench_transport.NAMES, bench_transport.READERS)
    )
    chosen = getattr(arguments, key).split(",")
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"--{key}: some of {', '.join(known)} expected, got {unknown[0]!r}")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    untouched = parser.parse_args([here])
    for name in (name for name, default in vars(untouched).items() if getattr(arguments, name) != default):
        option = f"--{name.replace('_', '-')}"
        if name not in readers:
            raise UserError(f"{option} is for bench {other}, got bench {here}; leave it out")
        if not set(readers[name]) & set(chosen):
            wanted = ",".join(readers[name])
            raise UserError(f"{option} is for --{key} {wanted}, got --{key} {','.join(chosen)}; leave it out")


def measure(options: dict[str, str]) -> None:
    """Print every part that was asked for, and draw it."""
    console = make_console()
    found, today = provenance(), dt.datetime.now(dt.UTC).date()
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "numpy", "steelyard"))
    gpu = f", {_gpu()}" if options["device"] == "cuda" else ""
    console.print(f"{today}  {found['processor']}, {found['cores']} cores{gpu}, 1 thread a process; {versions}")
    parts = options["parts"].split(",")
    out = Path(options["out"]) if options["out"] else None
    if "speed" in parts:
        _speed(options, console, out)
    if "paths" in parts:
        _paths(options, console)
    if "estimators" in parts:
        _estimators(options, console, out)
    if "growth" in parts:
        _growth(min(GROWTH_DRAWS, int(options["draws"])), console, out)


def _gpu() -> str:
    """Its name; `UserError` where there is none."""
    import torch

    from steelyard.devices import use_device

    return torch.cuda.get_device_name(use_device("cuda", "--device"))


def _device(options: dict[str, str]) -> Device:
    return "cuda" if options["device"] == "cuda" else "cpu"


def _speed(options: dict[str, str], console: Console, out: Path | None) -> None:
    from steelyard.benchmarks.evaluation import timings
    from steelyard.benchmarks.rounds import Case

    for model in options["models"].split(","):
        shape = SHAPES.get(model, COLOUR)
        images = int(options["images"]) if shape.height > 8 else min(300, int(options["images"]))
        coalitions = int(options["coalitions"]) if shape.height > 8 else 16
        case = Case(model=model, shape=shape, examples=images, coalitions=coalitions, device=_device(options))
        what = f"{model}, {images} images of {shape.height}x{shape.width}"
        usual = (500, 100) if case.device == "cuda" else (100, 32) if shape.height > 8 else (100, 300)
        batches = tuple(int(batch) for batch in options["batches"].split(",") if batch) or usual
        paths = options["paths"].split(",")
        left_out: dict[str, str] = {}
        found = list(timings(case, paths, batches, int(options["workers"]), int(options["repetitions"]), left_out))
        table = Table(
            "path, inner batch",
            "wall ms",
            "processor ms",
            "x published",
            "range",
            title=f"A coalition: {what}; xN: N processes (of the loop N threads), x the faster loop",
        )
        for timing in found:
            low, high = timing.ratios
            processor = "" if timing.processor_s is None else f"{1e3 * timing.processor_s:.2f}"
            cells = (f"{1e3 * timing.seconds:.2f}", processor, f"{timing.ratio:.2f}", f"{low:.2f} - {high:.2f}")
            table.add_row(timing.name, *cells)
        _print_left_out(model, left_out, console)
        console.print(table)
        if out is not None:
            _draw_speed(what, found, out / f"speed-{model}.svg", console)


def _print_left_out(model: str, left_out: dict[str, str], console: Console) -> None:
    for path, why in left_out.items():
        console.print(f"{model}: {path} left out: {why}")


def _paths(options: dict[str, str], console: Console) -> None:
    from steelyard.benchmarks.evaluation import path_errors
    from steelyard.benchmarks.rounds import trained_round

    table = Table(
        "data, model, round",
        "path",
        "accuracy: most, mean",
        "loss: most, mean",
        title=f"On {options['device']}, against plain on the CPU",
    )
    for dataset, model, clients, samples, validation in (
        ("digits", "cnn8", 6, 100, 300),
        ("fashion_mnist", "cnn28", 6, 300, 500),
        ("fashion_mnist", "cnn28_large", 3, 300, 500),
        ("fashion_mnist", "resnet18", 3, 100, 100),
    ):
        left_out: dict[str, str] = {}
        for rounds in (1, 4):
            experiment = Experiment(
                name="bench",
                rounds=rounds,
                data=DataConfig(dataset=dataset, samples_per_client=samples, validation=validation, test=10),
                model=ModelConfig(name=model),
                training=TrainingConfig(epochs=1),
                clients=ClientsConfig(count=clients),
            )
            try:
                material = trained_round(experiment)
            except UserError as error:
                console.print(f"{dataset} left out: {error}")
                break
            for found in path_errors(material, inner_batch=100, left_out=left_out, device=_device(options)):
                accuracy, loss = ("{:.1e}, {:.1e}".format(*pair) for pair in (found.accuracy, found.loss))
                table.add_row(f"{dataset}, {model}, {rounds}", found.path, accuracy, loss)
        _print_left_out(model, left_out, console)
    console.print(table)


def _estimators(options: dict[str, str], console: Console, out: Path | None) -> None:
    from steelyard.benchmarks.estimators import errors, read_games

    budgets = (40, 100, 200, 400)
    games = read_games(Path(options["games"])) | (recorded_games(Path(options["run"])) if options["run"] else {})
    found = list(errors(games, budgets, int(options["draws"])))
    title = f"RMSE x 1000 (calls, held by 95 % intervals where there are any) by coalitions, {options['draws']} draws"
    header, rows = ("evaluator", "game", *(f"{budget} calls" for budget in budgets)), []
    for name, game in dict.fromkeys((estimate.evaluator, estimate.game) for estimate in found):
        mine = {e.budget: _error_cell(e) for e in found if (e.evaluator, e.game) == (name, game)}
        rows.append((name, game, *(mine.get(budget, "exact") for budget in budgets)))
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if out is not None:
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, ("---",) * len(header), *rows)]
        write_text(out / "estimators.md", "\n".join([title, "", *lines, ""]))
        console.print(f"table {out / 'estimators.md'}")
        _draw_estimators(found, budgets, out / "estimators.svg", console)


def _error_cell(estimate: Estimate) -> str:
    held = "-" if math.isnan(estimate.covered) else f"{100 * estimate.covered:.0f} %"
    return f"{1e3 * estimate.rmse:.1f} ({estimate.calls:.0f}, {held})"


def recorded_games(run: Path) -> dict[str, Floats]:
    """The accuracy and loss games of a run's last round with updates, as its evaluators saw them.

    Raises:
        UserError: there is none, or it has too few or too many clients.
    """
    from steelyard.scoring.replay import RoundScorer

    server, recordings = server_folder(run / ROLES), Recordings(run)
    half: ServerHalf = load_half(ServerHalf, server / "half.json")
    rounds = recordings.closed_rounds()
    while rounds and rounds[-1].void:
        rounds.pop()
    clients = len(rounds[-1].received) if rounds else 0
    if not FEWEST <= clients <= MOST:
        raise UserError(f"--run: a round with {FEWEST} to {MOST} clients expected in {run}, its last one has {clients}")
    with closing(RoundScorer(half, read_arrays(server / "data.safetensors"), recordings, [])) as scorer:
        for closed in rounds[:-1]:
            scorer.rows(closed)  # a defence carries things on
        scorer.join(rounds[-1])
        played = scorer.played(rounds[-1], scorer.read(rounds[-1]))
        masks = all_masks(clients)
        return {
            "recorded_accuracy": played.view("accuracy").values(masks),
            "recorded_loss": played.view("loss").values(masks),
        }


def _growth(draws: int, console: Console, out: Path | None) -> None:
    """Calls against clients, beside N log N drawn through the best method's first point."""
    from steelyard.benchmarks.growth import GAMES, PLAYERS, TARGET, growth

    found = list(growth(draws))
    title = f"Calls to a relative error of {TARGET:.0%}, {draws} draws; x: of the last by the first, N log N is 15"
    table = Table("game", "shapley", *(f"{n} players" for n in PLAYERS), "x", title=title)
    for each in found:
        table.add_row(
            each.game, each.method, *(f"{c:.0f}" for c in each.calls), f"{each.calls[-1] / each.calls[0]:.0f}"
        )
    console.print(table)
    for game in GAMES if out is not None else ():
        mine = [each for each in found if each.game == game and all(map(math.isfinite, each.calls))]
        if mine and out is not None:
            lines = [Line(label=m.method, values=list(m.calls), colour=c) for m, c in zip(mine, COLOURS, strict=False)]
            scale = mine[0].calls[1] / (PLAYERS[1] * math.log(PLAYERS[1]))
            curve = [scale * n * math.log(n) for n in PLAYERS]
            lines.append(Line(label="N log N", values=curve, colour=COLOURS[-1]))
            path = out / f"growth-{game.replace(' ', '-')}.svg"
            write_text(
                path, curve_figure(f"Clients' games: {game}", "calls", lines, [str(n) for n in PLAYERS], "clients")
            )
            console.print(f"figure {path}")


def _draw_speed(what: str, found: Sequence[Timing], path: Path, console: Console) -> None:
    spans = [
        Span(
            label=timing.name,
            mean=timing.ratio,
            low=timing.ratios[0],
            high=timing.ratios[1],
            words=f"{timing.ratio:.2f}",
            colour=HONEST if timing.ratio == 1 else BENIGN,
        )
        for timing in found
    ]
    unit = "coalitions per second, x published loop (of xN the faster): median and extremes of its turns"
    write_text(path, interval_figure(what, unit, spans) + "\n")
    console.print(f"figure {path}")


def _draw_estimators(found: Sequence[Estimate], budgets: Sequence[int], path: Path, console: Console) -> None:
    """The geometric mean over games of each estimator's RMSE against the baseline's, for the best ones.

    Games that a budget would play out in full are left out.
    """
    known = {(e.evaluator, e.game, e.budget): e.rmse for e in found}
    games = sorted({e.game for e in found if e.budget == budgets[-1]})
    if not games:
        return

    def relative(name: str, budget: int) -> float:
        logs = [math.log(known[name, game, budget] / known[BASELINE, game, budget]) for game in games]
        return math.exp(sum(logs) / len(logs))

    names = sorted({e.evaluator for e in found}, key=lambda name: relative(name, budgets[1]))[: len(COLOURS)]
    lines = [
        Line(label=name, values=[relative(name, budget) for budget in budgets], colour=colour)
        for name, colour in zip(names, COLOURS, strict=False)
    ]
    title = f"Error of sampled values: root mean square, geometric mean over {len(games)} games"
    write_text(path, curve_figure(title, f"x {BASELINE}", lines, [str(b) for b in budgets], "coalitions") + "\n")
    console.print(f"figure {path}")


def _child() -> int:
    exit_with_launcher()
    settle_down()
    measure(json.loads(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(_child))
