"""How a process ended, as an error and in words, whatever ran it. Exit codes as `subprocess` has them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from steelyard.errors import RunFailedError, UserError, WaitTimeoutError
from steelyard.process import MISTAKE, last_words


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


def failure(code: int | None, log: str, what: str) -> UserError | RunFailedError:
    """The error of a server that ended without finishing; `what` names what a signal ended."""
    if code == MISTAKE:
        return UserError(last_words(log))
    if code is not None and code < 0:
        return ServerKilledError(f"{what} was ended by {signal.Signals(-code).name}; resume the run to go on")
    return RunFailedError(last_words(log))


def describe(code: int | None, log: str) -> str:
    """Why a process ended, for a person."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}: {last_words(log)}"
