"""`python -m deploy.guard COMMAND...`: runs a command when whoever started this process is gone, however it went.

It reads its standard input, a pipe that the other process holds, to its end; the kernel closes it with that process.
"""

from __future__ import annotations

import subprocess
import sys

if __name__ == "__main__":
    sys.stdin.read()
    sys.exit(subprocess.run(sys.argv[1:], capture_output=True, check=False).returncode)
