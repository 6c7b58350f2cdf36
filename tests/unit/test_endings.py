"""How a process ended, in words: one way to say it for every launcher."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from deploy.containers.run import ending_with
from deploy.endings import ServerKilledError, describe, failure, failure_in_one, finished
from steelyard.errors import RunFailedError, UserError, WaitTimeoutError

LOG = "a trace\nsteelyard: a known model expected\n"


@pytest.mark.parametrize(
    ("code", "log", "kind", "words"),
    [
        (2, LOG, UserError, "a known model expected"),
        (1, LOG, RunFailedError, "a known model expected"),
        (1, " \n", RunFailedError, "it left no word"),
        (-9, LOG, ServerKilledError, "the server was ended by SIGKILL; resume the run to go on"),
    ],
)
def test_a_servers_end_is_an_error_that_says_what_to_do(code: int, log: str, kind: type, words: str) -> None:
    error = failure(code, log, "the server")
    assert (type(error), str(error)) == (kind, words)


def test_a_command_is_run_to_its_end_or_to_its_limit() -> None:
    environment = dict(os.environ)
    done = finished(["sh", "-c", "echo out; echo err >&2; exit 3"], "trying", 30.0, environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(WaitTimeoutError, match=r"^trying: not done within 0\.1 s$"):
        finished(["sleep", "60"], "trying", 0.1, environment)
    with pytest.raises(UserError, match=r"^trying: the command no-such-command expected, it is not installed$"):
        finished(["no-such-command"], "trying", 30.0, environment)


def test_anothers_end_is_said_in_words() -> None:
    assert describe(-15, LOG) == "killed by SIGTERM"
    assert describe(1, LOG) == "exit code 1: a known model expected"


def test_an_error_at_the_end_does_not_hide_the_first_one() -> None:
    taken: list[str] = []
    said: list[str] = []

    def step(name: str, error: Exception | None = None) -> None:
        taken.append(name)
        if error is not None:
            raise error

    logs, close = partial(step, "logs", RunFailedError("no engine answers")), partial(step, "close")
    down = partial(step, "down", OSError("broken"))
    with pytest.raises(UserError, match="no such model"), ending_with(said.append, logs, down, close):
        raise UserError("no such model")
    assert taken == ["logs", "down", "close"]
    assert said == ["afterwards: no engine answers", "afterwards: broken"]

    taken.clear()
    with pytest.raises(RunFailedError, match="no engine answers"), ending_with(said.append, logs, close):
        pass
    assert taken == ["logs", "close"]


@pytest.mark.parametrize(
    ("code", "kind", "before", "where"),
    [
        (2, UserError, "", ""),
        (2, UserError, "round 1: WRONG_ROUND: round 1 (FAILED) is current, 1 came\n", ""),
        (1, RunFailedError, 'Traceback (most recent call last):\n  File "x"\n', "; the trace is in {}"),
    ],
)
def test_a_run_in_one_process_names_a_file_where_that_has_a_trace(
    code: int, kind: type[Exception], before: str, where: str, tmp_path: Path
) -> None:
    said, kept = f"{before}steelyard: update_D expected\n", tmp_path / "inline.txt"
    error = failure_in_one(code, said, kept)
    assert (type(error), str(error)) == (kind, "update_D expected" + where.format(kept))
    assert (kept.read_text(encoding="utf-8") if kept.exists() else "") == (said if where else "")
