"""How far estimators of one round's values are off, against the calls that they make: docs/evaluators.md's tables.

    python -m scripts.estimators [games|growth] [--repetitions 200]

`games`: root mean square errors on the four games of ten players in tests/data/games, all 2^10 utilities of which are
known. `growth`: the calls to come within a relative error of 10 % on a saturating game whose values have a closed form,
for 10 to 80 players. One thread; the repetitions' seeds are 0, 1, 2, ...
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.process import run_main
from steelyard.scoring.coalitions import Floats, Game
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.evaluators.banzhaf import banzhaf_coefficients
from steelyard.scoring.evaluators.base import Scores
from steelyard.scoring.evaluators.fedsv import shapley_coefficients
from steelyard.scoring.games import FunctionGame, TableGame, coverage_game

GAMES = Path(__file__).resolve().parents[1] / "tests" / "data" / "games"
NAMES = ("smooth", "rough", "trained_round_accuracy", "trained_round_loss")
CALLS = (40, 100, 200, 400)
PLAYERS = (10, 20, 40, 80)
Table = Mapping[str, Any]
ESTIMATORS: dict[str, Table] = {
    "shapley regression": {"kind": "shapley"},
    "shapley regression, leverage": {"kind": "shapley", "allocation": "leverage"},
    "shapley adjusted": {"kind": "shapley", "method": "adjusted"},
    "shapley antithetic": {"kind": "shapley", "method": "antithetic"},
    "shapley stratified": {"kind": "shapley", "method": "stratified"},
    "shapley permutation": {"kind": "shapley", "method": "permutation"},
    "tmc": {"kind": "tmc"},
    "gtg, no round zeroed": {"kind": "gtg", "round_tolerance": 0.0},
    "gtg_corrected": {"kind": "gtg_corrected"},
    "banzhaf regression": {"kind": "banzhaf"},
    "banzhaf msr": {"kind": "banzhaf", "method": "msr"},
}


def scores(make_game: Callable[[], Game], table: Table, calls: int, repetitions: int) -> list[Scores]:
    """One estimator's scores of a game under as many seeds."""
    params = {**table, "name": "e", "utility": "loss", "calls": calls}
    evaluator = make_evaluators([params])[0].evaluator
    assert not hasattr(evaluator, "fold")
    return [evaluator.evaluate(make_game(), np.random.default_rng(seed)) for seed in range(repetitions)]


def off(results: Sequence[Scores], exact_n: Floats) -> tuple[float, float]:
    """Root mean square error over seeds and players, and how often a 95 % interval holds the exact value."""
    errors = np.array([result.value - exact_n for result in results])
    std_errors = np.array([result.std_error for result in results])
    return float(np.sqrt(np.mean(errors**2))), float(np.mean(np.abs(errors) <= 1.96 * std_errors))


def games(repetitions: int) -> None:
    """Print a row per estimator and game: RMSE x 1000 and coverage at each budget."""
    print("| estimator | game | " + " | ".join(f"{calls} calls" for calls in CALLS) + " |")
    print("|---|---|" + "---|" * len(CALLS))
    for name, table in ESTIMATORS.items():
        for game in NAMES:
            with (GAMES / f"{game}.csv").open(newline="", encoding="utf-8") as file:
                utilities = np.array([float(row["value"]) for row in csv.DictReader(file)])
            weights = banzhaf_coefficients(10) if table["kind"] == "banzhaf" else shapley_coefficients(10)
            cells = []
            for calls in CALLS:
                results = scores(lambda utilities=utilities: TableGame(utilities), table, calls, repetitions)  # type: ignore[misc]
                rmse, covered = off(results, weights @ utilities)
                cells.append(f"{1000 * rmse:.1f} ({100 * covered:.0f} %)")
            print(f"| {name} | {game} | " + " | ".join(cells) + " |", flush=True)


def saturating(players: int, items: int, fraction: float) -> tuple[FunctionGame, Floats]:
    """Items of equal worth, each covered by about that fraction of the players."""
    covers = np.random.default_rng(players).random((items, players)) < fraction
    covers[np.arange(items), np.arange(items) % players] = True
    return coverage_game(covers, [1 / items] * items)


def growth(repetitions: int) -> None:
    """Print the calls that bring the relative error below 10 %, by players; budgets grow by a quarter."""
    print("| estimator | game | " + " | ".join(f"{n} players" for n in PLAYERS) + " |")
    print("|---|---|" + "---|" * len(PLAYERS))
    for name in ("shapley regression", "shapley adjusted", "shapley antithetic"):
        cells = [_calls_for(name, n, 30 * n, 4 / n, repetitions) for n in PLAYERS]
        print(f"| {name} | 30 n items, 4 players each | " + " | ".join(cells) + " |", flush=True)
        cells = [_calls_for(name, n, 300, 0.1, repetitions) for n in PLAYERS]
        print(f"| {name} | 300 items, n / 10 players each | " + " | ".join(cells) + " |", flush=True)


def _calls_for(name: str, players: int, items: int, fraction: float, repetitions: int) -> str:
    """The calls that the first budget took whose relative error is below 10 %."""
    _, exact_n = saturating(players, items, fraction)
    budget, relative, taken = float(players), 1.0, 0.0
    while relative > 0.1 and budget < 4000:
        budget *= 1.25
        results = scores(lambda: saturating(players, items, fraction)[0], ESTIMATORS[name], int(budget), repetitions)
        relative = off(results, exact_n)[0] / float(np.sqrt(np.mean(exact_n**2)))
        taken = float(np.mean([result.calls for result in results]))
    return f"{taken:.0f}" if relative <= 0.1 else f"> {taken:.0f}"


def main() -> int:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(prog="python -m scripts.estimators", description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=["games", "growth"], nargs="?", default="games")
    parser.add_argument("--repetitions", type=int, default=200)
    arguments = parser.parse_args()
    {"games": games, "growth": growth}[arguments.table](arguments.repetitions)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
