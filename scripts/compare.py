"""`steelyard compare`: every evaluator of recorded runs side by side, over the seeds that the runs have."""

from __future__ import annotations

import argparse
from pathlib import Path

from steelyard.report.comparison import compare, comparison_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("runs", type=Path, nargs="+", help="attacked run directories with their honest twins")


def act(arguments: argparse.Namespace) -> int:
    """Print a table in Markdown for each experiment among the runs."""
    for name, comparisons in compare(arguments.runs).items():
        print(f"{name}: attacked minus honest, mean [95 % interval, Student's t over paired seeds]\n")
        print(comparison_table(comparisons) + "\n")
    return 0
