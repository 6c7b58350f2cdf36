"""Every measure on numbers small enough to check by hand."""

import math

import numpy as np
import pytest

from steelyard.report.measures import (
    less_suspicious,
    mean_over_rounds,
    norm_suspicion,
    paired_interval,
    ranks,
    root_sum_of_squares,
    shares,
    structure,
)


def test_ranks_count_from_the_highest_and_share_ties() -> None:
    assert ranks(np.array([0.1, 0.4, 0.2])).tolist() == [3, 1, 2]
    assert ranks(np.array([0.2, 0.4, 0.2])).tolist() == [2.5, 1, 2.5]


def test_errors_of_independent_rounds_add_as_squares() -> None:
    assert root_sum_of_squares(np.array([[3.0, 0.0], [4.0, 2.0]])).tolist() == [5.0, 2.0]


def test_shares_of_an_efficient_evaluator() -> None:
    assert shares(np.array([0.3, 0.1, -0.2]), kind="fedsv", validation=300).values == pytest.approx((1.5, 0.5, -1.0))


@pytest.mark.parametrize(
    ("total", "validation", "given"),
    [(0.051, 1000, True), (0.05, 1000, False), (0.09, 100, False), (0.11, 100, True), (-3.0, 1000, False)],
)
def test_shares_need_a_sum_worth_ten_examples_and_five_points(total: float, validation: int, given: bool) -> None:
    result = shares(np.array([total, 0.0]), kind="fedsv", validation=validation)
    assert (result.values is not None) == given
    assert bool(result.reason) != given


def test_leave_one_out_has_no_shares() -> None:
    result = shares(np.array([1.0, 1.0]), kind="loo", validation=100)
    assert (result.values, result.reason) == (None, "the values of loo are not known to add up to the utility")


def test_structure_of_a_swap() -> None:
    # Of the three pairs one is swapped: tau = (2 - 1) / 3, rho = 1 - 6 (1 + 1 + 0) / (3 (9 - 1)) = 1/2.
    result = structure(np.array([0.2, 0.3, 0.5]), np.array([0.3, 0.2, 0.5]), kind="fedsv", validation=1000)
    assert result.kendall == pytest.approx(1 / 3)
    assert result.spearman == pytest.approx(1 / 2)
    assert result.share_distance == pytest.approx(0.2)


def test_structure_renormalizes_the_shares() -> None:
    halved = structure(np.array([0.2, 0.6]), np.array([0.1, 0.3]), kind="fedsv", validation=1000)
    assert halved.share_distance == pytest.approx(0.0)


def test_structure_says_why_something_is_missing() -> None:
    tied = structure(np.array([0.2, 0.2]), np.array([0.1, 0.3]), kind="loo", validation=1000)
    assert (tied.kendall, tied.spearman, tied.share_distance) == (None, None, None)
    assert "loo" in tied.reason
    assert structure(np.array([0.2]), np.array([0.1]), kind="fedsv", validation=1000).kendall is None


def test_less_suspicious_counts_ties_half_and_benign_clients_only() -> None:
    suspicion = {0: 2.0, 1: 1.0, 2: 2.0, 3: 5.0, 4: 0.0}
    assert less_suspicious(suspicion, 0, (1, 2, 3)) == pytest.approx((1 + 0.5 + 0) / 3)
    assert less_suspicious(suspicion, 0, (1, 2, 3, 4)) == pytest.approx(2.5 / 4)


def test_an_absent_client_has_no_suspicion() -> None:
    assert less_suspicious({1: 1.0}, 0, (1,)) is None
    assert less_suspicious({0: 1.0}, 0, (1,)) is None
    assert mean_over_rounds([None, 0.2, 0.4]) == pytest.approx(0.3)
    assert mean_over_rounds([None]) is None


def test_norm_suspicion_is_the_distance_from_the_median() -> None:
    assert norm_suspicion({0: 1.0, 1: 4.0, 5: 2.0}) == {0: 1.0, 1: 2.0, 5: 0.0}
    assert norm_suspicion({}) == {}


def test_the_paired_interval_is_students() -> None:
    # Deviation 1 over 3 seeds; t(0.975, 2) = 4.302653 from any table.
    mean, half = paired_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_pair_says_nothing_about_the_spread() -> None:
    assert paired_interval([0.5]) == (0.5, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        paired_interval([])
