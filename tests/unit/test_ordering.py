"""Networks of comparators against numpy's sort."""

import itertools

import numpy as np
import pytest

from steelyard.scoring import ordering


@pytest.mark.parametrize("n", range(1, 11))
def test_every_order_of_zeros_and_ones_is_sorted(n: int) -> None:
    # A network that sorts every column of zeros and ones sorts everything (Knuth 5.3.4, theorem Z).
    block = np.array(list(itertools.product([0.0, 1.0], repeat=n)), np.float32).T
    for first in range(n):
        for end in range(first + 1, n + 1):
            assert np.array_equal(ordering.ordered(block, first, end), np.sort(block, axis=0)[first:end])


@pytest.mark.parametrize("n", [11, 16, 17, 31, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_rows_and_several_blocks_of_columns(n: int, dtype: type) -> None:
    block = np.random.default_rng(n).normal(size=(n, ordering.WIDTH + 77)).astype(dtype)
    block[:, ::3] = np.round(block[:, ::3])  # equal values, and zeros of both signs, too
    for first, end in ((0, n), (1, n - 1), ((n - 1) // 2, n // 2 + 1)):
        ranks = ordering.ordered(block, first, end)
        assert ranks.dtype == dtype
        assert np.array_equal(ranks, np.sort(block, axis=0)[first:end])


@pytest.mark.parametrize("n", [1, 2, 3, 10, 25])
def test_the_median_has_numpys_bits_in_double_precision(n: int) -> None:
    block = np.random.default_rng(n).normal(size=(n, 1000)).astype(np.float32)
    before = block.copy()
    assert ordering.median(block).tolist() == np.median(block.astype(np.float64), axis=0).tolist()
    assert np.array_equal(block, before)


def test_a_median_needs_few_comparators() -> None:
    assert len(ordering._comparators(10, 4, 6)) < len(ordering._comparators(10, 0, 10)) < 10 * 9 / 2
