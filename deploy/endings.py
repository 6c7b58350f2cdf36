"""How a process ended, as an error and in words, whatever ran it. Exit codes as `subprocess` has them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.environment import process_environment
from steelyard.bundle import write_text
from steelyard.errors import RunFailedError, UserError, WaitTimeoutError
from steelyard.process import MISTAKE, last_words

TRACE = "Traceback (most recent call last):"


class ServerKilledError(RunFailedError):
    """A signal ended the server: nothing speaks against going on from the recordings."""


def finished(
    command: Sequence[str], what: str, timeout_s: float, environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, both of its outputs caught; what its exit code means is the caller's.

    Args:
        command: the command's words.
        what: names it in an error.
        timeout_s: seconds after which it is killed.
        environment: its environment.
        folder: where it runs; None: here.

    Raises:
        WaitTimeoutError: it did not end in time.
        UserError: there is no such command.
    """
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise WaitTimeoutError(f"{what}: not done within {timeout_s:g} s") from None
    except FileNotFoundError as error:
        raise UserError(f"{what}: the command {error.filename} expected, it is not installed") from None


def run_child(module: str, *arguments: str, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Have a child process, in the environment of a run's processes, do a command's work to its end.

    It should call `exit_with_launcher`, or it goes on when this process is killed.

    Raises:
        RunFailedError: a signal ended it, so that it could not say why.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=process_environment(), stdout=stdout, text=True, check=False)
    if done.returncode < 0:
        raise RunFailedError(f"the process that did the work was ended by {signal.Signals(-done.returncode).name}")
    return done


def failure(code: int | None, log: str, what: str) -> UserError | RunFailedError:
    """The error of a server that ended without finishing; `what` names what a signal ended."""
    if code == MISTAKE:
        return UserError(last_words(log))
    if code is not None and code < 0:
        return ServerKilledError(f"{what} was ended by {signal.Signals(-code).name}; resume the run to go on")
    return RunFailedError(last_words(log))


def failure_in_one(code: int, said: str, kept: Path) -> UserError | RunFailedError:
    """The error of a run in one process; a bug's trace, and what else it said, is kept in a file."""
    words = last_words(said, f"exit code {code}")
    if TRACE in said:  # without one there may be warnings, of requests that came after the error say
        write_text(kept, said)
        words += f"; the trace is in {kept}"
    return UserError(words) if code == MISTAKE else RunFailedError(words)


def describe(code: int | None, log: str) -> str:
    """Why a process ended, for a person."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}: {last_words(log)}"
