"""How a role's process ended, as an error and in words, whatever ran it. Exit codes as `subprocess` has them."""

from __future__ import annotations

import signal

from steelyard.errors import RunFailedError, UserError
from steelyard.process import MISTAKE, last_words


class ServerKilledError(RunFailedError):
    """A signal ended the server: nothing speaks against going on from the recordings."""


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
