"""`torchrun ... -m deploy.torchrun EXPERIMENT.toml`: one rank of an experiment, as its own process."""

from __future__ import annotations

import sys

from deploy.torchrun.rank import main
from steelyard.process import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
