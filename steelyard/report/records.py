"""The files that a finished or unfinished run leaves behind, read back as arrays. Knows formats, draws no conclusions.

Rounds count from 1, so row 0 of an array is round 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from steelyard.bundle import read_arrays
from steelyard.csv_rows import Row, read_rows
from steelyard.errors import UserError
from steelyard.recording import EXAMPLES, Recordings
from steelyard.report.measures import Floats
from steelyard.scoring.evaluators.base import State
from steelyard.scoring.totals import by_evaluator

T = TypeVar("T")

REPLAYED = "scores-replayed.csv"

SCORES = (
    "round",
    "client",
    "evaluator",
    "value",
    "std_error",
    "validation_std_error",
    "calls",
    "evaluated",
    "seconds",
)
METRICS = ("round", "accuracy", "loss", "participants", "missing", "weights", "suspicion", "seconds")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One evaluator's rows of scores.csv: [rounds, clients] each, but `calls` and `seconds` [rounds].

    Those two are a round's, and each of its rows repeats them. `total_validation_std_error` is that of the sum over
    rounds up to each one; files without it, of earlier versions, have the sum of the rounds' errors, an upper bound.
    """

    value: Floats
    std_error: Floats
    validation_std_error: Floats
    total_validation_std_error: Floats
    total_subset_std_error: Floats
    evaluated: Floats
    calls: Floats
    seconds: Floats


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """One row of metrics.csv; accuracy and loss are the global model's on the test set after the round.

    `due` (what each client would weigh if nobody were suspected) and `suspicion` (the rule's own) are empty without a
    defence.
    """

    round: int
    accuracy: float
    loss: float
    participants: tuple[int, ...]
    missing: tuple[int, ...]
    weights: dict[int, float]
    due: dict[int, float]
    norms: dict[int, float]
    cosines: dict[int, float]
    suspicion: dict[int, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Records:
    """What one run directory says. `scores` keeps the evaluators in the order of the file.

    `examples` is, by evaluator, what `steelyard.scoring.totals` kept of the last settled round; empty where it did not.
    """

    folder: Path
    manifest: dict[str, Any]
    scores: dict[str, Scores]
    metrics: tuple[RoundMetrics, ...]
    events: tuple[dict[str, Any], ...]
    examples: dict[str, State]


def read_records(run: Path) -> Records:
    """Read a run directory.

    Raises:
        UserError: a file is missing or is not what the run's documentation says.
    """
    metrics = read_metrics(run)
    kept = Recordings(run).place(len(metrics)) / EXAMPLES
    scores = _read(run / "scores.csv", _scores)
    for name, own in scores.items():
        if len(own.value) != len(metrics):
            raise UserError(
                f"{run}: as many rounds in scores.csv as in metrics.csv expected, got {len(own.value)} of {name} and "
                f"{len(metrics)}"
            )
    return Records(
        folder=run,
        manifest=_read(run / "manifest.json", lambda path: dict(json.loads(path.read_text(encoding="utf-8")))),
        scores=scores,
        metrics=metrics,
        events=_read(run / "events.jsonl", _events),
        examples=by_evaluator(read_arrays(kept)) if kept.exists() else {},
    )


def read_scores(path: Path) -> dict[str, Scores]:
    """Read a file of scores alone, live or replayed, by evaluator in the file's order.

    Raises:
        UserError: it is missing or malformed.
    """
    return _read(path, _scores)


def read_metrics(run: Path) -> tuple[RoundMetrics, ...]:
    """Read metrics.csv alone.

    Raises:
        UserError: it is missing or malformed.
    """
    return _read(run / "metrics.csv", _all_metrics)


def _read(path: Path, reader: Callable[[Path], T]) -> T:
    try:
        return reader(path)
    except FileNotFoundError:
        raise UserError(f"a run directory with {path.name} expected, there is no {path}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not readable as a run's {path.name}: {error}") from None


def _scores(path: Path) -> dict[str, Scores]:
    rows = read_rows(path, SCORES)
    if not rows:
        raise ValueError("a row per round, client and evaluator expected, got none")
    names = list(dict.fromkeys(row["evaluator"] for row in rows))
    return {name: _scores_of([row for row in rows if row["evaluator"] == name], name) for name in names}


def _scores_of(rows: list[Row], name: str) -> Scores:
    cells = {(row.whole("round"), row.whole("client")): row for row in rows}
    rounds = range(1, max(t for t, _ in cells) + 1)
    clients = range(max(k for _, k in cells) + 1)
    if len(cells) != len(rows) or len(rows) != len(rounds) * len(clients):
        raise ValueError(
            f"one row for each of {len(rounds)} rounds and {len(clients)} clients expected of {name}, got {len(rows)}"
        )

    def column(key: str) -> Floats:
        return np.array([[cells[t, k].number(key) for k in clients] for t in rounds], dtype=np.float64)

    def younger(key: str, otherwise: Floats) -> Floats:
        return column(key) if all(row.get(key) for row in rows) else otherwise  # a continued run may have both

    summed: Floats = np.cumsum(column("validation_std_error"), axis=0)
    return Scores(
        value=column("value"),
        std_error=column("std_error"),
        validation_std_error=column("validation_std_error"),
        total_validation_std_error=younger("total_validation_std_error", summed),
        total_subset_std_error=younger("total_subset_std_error", np.zeros(summed.shape)),
        evaluated=column("evaluated"),
        calls=column("calls").max(axis=1),
        seconds=column("seconds").max(axis=1),
    )


def _all_metrics(path: Path) -> tuple[RoundMetrics, ...]:
    rows = read_rows(path, METRICS)
    for number, row in enumerate(rows, 1):
        if row.whole("round") != number:
            raise row.wrong(f"round {number}", row["round"])
    return tuple(_metrics(row) for row in rows)


def _metrics(row: Row) -> RoundMetrics:
    weights = _by_client(row, "weights", (1, 2))
    suspicion = _by_client(row, "suspicion", (2, 3))
    return RoundMetrics(
        round=row.whole("round"),
        accuracy=row.number("accuracy"),
        loss=row.number("loss"),
        participants=_indices(row, "participants"),
        missing=_indices(row, "missing"),
        weights={client: weight for client, (weight, *_) in weights.items()},
        due={client: due[0] for client, (_, *due) in weights.items() if due},
        norms={client: norm for client, (norm, _, *_) in suspicion.items()},
        cosines={client: cosine for client, (_, cosine, *_) in suspicion.items()},
        suspicion={client: own[0] for client, (_, _, *own) in suspicion.items() if own},
        seconds=row.number("seconds"),
    )


def _by_client(row: Row, column: str, sizes: tuple[int, ...]) -> dict[int, list[float]]:
    """The numbers of each client from `client:number:...` groups, as many of them as one of `sizes` says."""
    found = {}
    for group in row[column].split():
        client, *numbers = group.split(":")
        try:
            found[int(client)] = [float(number) for number in numbers]
        except ValueError:
            numbers = []
        if len(numbers) not in sizes:
            shape = " or ".join(":".join(["client", *["number"] * size]) for size in sizes)
            raise row.wrong(f"{shape} in {column}", repr(group))
    return found


def _indices(row: Row, column: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in row[column].split())
    except ValueError:
        raise row.wrong(f"clients' numbers in {column}", repr(row[column])) from None


def _events(path: Path) -> tuple[dict[str, Any], ...]:
    """A killed server may leave half a last line: it never happened."""
    lines: Iterable[str] = path.read_text(encoding="utf-8").split("\n")[:-1]
    return tuple(json.loads(line) for line in lines if line)
