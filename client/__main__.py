"""`python -m client FOLDER --server HOST:PORT`: one client of a prepared role folder, as its own process."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from steelyard.process import exit_with_launcher, run_main, settle_down


def main() -> int:
    """Parse the command line and run the client, or with `--check` only validate its configuration."""
    parser = argparse.ArgumentParser(prog="python -m client", description="One client of a federation.")
    parser.add_argument("folder", type=Path, help="the client's role folder, or with --check its half.json")
    parser.add_argument("--server", metavar="HOST:PORT", help="where the server listens (default: as configured)")
    parser.add_argument("--check", action="store_true", help="validate the configuration and exit")
    arguments = parser.parse_args()
    exit_with_launcher(signal.SIGKILL)  # it may be paused by then
    settle_down()
    from client import app

    if arguments.check:
        app.check(arguments.folder)
        return 0
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(name)s %(message)s")
    app.Client(arguments.folder, arguments.server).run()
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
