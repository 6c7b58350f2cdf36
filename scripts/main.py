"""The `steelyard` command: one subcommand per file, loaded when it is called. `--help` loads no torch."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from steelyard.process import run_main

COMMANDS = {
    "run": "run an experiment and its honest twin as real processes",
    "sweep": "run a grid of experiments over seeds and variants, and tabulate it over the seeds",
    "prepare": "write one self-contained folder per role, to be run on any host",
    "compose": "write an experiment's containers as a compose file",
    "replay": "recompute every score of a finished run from its recordings and compare",
    "compare": "compare the evaluators of recorded runs: cost, error, and how far the attack inflated each",
    "doctor": "check that an experiment can run here, before it does",
    "decoder": "train an attacker's decoder beforehand, and store it by its digest",
    "certs": "make the certificates that a server beyond loopback needs",
    "bench": "measure how fast coalitions are evaluated and models move here, and how well estimators do",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    return run_main(lambda: _dispatch(sys.argv[1:] if arguments is None else list(arguments)))


def _dispatch(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="steelyard", description="See, measure and repel attacks on contribution scores in federated training."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    name = next((word for word in arguments if word in COMMANDS), None)
    for command, text in COMMANDS.items():
        sub = commands.add_parser(command, help=text, description=text)
        if command == name:
            module = importlib.import_module(f"scripts.{command}")
            module.add_arguments(sub)
            sub.set_defaults(act=module.act)
    parsed = parser.parse_args(arguments)
    return int(parsed.act(parsed))


if __name__ == "__main__":
    sys.exit(main())
