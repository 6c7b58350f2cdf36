"""`steelyard run`: an experiment file in, a finished run directory and a table out."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import get_args

from deploy.containers.compose import Box
from deploy.containers.engine import connect
from deploy.containers.run import run_containers
from deploy.launch import Launcher, Options, boundary_of, read_manifest, run_experiment, status
from scripts.compose import add_box_arguments, box_of, box_words
from scripts.progress import Progress, command_name
from steelyard.config import Experiment, load_experiment
from steelyard.errors import UserError
from steelyard.parsing import parse
from steelyard.report.summary import summarize, write_summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("experiment", type=Path, nargs="?", help="the experiment file (TOML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key"
    )
    parser.add_argument("--out", type=Path, help="where run directories go (default: runs)")
    parser.add_argument("--launcher", choices=get_args(Launcher), default="local", help="how the processes are started")
    parser.add_argument("--order", default="", help="inline only: the order in which clients work, e.g. 2,0,1")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run directory")
    add_box_arguments(parser)
    parser.add_argument("--force", action="store_true", help="throw away what is there and run again")


def act(arguments: argparse.Namespace) -> int:
    """Run the experiment; returns the exit code."""
    _refuse_other_launchers(arguments)
    experiment = _experiment(arguments)
    out = arguments.resume.resolve().parent if arguments.resume else arguments.out or Path("runs")
    conduct = None
    if arguments.launcher == "compose":
        connect().close()  # a missing engine is told before anything is prepared
        conduct = partial(run_containers, box=box_of(arguments))
    order = _order(arguments, experiment)
    options = Options(out=out, launcher=arguments.launcher, order=order, force=arguments.force, conduct=conduct)
    progress = Progress()
    try:
        run = run_experiment(experiment, options, progress)
    except KeyboardInterrupt:
        again = "the same command"
        if progress.run and not progress.run.name.startswith("honest-"):  # a twin alone is not what was asked for
            again = shlex.join([command_name(), "run", "--resume", str(progress.run)])
            again += "" if arguments.launcher == "local" else f" --launcher {arguments.launcher}{box_words(arguments)}"
        sys.stderr.write(f"\nsteelyard: interrupted; every process was ended. To go on: {again}\n")
        return 130
    finally:
        progress.clear()
    _mend_summary(run, experiment)
    progress.finish(run)
    return 0


def _mend_summary(run: Path, experiment: Experiment) -> None:
    """Write the summary of a run that was DONE already anew if it was lost: all that it says stands in other files."""
    try:
        json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        honest = run / "honest" if experiment.compares_honest else None
        boundary = boundary_of(read_manifest(run))
        write_summary(run, summarize(run, honest, experiment.attackers, boundary=boundary))


def _refuse_other_launchers(arguments: argparse.Namespace) -> None:
    """Refuse what the launcher would not look at: who asks for a GPU must not get a run without one unnoticed."""
    if arguments.launcher != "compose" and box_of(arguments) != Box():
        raise UserError(
            f"--subnets, --memory and --gpu are for --launcher compose, got --launcher {arguments.launcher}; leave "
            "them out (a GPU is asked for in the experiment: [scoring] device and [placement])"
        )
    if arguments.launcher != "inline" and arguments.order:
        raise UserError(f"--order is for --launcher inline, got --launcher {arguments.launcher}; leave it out")


def _experiment(arguments: argparse.Namespace) -> Experiment:
    if arguments.resume is None:
        if arguments.experiment is None:
            raise UserError("an experiment file expected, e.g. experiments/quickstart.toml, or --resume RUN")
        return load_experiment(arguments.experiment, arguments.overrides)
    if arguments.experiment is not None or arguments.overrides or arguments.force or arguments.out is not None:
        raise UserError(
            "--resume goes on with a run as its manifest says, where it is; leave out the experiment, --set, --out and "
            "--force"
        )
    if not status(arguments.resume):
        raise UserError(f"an interrupted run directory expected, {arguments.resume} has no manifest.json")
    experiment = parse(
        Experiment, read_manifest(arguments.resume)["experiment"], str(arguments.resume / "manifest.json")
    )
    name, ours = arguments.resume.resolve().name, f"{experiment.name}-{experiment.digest()}"
    if name != ours:
        raise UserError(
            f"a run directory of its own expected, {arguments.resume} is not {ours}: a run's honest twin goes on with "
            "that run, so resume the run"
        )
    return experiment


def _order(arguments: argparse.Namespace, experiment: Experiment) -> tuple[int, ...]:
    if not arguments.order:
        return ()
    try:
        order = tuple(int(client) for client in arguments.order.split(","))
    except ValueError:
        order = ()
    clients = experiment.clients
    if sorted(order) != list(clients.present):
        but = f" but the absent {list(clients.absent)}" if clients.absent else ""
        raise UserError(f"--order: every client below {clients.count}{but} once expected, got {arguments.order!r}")
    return order
