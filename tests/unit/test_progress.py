"""What a person sees while a round is scored, and how often it is said."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scripts.progress import Progress, scoring_line
from server.settlement import Pace
from steelyard.config import Experiment

EVENT: dict[str, Any] = {"event": "scoring", "round": 2, "done": 250, "total": 1024, "seconds": 50.0}


def test_a_long_task_speaks_after_three_seconds_and_then_every_two() -> None:
    pace = Pace(3.0, 2.0, now=100.0)
    times = (100.0, 102.9, 103.0, 104.9, 106.5, 108.0, 108.5, 108.6)
    assert [pace.due(now) for now in times] == [False, False, True, False, True, False, True, False]
    assert pace.age(106.5) == 6.5


def test_the_eta_of_a_scoring_by_hand() -> None:
    # 250 in 50 s are 0.2 s each; 774 are left: 154.8 s.
    assert scoring_line(EVENT, 8) == "  round  2/8  scoring 250 of 1024 coalitions  ETA 2:34"


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_shows_it_on_a_line_that_the_next_replaces(terminal: bool, tmp_path: Path) -> None:
    progress = Progress()
    shown = io.StringIO()
    progress._console = Console(file=shown, force_terminal=terminal, highlight=False, soft_wrap=True, width=110)
    progress.begin(Experiment(name="x"), tmp_path, None)
    shown.truncate(0)
    with (tmp_path / "events.jsonl").open("w", encoding="utf-8") as events:
        for done in (250, 512):
            events.write(json.dumps({**EVENT, "done": done}) + "\n")
            events.flush()
            progress.poll()
        progress.say("done")
    first, second = (scoring_line({**EVENT, "done": done}, 8) for done in (250, 512))
    erase = "\r\x1b[2K"
    text = shown.getvalue().lstrip("\0")
    assert text == (f"{first}{erase}{second}{erase}done\n" if terminal else "done\n")


def test_a_line_is_said_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "client-9 ended early (exit code 2: [placement] clients = 'cuda:0': a CUDA device expected)"
    Progress().say(line)
    assert capsys.readouterr().out == f"{line}\n"
