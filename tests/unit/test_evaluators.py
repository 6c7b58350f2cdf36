"""Leave-one-out and FedSV: axioms, oracles, the honesty of the standard errors, and the experiment's tables."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.config import Experiment
from steelyard.errors import UserError
from steelyard.scoring.coalitions import Floats, all_masks
from steelyard.scoring.evaluators import EVALUATORS, make_evaluators
from steelyard.scoring.evaluators.base import EvaluatorParams, Scores
from steelyard.scoring.evaluators.fedsv import antithetic_orders, shapley_coefficients
from steelyard.scoring.games import (
    FunctionGame,
    TableGame,
    additive_game,
    airport_game,
    glove_game,
    symmetric_voting_game,
    weighted_majority_game,
)
from steelyard.scoring.score import score_round

GAMES = Path(__file__).parents[1] / "data" / "games"


def fedsv(game: Any, seed: int = 0, **params: Any) -> Scores:
    table = {"name": "e", "kind": "fedsv", "utility": "accuracy", **params}
    return make_evaluators([table])[0].evaluator.evaluate(game, np.random.default_rng(seed))


def loo(game: Any) -> Scores:
    table = {"name": "e", "kind": "loo", "utility": "accuracy"}
    return make_evaluators([table])[0].evaluator.evaluate(game, np.random.default_rng(0))


def enumerate_shapley(table: list[float]) -> list[float]:
    """The definition, by a plain loop over the coalitions that each player can join."""
    n = len(table).bit_length() - 1
    shapley = [0.0] * n
    for k in range(n):
        for coalition in range(2**n):
            if not coalition >> k & 1:
                s = coalition.bit_count()
                weight = math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n)
                shapley[k] += weight * (table[coalition | 1 << k] - table[coalition])
    return shapley


def csv_table(name: str) -> list[float]:
    with (GAMES / f"{name}.csv").open(newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file)]


UP_TO_FIVE = st.integers(1, 5)


def tables(players: st.SearchStrategy[int] = UP_TO_FIVE) -> st.SearchStrategy[Floats]:
    values = st.floats(-10, 10, allow_nan=False, width=32)
    return players.flatmap(lambda n: st.lists(values, min_size=2**n, max_size=2**n).map(np.array))


@pytest.mark.parametrize("name", ["smooth", "rough", "trained_round_accuracy", "trained_round_loss"])
def test_exact_values_of_the_ten_player_games(name: str) -> None:
    table = csv_table(name)
    scores = fedsv(TableGame(np.array(table)))
    np.testing.assert_allclose(scores.value, enumerate_shapley(table), rtol=0, atol=1e-13)
    assert scores.calls == 1024
    assert not scores.std_error.any()


@pytest.mark.parametrize("name", ["rough", "trained_round_loss"])
def test_sampled_values_lie_within_their_errors_of_the_exact_ones(name: str) -> None:
    table = csv_table(name)
    scores = fedsv(TableGame(np.array(table)), method="permutation", permutations=100)
    z = (scores.value - enumerate_shapley(table)) / scores.std_error
    assert np.abs(z).max() < 3.5
    assert (scores.std_error > 0).all()
    assert scores.value.sum() == pytest.approx(table[-1] - table[0], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(tables(st.integers(1, 6)))
def test_exact_is_the_enumeration(table: Floats) -> None:
    np.testing.assert_allclose(fedsv(TableGame(table)).value, enumerate_shapley(table.tolist()), atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(tables(), st.sampled_from(["exact", "permutation"]))
def test_efficiency(table: Floats, method: str) -> None:
    """Values sum to V(N) - V(empty), sampled or not."""
    value = fedsv(TableGame(table), method=method, permutations=3).value
    assert value.sum() == pytest.approx(table[-1] - table[0], abs=1e-11)


@settings(max_examples=30, deadline=None)
@given(tables())
def test_symmetry_to_the_bit(table: Floats) -> None:
    """Two players that a game cannot tell apart get the same bits."""
    n = len(table).bit_length() - 1
    masks = np.hstack([all_masks(n), all_masks(n)[:, :1]])

    def either(mask: np.ndarray) -> float:
        first = int(mask[0]) + int(mask[-1])
        rest = int(mask[1:-1] @ (1 << np.arange(1, n))) if n > 1 else 0
        return float(table[rest]) + first * float(table[rest | 1])

    assert masks.shape == (2**n, n + 1)
    value = fedsv(FunctionGame(n + 1, either)).value
    assert value[0] == value[-1]


@settings(max_examples=30, deadline=None)
@given(tables(), st.sampled_from(["exact", "permutation"]))
def test_a_null_player_gets_exactly_nothing(table: Floats, method: str) -> None:
    n = len(table).bit_length() - 1
    doubled = np.concatenate([table, table])  # the last player changes nothing
    assert fedsv(TableGame(doubled), method=method, permutations=3).value[n] == 0.0
    assert loo(TableGame(doubled)).value[n] == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(tables(st.just(n)), tables(st.just(n)))))
def test_linearity(pair: tuple[Floats, Floats]) -> None:
    first, second = pair
    for method in ("exact", "permutation"):
        a, b, both = (
            fedsv(TableGame(t), method=method, permutations=4).value for t in (first, second, 2 * first - second)
        )
        np.testing.assert_allclose(both, 2 * a - b, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: additive_game([0.25, -1.0, 3.0, 0.0, 2.0], empty=4.0),
        lambda: symmetric_voting_game(9, 5),
        lambda: weighted_majority_game(4, 7, 6),
        lambda: glove_game(3, 5),
        lambda: airport_game([1.0, 5.0, 2.0, 8.0, 8.0, 3.5]),
    ],
)
def test_closed_form_games(make: Callable[[], tuple[FunctionGame, Floats]]) -> None:
    game, shapley = make()
    np.testing.assert_allclose(fedsv(game).value, shapley, atol=1e-12)


def test_a_single_pair_of_orders_settles_an_additive_game() -> None:
    game, worth = additive_game(list(range(30)))
    scores = fedsv(game, permutations=2)
    np.testing.assert_allclose(scores.value, worth, atol=1e-12)
    assert scores.calls <= 2 * 2 * 29 + 2
    np.testing.assert_allclose(scores.std_error, 0, atol=1e-12)


def test_leave_one_out_by_hand() -> None:
    #       {}   0    1    01   2    02   12   012
    table = [0.5, 9.0, 9.0, 2.0, 9.0, 3.0, 4.0, 7.0]
    scores = loo(TableGame(np.array(table)))
    assert scores.value.tolist() == [7.0 - 4.0, 7.0 - 3.0, 7.0 - 2.0]
    assert scores.calls == 4


def test_coefficients_by_hand() -> None:
    #                                               {}    0     1    01
    assert shapley_coefficients(2).tolist() == [[-0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5]]
    np.testing.assert_allclose(np.abs(shapley_coefficients(12)).sum(axis=1), 2.0)


def test_every_second_order_is_the_one_before_it_reversed() -> None:
    orders = antithetic_orders(7, 5, np.random.default_rng(1))
    assert np.array_equal(orders[1::2], orders[0::2, ::-1])
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(7), (10, 1)))


def test_the_sampler_is_unbiased_and_its_errors_cover() -> None:
    """2,000 repetitions on one rough game of five players. Far fewer than 50 pairs cover less: their law is skewed."""
    table = np.random.default_rng(11).normal(size=32)
    exact = np.array(enumerate_shapley(table.tolist()))
    runs = [fedsv(TableGame(table), seed=s, method="permutation", permutations=50) for s in range(2000)]
    values, errors = np.array([r.value for r in runs]), np.array([r.std_error for r in runs])
    bias_z = (values.mean(axis=0) - exact) / (values.std(axis=0, ddof=1) / math.sqrt(len(runs)))
    assert np.abs(bias_z).max() < 4
    # The squared error is unbiased for the variance, and Student's 95 % interval of 50 pairs (49 degrees) covers.
    np.testing.assert_allclose((errors**2).mean(axis=0), values.var(axis=0, ddof=1), rtol=0.1)
    covered = (np.abs(values - exact) < 2.010 * errors).mean(axis=0)
    assert ((covered > 0.93) & (covered < 0.97)).all(), covered


@pytest.mark.parametrize("params", [{"method": "exact"}, {"method": "permutation", "permutations": 20}])
def test_the_validation_error_is_what_a_bootstrap_over_examples_finds(params: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(16, 1)) + rng.normal(size=(16, 80)) * rng.uniform(0.5, 2.0, size=(1, 80))
    scores = fedsv(TableGame(table), **params)
    resamples = [table[:, rng.integers(0, 80, 80)] for _ in range(1500)]
    values = np.array([fedsv(TableGame(resample), **params).value for resample in resamples])
    np.testing.assert_allclose(scores.validation_std_error, values.std(axis=0) * math.sqrt(80 / 79), rtol=0.1)


def test_the_validation_error_of_many_coalitions_is_gathered_in_parts() -> None:
    rng = np.random.default_rng(4)
    table = rng.normal(size=(2**10, 30))
    per_example = shapley_coefficients(10) @ table
    expected = per_example.std(axis=1, ddof=1) / math.sqrt(30)
    np.testing.assert_allclose(fedsv(TableGame(table)).validation_std_error, expected, rtol=1e-12)


def test_one_example_cannot_tell_its_own_error() -> None:
    assert np.isnan(loo(TableGame(np.ones((4, 1)))).validation_std_error).all()
    assert loo(TableGame(np.ones(4))).validation_std_error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", ["exact", "permutation"])
@pytest.mark.parametrize("players", [0, 1])
def test_games_of_nobody_and_of_one(players: int, method: str) -> None:
    table = np.array([0.25, 1.0])[: 2**players]
    for scores in (fedsv(TableGame(table), method=method), loo(TableGame(table))):
        assert scores.value.tolist() == [0.75] * players
        assert scores.std_error.tolist() == [0.0] * players
        assert scores.calls == 2 * players


def test_auto_is_exact_up_to_its_limit() -> None:
    table = np.random.default_rng(2).normal(size=2**6)
    assert fedsv(TableGame(table), exact_up_to=6).calls == 64
    assert fedsv(TableGame(table), exact_up_to=5, permutations=2).calls < 64


class TableRound:
    """A round whose views are table games."""

    def view(self, metric: str) -> TableGame:
        sign = 1 if metric == "accuracy" else -1
        return TableGame(sign * np.array(csv_table("rough")))


def test_sampled_scores_replay_from_seed_round_and_name() -> None:
    def run(*names: str, seed: int = 1, round_number: int = 3) -> dict[str, list[float]]:
        shared = {"kind": "fedsv", "utility": "loss", "method": "permutation", "permutations": 5}
        made = make_evaluators([{"name": name, **shared} for name in names])
        results = score_round(TableRound(), made, seed=seed, round_number=round_number)
        return {r.evaluator: r.scores.value.tolist() for r in results}

    alone = run("a")["a"]
    assert run("b", "a")["a"] == alone, "another evaluator changes nothing"
    assert run("b")["b"] != alone
    assert run("a", seed=2)["a"] != alone
    assert run("a", round_number=4)["a"] != alone


def test_the_defaults() -> None:
    made = make_evaluators(Experiment(name="x").evaluators)
    assert [e.name for e in made] == ["fedsv_accuracy", "fedsv_loss", "loo_accuracy", "loo_loss"]
    assert [e.params.utility for e in made] == ["accuracy", "loss", "accuracy", "loss"]
    results = score_round(TableRound(), made, seed=0, round_number=0)
    np.testing.assert_allclose(results[0].scores.value, -results[1].scores.value, atol=1e-13)
    assert [r.scores.calls for r in results] == [1024, 1024, 11, 11]
    assert {table["kind"] for table in Experiment(name="x").evaluators} == {"fedsv", "loo"} < set(EVALUATORS)


def test_the_documents_name_every_key_and_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluators.md").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = {kind: {} for kind in EVALUATORS}
    for row in page.partition("## Keys\n")[2].partition("\n## ")[0].splitlines()[5:]:
        kinds, keys = row.removeprefix("| ").split(" | ")
        base = re.match(r"those of `(\w+)`(?: but `(\w+)`)?", keys)
        inherited = {key: value for key, value in found[base[1]].items() if key != base[2]} if base else {}
        own = {key: json.loads(value) for key, value in re.findall(r'`(\w+)` ("\w+"|[\d.]+)', keys)}
        found |= dict.fromkeys(kinds.strip("`").split("`, `"), inherited | own)
    common = {field.name for field in dataclasses.fields(EvaluatorParams)}
    for kind, (params, _) in EVALUATORS.items():
        assert found[kind] == {f.name: f.default for f in dataclasses.fields(params) if f.name not in common}, kind


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "a", "kind": "fedvs", "utility": "loss"}, "did you mean 'fedsv'"),
        ({"name": "a", "utility": "loss"}, "kind: one of loo, fedsv, .* expected, got None"),
        ({"name": "a", "kind": "loo"}, "'utility' is missing"),
        ({"name": "a", "kind": "loo", "utility": "los"}, "did you mean 'loss'"),
        ({"name": "a", "kind": "loo", "utilty": "loss", "utility": "loss"}, "did you mean 'utility'"),
        ({"name": "a", "kind": "fedsv", "utility": "loss", "permutation": 5}, "did you mean 'permutations'"),
        ({"name": "a", "kind": "fedsv", "utility": "loss", "permutations": 1}, ">= 2 expected, got 1"),
        ({"name": "a/b", "kind": "loo", "utility": "loss"}, "letters, digits"),
        ({"name": "taken", "kind": "loo", "utility": "loss"}, "a name of its own"),
        ({"name": "a", "kind": "fedsv", "utility": "loss", "method": "exact"}, "20 clients take 1048576"),
    ],
)
def test_mistakes_in_a_table_are_named(table: dict[str, Any], message: str) -> None:
    taken = {"name": "taken", "kind": "loo", "utility": "accuracy"}
    with pytest.raises(UserError, match=message):
        make_evaluators([taken, table], clients=20)


def test_evaluators_load_without_torch() -> None:
    code = "import sys, steelyard.scoring.score; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
