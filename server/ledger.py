"""What the server writes: events, scores and metrics of a run directory. Knows files, not rounds' rules.

Events are appended and flushed line by line. Scores and metrics are rewritten atomically after every settled round,
so a reader always sees whole rounds, and a server that starts again drops nothing and repeats nothing.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from steelyard.bundle import write_text
from steelyard.csv_rows import Row, read_rows
from steelyard.recording import drop_partial_line, read_events

SCORES = (
    "round",
    "client",
    "evaluator",
    "value",
    "std_error",
    "validation_std_error",
    "total_validation_std_error",
    "subset_std_error",
    "total_subset_std_error",
    "calls",
    "evaluated",
    "converged",
    "seconds",
)
METRICS = (
    "round",
    "accuracy",
    "loss",
    "participants",
    "missing",
    "weights",
    "suspicion",
    "seconds",
    "model_sha256",
)
LISTED = 100  # events of each client, name and round; beyond them every power of two, so that nobody can fill the disk
SUMS = ("count", "bytes", "seconds")  # of a line that stands for several events
Key = tuple[str, int | None, int | None]  # name, client, round


class Ledger:
    """The server's files in one run directory; opening it again after a kill continues them."""

    def __init__(self, run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.run = run
        self._lock = threading.Lock()
        events = run / "events.jsonl"
        drop_partial_line(events)
        self.incarnation: int = 1 + sum(event["event"] == "server_started" for event in read_events(run))
        self._counts: Counter[Key] = Counter()
        self._held: dict[Key, dict[str, Any]] = {}
        self._metrics: Sequence[Mapping[str, str]] = _rows(run / "metrics.csv")
        self._scores: Sequence[Mapping[str, str]] = [
            row for row in _rows(run / "scores.csv") if row.whole("round") <= self.settled_rounds
        ]
        self._events = events.open("a", encoding="utf-8")

    @property
    def settled_rounds(self) -> int:
        """The number of rounds that are closed, aggregated, scored and written down."""
        return len(self._metrics)

    def event(self, name: str, **fields: Any) -> None:
        """Append one event; safe from any thread."""
        line = json.dumps({"time": round(time.time(), 3), "event": name, **fields})
        with self._lock:
            self._events.write(line + "\n")
            self._events.flush()

    def counted(self, name: str, client: int | None, **fields: Any) -> None:
        """Append an event that a client can bring about at will (a refusal, a session, a transfer), if it gets a line.

        `number` is how many events of this name this client (None: nobody known) has had by now: in the round, if
        they are of one. A line stands for `count` of them, itself and those before it that have no line, and has the
        sums of their bytes and seconds: a report adds these up. `tell_held` tells of those that no line came after.
        """
        key = (name, client, fields.get("round"))
        with self._lock:
            self._counts[key] += 1
            number = self._counts[key]
            line = {"client": client, "number": number, "count": 1, **fields}
            held = self._held.pop(key, {})
            line |= {each: held[each] + line[each] for each in SUMS if each in held}
            if number > LISTED and number.bit_count() > 1:
                self._held[key] = line
                return
        self.event(name, **line)

    def tell_held(self, round_number: int | None = None) -> None:
        """Append the lines that `counted` holds back, of one round or all; a server that is killed loses them."""
        with self._lock:
            keys = [key for key in self._held if round_number in (None, key[2])]
            lines = [(key[0], self._held.pop(key)) for key in keys]
        for name, line in lines:
            self.event(name, **line)

    def settle(self, scores: Iterable[Mapping[str, Any]], metrics: Mapping[str, Any]) -> None:
        """Add one round's score rows and its metrics row; metrics last, since they mark the round as settled."""
        all_scores = [*self._scores, *({key: _text(row[key]) for key in SCORES} for row in scores)]
        all_metrics = [*self._metrics, {key: _text(metrics[key]) for key in METRICS}]
        write_text(self.run / "scores.csv", _as_csv(SCORES, all_scores))
        write_text(self.run / "metrics.csv", _as_csv(METRICS, all_metrics))
        self._scores, self._metrics = all_scores, all_metrics

    def close(self) -> None:
        """Close the event log, with all in it."""
        try:
            self.tell_held()
        finally:
            self._events.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close the event log; if that fails as the disk is full, an error that came before says more and goes on."""
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self.close()


def _rows(path: Path) -> list[Row]:
    return read_rows(path, ("round",)) if path.exists() else []


def _as_csv(header: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _text(value: Any) -> str:
    """A cell; every float as Python writes a double, so that it is read back to the last bit."""
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)
