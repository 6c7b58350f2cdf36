"""`python -m server FOLDER`: the server of a prepared role folder, as its own process."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from steelyard.process import exit_with_launcher, run_main, settle_down


def main() -> int:
    """Parse the command line and run the server, or with `--check` only validate its configuration."""
    parser = argparse.ArgumentParser(prog="python -m server", description="The server of a federation.")
    parser.add_argument("folder", type=Path, help="the server's role folder, or with --check its half.json")
    parser.add_argument("--run", type=Path, help="the run directory to write (default: FOLDER/run)")
    parser.add_argument("--check", action="store_true", help="validate the configuration and exit")
    arguments = parser.parse_args()
    exit_with_launcher()
    settle_down()
    from server import app

    if arguments.check:
        app.check(arguments.folder)
        return 0
    run = arguments.run or arguments.folder / "run"
    app.serve(arguments.folder, run, lambda address, _fail: print(f"listening on {address}", flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
