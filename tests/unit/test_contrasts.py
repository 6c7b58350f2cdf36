"""Statistics over seeds on numbers that a person can check, and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from steelyard.report.contrasts import contribution, estimate, holm, non_inferior, paired_t_test
from steelyard.report.measures import lightened


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04; none may fall below a smaller p's: .04 .06 .06 .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_was_no_test_does_not_count() -> None:
    assert holm([None, 0.03, None]) == pytest.approx([None, 0.09, None])


@pytest.mark.parametrize("direction", ["greater", "less", "two-sided"])
def test_the_paired_t_test_is_scipys(direction: str) -> None:
    attacked, honest = np.array([0.3, 0.1, 0.5, 0.2, 0.25]), np.array([0.1, 0.2, 0.1, 0.2, -0.1])
    expected = stats.ttest_rel(attacked, honest, alternative=direction).pvalue
    assert paired_t_test((attacked - honest).tolist(), direction) == pytest.approx(expected, rel=1e-12)  # type: ignore[arg-type]


def test_the_paired_t_test_by_hand() -> None:
    # Differences 1 and 3: mean 2, standard error 1, t = 2 with one degree of freedom, a Cauchy distribution.
    assert paired_t_test([1.0, 3.0], "greater") == pytest.approx(0.5 - math.atan(2) / math.pi)


def test_a_test_without_spread_or_pairs() -> None:
    assert paired_t_test([0.5]) is None
    assert paired_t_test([0.0, 0.0]) == 1.0
    assert paired_t_test([0.0, 0.0], "less") == 0.5
    assert (paired_t_test([0.5, 0.5], "greater"), paired_t_test([0.5, 0.5], "less")) == (0.25, 1.0)
    assert paired_t_test([0.1] * 3) == 0.25, "the sign test's, whatever their mean is rounded to"
    assert paired_t_test([-1.0] * 5, "less") == 1 / 32
    assert paired_t_test([0.85 - 0.80, 0.90 - 0.85, 0.95 - 0.90], "greater") == 1 / 8, "equal but for rounding"


def test_an_estimate_is_students_interval() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    low, high = stats.t.interval(0.95, 2, loc=2.0, scale=1 / math.sqrt(3))
    assert (found.mean, found.low, found.high, found.n) == (2.0, pytest.approx(low), pytest.approx(high), 3)
    assert estimate([]) is None


def test_non_inferiority_looks_at_the_lower_end() -> None:
    # t(0.975, 1) = 12.706: the half width of two values is 6.353 times their distance.
    safe, doubtful = estimate([-0.001, 0.000]), estimate([-0.001, 0.002])
    assert safe is not None
    assert doubtful is not None
    assert (safe.low, doubtful.low) == (pytest.approx(-0.006853, abs=1e-6), pytest.approx(-0.018559, abs=1e-6))
    assert (non_inferior(safe), non_inferior(doubtful)) == (True, False)
    alone = estimate([0.5])
    assert alone is not None
    assert non_inferior(alone) is None


def test_manipulation_is_what_no_worth_matches() -> None:
    # Accuracy .80 without, .85 with the honest client, .88 with the attacker; its score rose by .20.
    found = contribution(0.2, "accuracy", 0.85, 0.88, 0.8)
    assert found is not None
    assert (found.honest, found.attacked, found.gain) == pytest.approx((0.05, 0.08, 0.03))
    assert found.manipulation == pytest.approx(0.17)


def test_a_lower_loss_is_worth_more() -> None:
    found = contribution(0.2, "loss", 0.5, 0.4, 0.7)
    assert found is not None
    assert (found.honest, found.attacked, found.manipulation) == pytest.approx((0.2, 0.3, 0.1))
    assert contribution(0.2, "", 0.5, 0.4, 0.7) is None


def test_lightened_compares_weights_with_samples() -> None:
    # Samples 10 10 20: due weights 1/4 1/4 1/2, and 1/3 2/3 where client 1 is missing.
    weights = [{0: 0.25, 1: 0.25, 2: 0.5}, {0: 0.1, 1: 0.4, 2: 0.5}, {0: 0.0, 2: 1.0}, {1: 0.4, 2: 0.6}]
    assert lightened(weights, [10, 10, 20], 0) == pytest.approx(2 / 3)
    assert lightened(weights, [10, 10, 20], 1) == 0.0
    assert lightened(weights, [10, 10, 20], 2) == pytest.approx(1 / 4)
    assert lightened([{1: 1.0}], [10, 10], 0) is None


def test_unnormalized_weights_are_compared_by_their_part() -> None:
    assert lightened([{0: 3.0, 1: 3.0}, {0: 1.0, 1: 3.0}], [5, 5], 0) == 0.5


def test_lightened_compares_weights_with_what_a_rule_finds_due() -> None:
    weights = [{0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}]
    assert lightened(weights, [30, 10], 0) == 1.0
    assert lightened(weights, [30, 10], 0, [{0: 0.5, 1: 0.5}, {}]) == 0.5, "the second round has none: samples count"
