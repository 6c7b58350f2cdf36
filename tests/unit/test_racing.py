"""Sampling that ends once the best are settled: what a look needs, how often it is wrong, and the same bits again."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest

from steelyard.errors import UserError
from steelyard.scoring.coalitions import Floats, all_masks
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.evaluators.banzhaf import Msr
from steelyard.scoring.evaluators.base import Fold, Scores
from steelyard.scoring.evaluators.budget import Plan
from steelyard.scoring.evaluators.controlled import Controlled
from steelyard.scoring.evaluators.fedsv import shapley_coefficients
from steelyard.scoring.evaluators.racing import best_are_settled, differences, planned_looks
from steelyard.scoring.evaluators.regression import PairedBanzhaf, PairedRegression
from steelyard.scoring.evaluators.walks import Walks
from steelyard.scoring.games import TableGame
from steelyard.scoring.score import score_round

PLAYERS = 8


def table(**params: Any) -> dict[str, Any]:
    return {"name": "e", "kind": "shapley", "utility": "loss", "calls": 200, "top": 1, **params}


def raced(utilities: Floats, seed: int, **params: Any) -> Scores:
    evaluator = make_evaluators([table(**params)])[0].evaluator
    assert not isinstance(evaluator, Fold)
    return evaluator.evaluate(TableGame(utilities), np.random.default_rng(seed))


def rough(lead: float) -> Floats:
    """A rough game of eight whose best player leads the second by so much."""
    rng = np.random.default_rng(2)
    utilities = 0.2 * rng.normal(size=2**PLAYERS) + all_masks(PLAYERS) @ np.linspace(0.1, 0.8, PLAYERS)
    value = shapley_coefficients(PLAYERS) @ utilities
    order = np.argsort(-value)
    moved: Floats = utilities + all_masks(PLAYERS)[:, order[0]] * (lead - (value[order[0]] - value[order[1]]))
    return moved


def test_looks_are_planned_from_the_budget() -> None:
    assert planned_looks(10, 200) == [88, 133, 200], "no look below 60"
    assert planned_looks(10, 50) == [50]


def test_errors_of_differences_by_hand() -> None:
    """Two errors of 3 and 4: 5 where different draws made them, 1 where the same ones did."""
    assert differences(np.array([[3.0, 0.0], [0.0, 4.0]]))[0, 1] == pytest.approx(5.0)
    assert differences(np.array([[3.0, 0.0], [4.0, 0.0]]))[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: PairedRegression(6, g),
        lambda g: Controlled(6, g),
        lambda g: Walks(6, g, antithetic=True, adjusted=True),
        lambda g: Walks(6, g, antithetic=False),
        lambda g: PairedBanzhaf(6, g),
        lambda g: Msr(6, g),
    ],
)
def test_the_parts_that_plans_tell_are_those_of_their_errors(make: Callable[[np.random.Generator], Plan]) -> None:
    plan = make(np.random.default_rng(0))
    while len(plan) < 40:
        plan.draw()
    estimate = plan.estimate(np.random.default_rng(1).normal(size=len(plan)))
    assert estimate.parts_nm is not None
    np.testing.assert_allclose(np.sqrt((estimate.parts_nm**2).sum(axis=1)), estimate.std_error, rtol=1e-12)


def test_a_lead_must_exceed_its_quantile_of_the_errors() -> None:
    """Normal quantiles: 1.645 at 5 %, 1.960 where two pairs share it; with two degrees of freedom it is 2.92."""
    value, error = np.array([1.8, 0.0]), np.ones((2, 2))
    assert best_are_settled(value, error, inf, top=1, error=0.05)
    assert not best_are_settled(value, error, 2, top=1, error=0.05)
    assert not best_are_settled(value, error, inf, top=1, error=0.02)
    assert not best_are_settled(np.array([1.8, 0.0, 0.0]), np.ones((3, 3)), inf, top=1, error=0.05)
    assert not best_are_settled(value, np.full((2, 2), np.nan), inf, top=1, error=0.05)
    assert best_are_settled(value, error, 2, top=2, error=0.05), "everybody is among the two best"


@pytest.mark.parametrize("method", ["regression", "controlled", "adjusted"])
def test_a_decision_is_wrong_no_more_often_than_allowed(method: str) -> None:
    """The hardest case: the best player leads by next to nothing, and all looks have their chance; 200 runs."""
    utilities = rough(1e-9)
    best = int(np.argmax(shapley_coefficients(PLAYERS) @ utilities))
    found = [raced(utilities, seed, method=method, confidence=0.9) for seed in range(200)]
    wrong = [scores.converged and int(np.argmax(scores.value)) != best for scores in found]
    assert np.mean(wrong) <= 0.1
    assert all(scores.calls >= 200 for scores in found if not scores.converged)


@pytest.mark.parametrize("method", ["regression", "controlled"])
def test_a_clear_lead_is_settled_early_and_rightly(method: str) -> None:
    utilities = rough(0.3)
    best = int(np.argmax(shapley_coefficients(PLAYERS) @ utilities))
    found = [raced(utilities, seed, method=method) for seed in range(50)]
    assert all(scores.converged for scores in found)
    assert np.mean([int(np.argmax(scores.value)) == best for scores in found]) >= 0.95
    assert np.mean([scores.calls for scores in found]) < 130, "of 200"


class Played:
    """All that an evaluator of one round asks a round for."""

    clients = PLAYERS

    def view(self, metric: str) -> TableGame:  # noqa: ARG002 - one game
        return TableGame(rough(0.3))


def test_a_replay_takes_the_calls_that_the_race_came_to() -> None:
    """Whatever it asks for, it is scored with the recorded calls and no look, and gives the same bits."""
    (live,) = score_round(Played(), make_evaluators([table()]), seed=3, round_number=1)  # type: ignore[arg-type]
    assert live.scores.calls < 200
    slower = make_evaluators([table(confidence=0.9999)])
    spent = {"e": live.scores.calls}
    (again,) = score_round(Played(), slower, seed=3, round_number=1, spent=spent)  # type: ignore[arg-type]
    assert again.scores.calls == live.scores.calls
    assert again.scores.value.tobytes() == live.scores.value.tobytes()
    (other,) = score_round(Played(), slower, seed=3, round_number=1)  # type: ignore[arg-type]
    assert other.scores.calls > live.scores.calls


def test_a_race_that_has_a_target_too_replays_its_bits() -> None:
    """A look at the target comes at other lengths in a race than without one; the replay looks at neither."""
    for seed in range(40):
        tables = [table(method="regression", calls=240, target_std_error=0.06)]
        (live,) = score_round(Played(), make_evaluators(tables), seed=seed, round_number=1)  # type: ignore[arg-type]
        spent = {"e": live.scores.calls}
        again, *_ = score_round(Played(), make_evaluators(tables), seed=seed, round_number=1, spent=spent)  # type: ignore[arg-type]
        assert again.scores.calls == live.scores.calls
        assert again.scores.value.tobytes() == live.scores.value.tobytes()


def test_all_coalitions_settle_everything() -> None:
    scores = raced(rough(1e-9), 0, calls=2**PLAYERS)
    assert (scores.calls, scores.converged, scores.std_error.max()) == (2**PLAYERS, True, 0.0)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"confidence: >= 0.5 and <= 0.9999 expected, got 1"):
        make_evaluators([table(confidence=1.0)])
    with pytest.raises(UserError, match="unknown"):
        make_evaluators([{**table(), "kind": "loo"}])
