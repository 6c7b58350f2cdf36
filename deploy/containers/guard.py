"""`python -m deploy.containers.guard LOCK COMMAND...`: runs a command when whoever started this process is gone.

It reads its standard input, a pipe that the other process holds, to its end; however that process went, the kernel
closes it. If somebody holds LOCK by then, a new launcher has taken over and cleans up by itself.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path

PAUSE_S = 2.0  # what was being started at that moment is ended or there by then

if __name__ == "__main__":
    sys.stdin.read()
    time.sleep(PAUSE_S)
    with Path(sys.argv[1]).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(0)
        # Held to the end: a launcher that goes on meanwhile would have its own containers removed.
        sys.exit(subprocess.run(sys.argv[2:], capture_output=True, check=False).returncode)
