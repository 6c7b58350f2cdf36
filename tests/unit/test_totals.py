"""Errors of totals over validation examples: rounds share the examples, so what counts is the sum on each of them."""

from __future__ import annotations

import numpy as np
import pytest

from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators.base import Scores, example_std_error
from steelyard.scoring.evaluators.fedsv import FedSV, FedSVParams, shapley_coefficients
from steelyard.scoring.games import TableGame
from steelyard.scoring.totals import Totals


def of(examples: list[list[float]], *, whole: bool = False) -> Scores:
    examples_NE = np.array(examples)
    return Scores(
        value=examples_NE.mean(axis=1),
        std_error=np.zeros(len(examples_NE)),
        validation_std_error=example_std_error(examples_NE),
        calls=1,
        examples=examples_NE,
        whole=whole,
    )


def told(error: list[float]) -> Scores:
    nothing = np.zeros(len(error))
    return Scores(value=nothing, std_error=nothing, validation_std_error=np.array(error), calls=1)


def test_rounds_that_say_the_same_of_each_example_add_their_errors_and_opposite_ones_cancel() -> None:
    """Standard deviation of (0, 2) is the root of 2, over the root of 2 examples: 1 a round."""
    totals = Totals(2)
    assert totals.add("e", of([[0.0, 2.0], [0.0, 2.0]])).total_validation_std_error == pytest.approx([1.0, 1.0])
    error = totals.add("e", of([[0.0, 2.0], [2.0, 0.0]])).total_validation_std_error
    assert error == pytest.approx([2.0, 0.0]), "the root of the sum of squares says 1.41 of both"


def test_a_whole_runs_result_takes_the_place_of_the_one_before() -> None:
    totals = Totals(1)
    totals.add("e", of([[5.0, 9.0]], whole=True))
    assert totals.add("e", of([[0.0, 2.0]], whole=True)).total_validation_std_error == pytest.approx([1.0])
    unchanged = told([0.0])
    assert totals.add("e", unchanged).total_validation_std_error == pytest.approx([1.0])


def test_values_that_are_no_means_over_examples_have_a_bound_and_unknown_errors_stay_unknown() -> None:
    totals = Totals(2)
    totals.add("median", told([0.25, 0.5]))
    assert totals.add("median", told([0.5, 0.0])).total_validation_std_error.tolist() == [0.75, 0.5]
    assert np.isnan(totals.add("median", told([np.nan, 0.0])).total_validation_std_error).tolist() == [True, False]
    totals.forget("other")
    assert np.isnan(totals.add("other", of([[0.0, 2.0]] * 2)).total_validation_std_error).all()


def test_a_continued_run_says_the_same() -> None:
    rounds = [of([[0.5, 0.25, 1.0]]), of([[1.0, 0.5, 0.5]])]
    first, second = Totals(1), Totals(1)
    errors = [first.add("e", scores).total_validation_std_error for scores in rounds][-1]
    second.add("e", rounds[0])
    third = Totals(1)
    third.resume(second.arrays())
    assert third.add("e", rounds[1]).total_validation_std_error.tobytes() == errors.tobytes()


def test_the_error_of_a_total_is_its_spread_over_drawn_validation_sets() -> None:
    """Three rounds on one sample of 60 examples from a population: 2,000 samples, against what each says of itself."""
    rng = np.random.default_rng(0)
    population: Floats = rng.random((3, 8, 3000)) + np.linspace(0, 1, 8)[None, :, None] * rng.random(3000)
    params = FedSVParams(name="e", kind="fedsv", utility="accuracy")
    totals, errors = [], []
    for _ in range(2000):
        drawn = rng.integers(3000, size=60)
        totals.append(shapley_coefficients(3) @ population[:, :, drawn].mean(axis=2).sum(axis=0))
    for _ in range(40):
        drawn = rng.integers(3000, size=60)
        run = Totals(3)
        for table in population:
            said = run.add("e", FedSV(params).evaluate(TableGame(table[:, drawn]), rng)).total_validation_std_error
        errors.append(said)
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(totals, axis=0), rtol=0.06)
