"""`python -m deploy.containers.leash COMMAND...`: becomes that command, which the kernel ends when the launcher ends.

The launcher names itself in the environment, as it does for every process of a run (`steelyard/process.py`).
"""

from __future__ import annotations

import os
import sys

from steelyard.process import exit_with_launcher

if __name__ == "__main__":
    exit_with_launcher()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - no shell is wanted
