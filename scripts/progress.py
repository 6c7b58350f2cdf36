"""What a person sees while a run goes on: one line per round, read from the run directory as it grows."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rich.control import Control
from rich.segment import ControlType

from scripts.console import make_console
from steelyard.config import Experiment
from steelyard.csv_rows import read_rows
from steelyard.recording import read_events
from steelyard.report.table import print_summary

WIDTH = 110  # of tables that go to a file or a pipe


def command_name() -> str:
    """The command as this process was called, so that what we tell a person to type works where it stands."""
    return sys.argv[0] if Path(sys.argv[0]).name == "steelyard" else "steelyard"


class Progress:
    """Follows run directories; a `deploy.launch.View`."""

    def __init__(self) -> None:
        self._console = make_console(WIDTH)
        self.run: Path | None = None
        self._seen = 0
        self._passing = False  # the terminal's last line is one that the next line takes the place of

    def begin(self, experiment: Experiment, run: Path, honest: Path | None) -> None:
        """Announce a run."""
        self.run = run
        self._experiment = experiment
        attackers, present = experiment.attackers, experiment.clients.present
        self._watched = attackers[0] if attackers else present[0]
        self._honest = _totals(honest, self._watched) if honest else {}
        self._seen = len(read_events(run))
        self._rounds_seen = 0
        self._since: float | None = None
        who = "nobody attacks"
        if len(attackers) == 1:
            who = f"client {self._watched} attacks ({experiment.attack['name']})"
        elif attackers:
            who = f"clients {', '.join(map(str, attackers))} attack ({experiment.attack['name']})"
        clients, rounds = len(present), experiment.rounds
        self.say(f"\n{run}: server and {clients} clients, {rounds} rounds, {who}")
        if self._seen:
            self.say("  an interrupted run is here; it goes on where it stopped")

    def poll(self) -> None:
        """Show the events that came since the last call."""
        assert self.run is not None
        events = read_events(self.run)
        for event in events[self._seen :]:
            self._show(event, events)
        self._seen = len(events)

    def say(self, line: str) -> None:
        """Print one line."""
        self.clear()
        self._console.print(line)

    def finish(self, run: Path) -> None:
        """Print the final table, where the files lie and what to do next."""
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        self._console.print()
        print_summary(summary, self._console)
        self.say(f"\nfiles   {run}/  scores.csv, metrics.csv, events.jsonl, summary.json, recordings/")
        self.say(f"report  {run / 'report.html'}")
        replay = shlex.join([command_name(), "replay", str(run)])
        self.say(f"next    {replay}        recompute every score from the recordings")

    def _show(self, event: dict[str, Any], events: list[dict[str, Any]]) -> None:
        name = event["event"]
        if name == "round_opened" and self._since is None:
            self._since = time.monotonic()  # joining is over: from here on rounds tell how long rounds take
        elif name == "server_started":
            self.say(f"  server at {event['address']}, start {event['incarnation']}")
        elif name == "scoring":
            self._show_scoring(event)
        elif name == "scored":
            self._show_round(event, events)
        elif name == "round_closed" and (event["missing"] or event["void"]):
            self.say(f"  round {event['round']} closed: {event['reason']}")
        elif name == "refused" and event["refusal"] != "ALREADY_LIVE":
            self.say(
                f"  refused: {event['request']} of client {event['client']}: {event['refusal']}: {event['detail']}"
            )

    def _show_scoring(self, event: dict[str, Any]) -> None:
        """How far a long scoring is, on a line that the next one replaces; only a terminal can do that."""
        if self._console.is_terminal:
            self.clear()
            self._console.print(scoring_line(event, self._experiment.rounds), end="")
            self._passing = True

    def clear(self) -> None:
        """Take back a line that was only for the moment."""
        if self._passing:
            self._console.control(Control((ControlType.CARRIAGE_RETURN,), (ControlType.ERASE_IN_LINE, 2)))
            self._passing = False

    def _show_round(self, event: dict[str, Any], events: list[dict[str, Any]]) -> None:
        assert self.run is not None
        number, rounds = event["round"], self._experiment.rounds
        closings = (e for e in reversed(events) if e["event"] == "round_closed" and e["round"] == number)
        closed = next(closings, {"received": (), "missing": ()})  # an earlier version's server may have left it out
        total = _totals(self.run, self._watched).get(number, (0.0, ""))
        value = f"client {self._watched} {total[1]} {total[0]:+.4f}"
        if number in self._honest:
            value += f" (honest {self._honest[number][0]:+.4f})"
        self._rounds_seen += 1
        taken = time.monotonic() - (self._since or time.monotonic())
        left = taken / self._rounds_seen * (rounds - number)
        updates = f"{len(closed['received'])}/{len(closed['received']) + len(closed['missing'])} updates"
        accuracy = f"accuracy {event['accuracy']:.3f}"
        eta = f"ETA {minutes(left)}"
        self.say(
            f"  round {number:>2}/{rounds}  {accuracy}  {value}  {updates}  {event['seconds']:.1f} s scoring  {eta}"
        )


def scoring_line(event: dict[str, Any], rounds: int) -> str:
    """A `scoring` event for a person: coalitions done and in all, and when that many take as long as those before."""
    done, total = event["done"], event["total"]
    left = event["seconds"] / done * (total - done)
    return f"  round {event['round']:>2}/{rounds}  scoring {done} of {total} coalitions  ETA {minutes(left)}"


def minutes(seconds: float) -> str:
    """A duration as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Silent:
    """Shows nothing; for commands that only want the numbers."""

    def begin(self, experiment: Experiment, run: Path, honest: Path | None) -> None:
        """Nothing to show."""

    def poll(self) -> None:
        """Nothing to show."""

    def say(self, line: str) -> None:
        """Nothing to show."""


def _totals(run: Path, client: int) -> dict[int, tuple[float, str]]:
    """A client's running total by round, and the name of the evaluator it is from: the first one of the experiment."""
    path = run / "scores.csv"
    if not path.exists():
        return {}
    rows = read_rows(path, ("round", "client", "evaluator", "value"))
    name = rows[0]["evaluator"] if rows else ""
    totals: dict[int, tuple[float, str]] = {}
    value = 0.0
    for row in rows:
        if row.whole("client") == client and row["evaluator"] == name:
            value += row.number("value")
            totals[row.whole("round")] = (value, name)
    return totals
