"""The error of sampling evaluators against their calls, on games whose every utility is known. Torch-free.

An evaluator samples when its parameters have a budget: `calls`, or `permutations`, of which as many are taken as come
to about that many distinct coalitions. Its reference is the Shapley value where it estimates that, and otherwise its
own value at the full budget.

Legend: n players.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import factorial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from steelyard.csv_rows import read_rows
from steelyard.errors import UserError
from steelyard.scoring.coalitions import Floats, all_masks
from steelyard.scoring.evaluators import EVALUATORS, make_evaluators
from steelyard.scoring.evaluators.base import Fold, Scores
from steelyard.scoring.games import TableGame
from steelyard.seeding import numpy_generator

OF_EXAMPLES = ("fold_median",)  # they look at single validation examples, of which a table has none
SHAPLEY = ("fedsv", "shapley", "tmc", "gtg", "gtg_corrected")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One evaluator on one game at one budget: root mean square error over players and repetitions, mean calls.

    `covered` is how often an interval of +- 1.96 standard errors holds the reference, of those whose error is known;
    nan where none is.
    """

    evaluator: str
    game: str
    budget: int
    rmse: float
    calls: float
    covered: float


def read_games(folder: Path) -> dict[str, Floats]:
    """Complete games, [2^n] utilities each, from CSV files of `coalition` (a bit mask, in order) and `value`.

    Raises:
        UserError: there are none, or one is not complete.
    """
    games = {path.stem: _read_game(path) for path in sorted(folder.glob("*.csv"))}
    if not games:
        raise UserError(f"games as CSV files expected in {folder}, there are none; name their folder with --games")
    return games


def _read_game(path: Path) -> Floats:
    rows = read_rows(path, ("coalition", "value"))
    for mask, row in enumerate(rows):
        if row.whole("coalition") != mask:
            raise row.wrong(f"coalition {mask}", row["coalition"])
        if not math.isfinite(row.number("value")):
            raise row.wrong("a finite value", row["value"])
    if len(rows) < 2 or len(rows).bit_count() != 1:
        raise UserError(
            f"{path}: 2^n rows expected, one per coalition of n players, got {len(rows)}; was the file cut?"
        )
    return np.array([row.number("value") for row in rows])


def errors(games: dict[str, Floats], budgets: tuple[int, ...], repetitions: int) -> Iterator[Estimate]:
    """Every sampling evaluator on every game at every budget that is smaller than the game."""
    for name, table in sampling_evaluators():
        for game_name, utilities in games.items():
            players = len(utilities).bit_length() - 1
            reference_n = _reference(table, utilities)
            for budget in budgets:
                if budget < 2**players:
                    yield _error(name, table, game_name, utilities, budget, repetitions, reference_n)


def sampling_evaluators() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and table, without a budget, of every evaluator of one round's game that has one; each way once."""
    seen = set()
    for kind, (params, evaluator) in EVALUATORS.items():
        known = {field.name for field in fields(params)}
        samples = known & {"calls", "permutations"} and hasattr(evaluator, "evaluate") and kind not in OF_EXAMPLES
        if not samples or evaluator in seen:
            continue
        seen.add(evaluator)
        for method in _methods(params):
            table = {"name": "e", "kind": kind, "utility": "accuracy", **({"method": method} if method else {})}
            yield f"{kind} {method}".strip(), table


def shapley(utilities: Floats) -> Floats:
    """Shapley values [n] of a complete game, by their definition."""
    n = len(utilities).bit_length() - 1
    sizes = all_masks(n).sum(axis=1)
    weights = np.array([factorial(s) * factorial(n - 1 - s) / factorial(n) if s < n else 0.0 for s in range(n + 1)])
    rows = np.arange(2**n)
    values = []
    for k in range(n):
        without = rows[rows >> k & 1 == 0]
        values.append(float((weights[sizes[without]] * (utilities[without | 1 << k] - utilities[without])).sum()))
    return np.array(values)


def _methods(params: type[Any]) -> tuple[str, ...]:
    """The sampling methods that an evaluator's parameters offer; ("",) where there is no choice."""
    hint = get_type_hints(params).get("method")
    if get_origin(hint) is not Literal:
        return ("",)
    return tuple(method for method in get_args(hint) if method not in ("auto", "exact"))


def _with_budget(table: dict[str, Any], budget: int, utilities: Floats) -> dict[str, Any]:
    """The table with the budget; permutations share coalitions, so their number is found by trying."""
    known = {field.name for field in fields(EVALUATORS[table["kind"]][0])}
    if "calls" in known:
        return {**table, "calls": budget}
    fewest = range(2, max(3, budget))
    at = bisect_left(fewest, budget, key=lambda p: _evaluate({**table, "permutations": p}, utilities, 0).calls)
    return {**table, "permutations": fewest[min(at, len(fewest) - 1)]}


def _reference(table: dict[str, Any], utilities: Floats) -> Floats:
    if table["kind"] in SHAPLEY:
        return shapley(utilities)
    return _evaluate(_with_budget(table, len(utilities), utilities), utilities, 0).value


def _evaluate(table: dict[str, Any], utilities: Floats, repetition: int) -> Scores:
    evaluator = make_evaluators([table])[0].evaluator
    assert not isinstance(evaluator, Fold), "a table has no rounds to fold"
    return evaluator.evaluate(TableGame(utilities), numpy_generator(0, "benchmark", table["kind"], repetition))


def _error(
    name: str, table: dict[str, Any], game: str, utilities: Floats, budget: int, repetitions: int, reference_n: Floats
) -> Estimate:
    with_budget = _with_budget(table, budget, utilities)
    runs = [_evaluate(with_budget, utilities, repetition) for repetition in range(repetitions)]
    off = np.array([scores.value - reference_n for scores in runs])
    error = np.array([scores.std_error for scores in runs])
    known = ~np.isnan(error)
    within = np.abs(off)[known] <= 1.96 * error[known]
    return Estimate(
        evaluator=name,
        game=game,
        budget=budget,
        rmse=float(np.sqrt((off**2).mean())),
        calls=float(np.mean([scores.calls for scores in runs])),
        covered=float(within.mean()) if known.any() else float("nan"),
    )
