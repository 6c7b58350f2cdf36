"""Runs prepared role folders as a torchrun job on this host: `steelyard run --launcher torchrun`. Torch-free at import.

`python -m deploy.torchrun.job OPTIONS` is torchrun itself, but ends with the launcher that started it.
"""

from __future__ import annotations

import contextlib
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from deploy.environment import process_environment
from deploy.local import POLL_S, ignoring_interrupts
from steelyard.errors import RunFailedError, UserError
from steelyard.network import Fault
from steelyard.process import MISTAKE, exit_with_launcher, run_main

MAX_RESTARTS = 3
END_TIMEOUT_S = 40.0  # torchrun gives its ranks 30 s to end
LOG = "torchrun.txt"


def run_torchrun(
    roles: Path,
    run: Path,
    clients: Iterable[int],
    poll: Callable[[], None],
    say: Callable[[str], None],
    faults: Sequence[Fault] = (),
) -> None:
    """Run one prepared experiment to its end, the server and each client a rank; arguments as for `run_local`.

    There are no links between ranks, so no fault can be made happen; the launcher has refused them before.

    Raises:
        UserError: a rank could not start for a reason that the user can mend.
        RunFailedError: the run failed, or a rank died more often than the group may be restarted.
    """
    assert not faults
    ranks = 1 + len(tuple(clients))
    command = [sys.executable, "-m", "deploy.torchrun.job", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(ranks), "--max-restarts", str(MAX_RESTARTS), "-m", "deploy.torchrun"]
    command += ["--roles", str(roles), "--into", str(run)]
    say(f"  torchrun: {ranks} ranks, at most {MAX_RESTARTS} restarts of the group, log {run / LOG}")
    with (run / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            env=process_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends torchrun
        )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
            poll()
    finally:
        _end(process)
    if process.returncode:
        raise failure((run / LOG).read_text(encoding="utf-8", errors="replace"), run / LOG)


def failure(log: str, path: Path) -> UserError | RunFailedError:
    """Why a job failed, by its log: the first words of ours in it, which tell of the first cause."""
    words = re.search(r"^steelyard: (.*)$", log, re.MULTILINE)
    if words is None:
        return RunFailedError(f"torchrun gave up after {MAX_RESTARTS} restarts; resume the run to go on; log: {path}")
    mistake = re.search(rf"exitcode\s*: {MISTAKE} ", log)
    return (UserError if mistake else RunFailedError)(words[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the job if it still runs: ask, wait, then insist."""
    with ignoring_interrupts():
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT_S)
            process.kill()
        process.wait()


def main() -> int:
    """Be torchrun."""
    exit_with_launcher()
    from torch.distributed.elastic.multiprocessing.api import SignalException

    try:
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
    except SignalException as end:
        raise RunFailedError(f"torchrun was ended by {end.sigval.name}; resume the run to go on") from None
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
