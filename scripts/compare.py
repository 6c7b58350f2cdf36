"""`steelyard compare`: every evaluator of recorded runs side by side, over the seeds that the runs have."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from deploy.launch import read_manifest
from steelyard.errors import UserError
from steelyard.report.comparison import compare, comparison_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("runs", type=Path, nargs="+", help="attacked run directories with their honest twins")


def act(arguments: argparse.Namespace) -> int:
    """Print a table in Markdown for each experiment among the runs, all of them finished."""
    for run in arguments.runs:
        for each in (run, run / "honest") if (run / "honest").exists() else (run,):
            if (status := read_manifest(each)["status"]) != "DONE":
                raise UserError(
                    f"{each}: a finished run expected, its status is {status}; go on with it: "
                    f"steelyard run --resume {shlex.quote(str(each.resolve()))}"
                )
    for name, comparisons in compare(arguments.runs).items():
        print(f"{name}: attacked minus honest, mean [95 % interval, Student's t over paired seeds]\n")
        print(comparison_table(comparisons) + "\n")
    return 0
