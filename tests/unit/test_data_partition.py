"""The four partitions: exact, above the minimum, skewed the way their names say, reproducible."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.config import DataConfig
from steelyard.data.dataset import Indices, Labels
from steelyard.data.partition import PARTITIONS, partition, stratified
from steelyard.errors import UserError
from steelyard.parsing import parse


def config(rule: str, **values: object) -> DataConfig:
    return parse(DataConfig, {"partition": rule, "minimum_per_client": 1, **values}, "[data]")


def deal_out(labels: Labels, count: int, settings: DataConfig, seed: int = 0) -> tuple[Indices, ...]:
    return partition(labels, count, np.random.default_rng(seed), settings)


def balanced(per_label: int, classes: int) -> Labels:
    return np.tile(np.arange(classes), per_label)


def test_the_configuration_names_exactly_the_partitions_that_exist() -> None:
    assert set(get_args(get_type_hints(DataConfig)["partition"])) == set(PARTITIONS)


pools = st.lists(st.integers(0, 9), min_size=1, max_size=300).map(np.array)
seeds = st.integers(0, 2**32)


@settings(deadline=None, max_examples=150)
@given(
    labels=pools,
    count=st.integers(1, 12),
    rule=st.sampled_from(sorted(PARTITIONS)),
    minimum=st.integers(1, 8),
    alpha=st.floats(1e-3, 1e3),
    per_client=st.integers(1, 11),
    seed=seeds,
)
def test_every_partition_is_exact(
    labels: Labels, count: int, rule: str, minimum: int, alpha: float, per_client: int, seed: int
) -> None:
    settings = config(rule, minimum_per_client=minimum, alpha=alpha, labels_per_client=per_client)
    try:
        shards = deal_out(labels, count, settings, seed)
    except UserError:
        assert len(labels) < count * minimum or rule == "labels"
        return
    assert len(labels) >= count * minimum
    assert len(shards) == count
    dealt = np.concatenate(shards)
    assert len(np.unique(dealt)) == len(dealt), "a sample has two owners"
    assert all((np.diff(shard) > 0).all() for shard in shards), "indices are not sorted"
    assert min(map(len, shards)) >= minimum
    if rule == "labels":
        held = {int(label) for label in labels[dealt]}
        assert set(dealt) == set(np.flatnonzero(np.isin(labels, list(held)))), "a label is dealt out only in part"
        assert all(len(np.unique(labels[shard])) <= per_client for shard in shards)
        if count * per_client >= 10:
            assert held == set(labels.tolist())
    else:
        assert set(dealt) == set(range(len(labels)))
    again = deal_out(labels, count, settings, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))


@settings(deadline=None, max_examples=100)
@given(labels=pools, part=st.floats(0, 1), seed=seeds)
def test_a_stratified_draw_keeps_each_labels_part_up_to_rounding(labels: Labels, part: float, seed: int) -> None:
    size = round(part * len(labels))
    drawn = stratified(labels, size, np.random.default_rng(seed))
    assert len(np.unique(drawn)) == size
    exact = np.bincount(labels) * size / len(labels)
    assert (np.abs(np.bincount(labels[drawn], minlength=len(exact)) - exact) < 1).all()


def test_a_stratified_draw_by_hand() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    # half of 6, 3, 1: whole parts 3, 1, 0; remainders 0, 1/2, 1/2: the one left goes to the lower label
    drawn = stratified(labels, 5, np.random.default_rng(0))
    assert np.bincount(labels[drawn], minlength=3).tolist() == [3, 2, 0]


def test_iid_sizes_differ_by_one_at_most() -> None:
    shards = deal_out(balanced(1, 10), 4, config("iid"))
    assert sorted(map(len, shards)) == [2, 2, 3, 3]


def test_labels_by_hand() -> None:
    """4 clients x 2 of 4 labels: each label has 2 holders, who get 10 of its 20 samples each: 20 per client."""
    labels = balanced(20, 4)
    for seed in range(20):
        shards = deal_out(labels, 4, config("labels", labels_per_client=2), seed)
        for shard in shards:
            assert sorted(np.bincount(labels[shard], minlength=4)) == [0, 0, 10, 10]


def test_labels_that_nobody_holds_are_left_out() -> None:
    """2 clients x 1 of 5 labels: two labels are dealt out whole, the others' samples to nobody."""
    labels = balanced(7, 5)
    first, second = deal_out(labels, 2, config("labels", labels_per_client=1))
    assert (len(first), len(second)) == (7, 7)
    assert len(np.unique(labels[first])) == len(np.unique(labels[second])) == 1
    assert labels[first][0] != labels[second][0]


def test_labels_gives_up_when_a_label_is_too_rare_for_the_minimum() -> None:
    labels = np.array([0] * 99 + [1])  # whoever holds label 1 alone has one sample
    with pytest.raises(UserError, match="raise labels_per_client"):
        deal_out(labels, 2, config("labels", labels_per_client=1, minimum_per_client=2))


def test_quantity_gives_the_minimum_first_and_skews_the_rest() -> None:
    """With alpha this small one client gets all of the rest: 100 - 4 x 5 = 80 beyond its own 5."""
    shards = deal_out(balanced(10, 10), 4, config("quantity", alpha=1e-6, minimum_per_client=5))
    assert sorted(map(len, shards)) == [5, 5, 5, 85]


def test_quantity_does_not_skew_labels() -> None:
    labels = balanced(1000, 2)
    for shard in deal_out(labels, 3, config("quantity", alpha=1.0, minimum_per_client=200)):
        assert np.mean(labels[shard]) == pytest.approx(0.5, abs=0.15)  # beyond 4 standard errors of 200 draws


def test_dirichlet_with_a_tiny_alpha_gives_each_label_to_one_client() -> None:
    labels = balanced(30, 10)
    shards = deal_out(labels, 2, config("dirichlet", alpha=1e-6))
    counts_KN = np.stack([np.bincount(labels[shard], minlength=10) for shard in shards], axis=1)
    assert np.sort(counts_KN, axis=1).tolist() == [[0, 30]] * 10


def test_dirichlet_with_a_huge_alpha_is_even() -> None:
    labels = balanced(40, 10)
    for shard in deal_out(labels, 4, config("dirichlet", alpha=1e9)):
        assert np.bincount(labels[shard]) == pytest.approx(10, abs=1)  # a quarter of 40, cut edges rounded down


def test_dirichlet_is_the_more_skewed_the_smaller_alpha() -> None:
    labels = balanced(100, 10)

    def largest_part(alpha: float) -> float:
        """Mean over labels and seeds of the part that a label's largest holder has."""
        parts = [
            max(np.count_nonzero(labels[shard] == label) for shard in deal_out(labels, 10, settings, seed)) / 100
            for settings in [config("dirichlet", alpha=alpha)]
            for seed in range(5)
            for label in range(10)
        ]
        return float(np.mean(parts))

    assert largest_part(0.1) > largest_part(1.0) + 0.1 > largest_part(100.0) + 0.2


def test_dirichlet_is_mended_where_no_draw_reaches_the_minimum() -> None:
    """One label and a tiny alpha: one client gets all 40 in every draw, the other three are short of 10."""
    shards = deal_out(np.zeros(40, np.int64), 4, config("dirichlet", alpha=1e-6, minimum_per_client=10))
    assert [len(shard) for shard in shards] == [10, 10, 10, 10]


@pytest.mark.parametrize("rule", PARTITIONS)
def test_too_few_samples_are_refused_with_the_arithmetic(rule: str) -> None:
    with pytest.raises(UserError, match=r"3 clients x 4 = 12 samples expected, 11 are left"):
        deal_out(np.zeros(11, np.int64), 3, config(rule, minimum_per_client=4))


@pytest.mark.parametrize("rule", PARTITIONS)
def test_another_seed_deals_differently(rule: str) -> None:
    labels = balanced(30, 10)
    one, other = (deal_out(labels, 5, config(rule), seed) for seed in (1, 2))
    assert not np.array_equal(one[0], other[0])
