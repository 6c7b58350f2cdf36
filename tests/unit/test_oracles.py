"""Exact values against those of other packages, committed with their versions: tests/data/games/make_oracles.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.benchmarks.estimators import read_games
from steelyard.scoring.coalitions import Floats, all_masks
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.evaluators.base import Fold
from steelyard.scoring.games import TableGame

GAMES = Path(__file__).parents[1] / "data" / "games"
ORACLES: dict[str, Any] = json.loads((GAMES / "oracles.json").read_text(encoding="utf-8"))
TABLES = read_games(GAMES)
CASES = [(package, game) for package, oracle in ORACLES.items() for game in oracle["results"]]


def ours(table: Floats, kind: str, **params: Any) -> Floats:
    """The exact value: a budget of all coalitions."""
    named = make_evaluators([{"name": "e", "kind": kind, "utility": "loss", "calls": len(table), **params}])[0]
    assert not isinstance(named.evaluator, Fold)
    scores = named.evaluator.evaluate(TableGame(table), np.random.default_rng(0))
    assert scores.std_error.tolist() == [0.0] * len(scores.value)
    return scores.value


def largest_part(table: Floats) -> Floats:
    """The largest utility of any part of a coalition, less the empty one's: no player does harm."""
    masks = all_masks(len(table).bit_length() - 1)
    inside = ~(masks[:, None, :] & ~masks[None, :, :]).any(axis=2)  # row: part, column: coalition
    grown: Floats = np.where(inside, table[:, None], -np.inf).max(axis=0) - table[0]
    return grown


def test_the_oracles_are_all_there() -> None:
    sizes = {"pydvl": (64,), "shapiq": (64, 1024), "svfl": (32,)}
    assert set(CASES) == {
        (package, f"{name} {size}") for package in sizes for size in sizes[package] for name in TABLES
    }


@pytest.mark.parametrize(("package", "game"), CASES)
def test_exact_values_are_those_of_other_packages(package: str, game: str) -> None:
    """Shapley, Banzhaf and Beta Shapley to rounding; the least core to the tolerance of pydvl's solvers."""
    name, size = game.split()
    table = TABLES[name][: int(size)]
    scale = np.abs(table - table[0]).max()
    for index, expected in ORACLES[package]["results"][game].items():
        kind, *parameters = index.split()
        tolerance = (1e-4 if kind == "least_core" else 1e-12) * scale
        if kind == "monotone":
            found = ours(largest_part(table), "shapley")
        elif kind == "beta_shapley":
            found = ours(table, kind, alpha=float(parameters[0]), beta=float(parameters[1]))
        else:
            found = ours(table, kind)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=index)
        if kind == "least_core":
            grievances = [(table - table[0] - all_masks(6) @ value)[:-1].max() for value in (found, expected)]
            assert grievances[0] <= grievances[1] + 1e-9, "nobody is treated worse than by the other payment"
