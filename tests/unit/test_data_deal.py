"""The deal: disjoint sets, stratified, dependent on the partition seed alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from steelyard.config import Experiment
from steelyard.data.deal import Deal, Shard, deal
from steelyard.data.partition import PARTITIONS
from steelyard.errors import UserError
from steelyard.parsing import parse


def experiment(seed: int = 0, clients: int = 10, **data: Any) -> Experiment:
    return parse(Experiment, {"name": "t", "seed": seed, "data": data, "clients": {"count": clients}}, "t")


def same(one: Shard, other: Shard) -> bool:
    return np.array_equal(one.indices, other.indices) and np.array_equal(one.images, other.images)


def same_shards(one: Deal, other: Deal) -> bool:
    return all(same(a, b) for a, b in zip(one.shards, other.shards, strict=True))


@pytest.mark.parametrize("rule", PARTITIONS)
@pytest.mark.parametrize("samples", [0, 60])
def test_nobody_holds_what_another_holds(rule: str, samples: int) -> None:
    from sklearn.datasets import load_digits

    dealt = deal(experiment(partition=rule, samples_per_client=samples, public=200))
    parts = [*dealt.shards, dealt.validation, dealt.test, dealt.public]
    indices = np.concatenate([part.indices for part in parts])
    assert len(np.unique(indices)) == len(indices)
    assert len(indices) == (1797 if samples == 0 else 300 + 400 + 200 + 10 * 60)
    for part in parts:
        assert part.images.dtype == np.float32
        np.testing.assert_array_equal(part.images[:, 0] * 16, load_digits().images[part.indices])
        np.testing.assert_array_equal(part.labels, load_digits().target[part.indices])


def test_ten_clients_share_what_the_sets_leave_of_digits() -> None:
    dealt = deal(experiment(public=200))
    assert (len(dealt.validation), len(dealt.test), len(dealt.public)) == (300, 400, 200)
    assert sum(map(len, dealt.shards)) == 1797 - 300 - 400 - 200 == 897
    assert min(map(len, dealt.shards)) >= 8
    assert dealt.shape.classes == 10


@pytest.mark.parametrize("public", [100, 200])
def test_validation_test_and_public_are_stratified(public: int) -> None:
    """Digits has each label 174 to 183 times in 1797: in 300, 400, 100, 200 that is 29-31, 38-41, 9-11, 19-21."""
    dealt = deal(experiment(public=public))
    for part, low, high in [
        (dealt.validation, 29, 31),
        (dealt.test, 38, 41),
        (dealt.public, public // 10 - 1, public // 10 + 1),
    ]:
        histogram = part.histogram(10)
        assert histogram.sum() == len(part)
        assert low <= histogram.min() <= histogram.max() <= high


def test_a_histogram_counts_labels_that_are_absent_too() -> None:
    shard = Shard(np.zeros((3, 1, 8, 8), np.float32), np.array([2, 0, 2]))
    assert shard.histogram(4).tolist() == [1, 0, 2, 0]


def test_no_public_set_is_an_empty_one() -> None:
    public = deal(experiment()).public
    assert len(public) == 0
    assert public.images.shape == (0, 1, 8, 8)


def test_the_deal_depends_on_the_partition_seed_alone() -> None:
    one, other = (deal(experiment(seed=seed, partition_seed=7, public=50)) for seed in (1, 2))
    assert same_shards(one, other)
    assert all(same(getattr(one, part), getattr(other, part)) for part in ("validation", "test", "public"))
    plain = deal(experiment(seed=7, public=50))
    assert same_shards(one, plain), "the partition seed defaults to the experiment's"
    assert not same_shards(one, deal(experiment(seed=8, public=50)))


def test_a_public_set_changes_nothing_else_when_shards_have_a_size() -> None:
    without, beside = (deal(experiment(samples_per_client=50, public=public)) for public in (0, 200))
    assert same_shards(without, beside)
    assert same(without.validation, beside.validation)
    assert same(without.test, beside.test)


def test_more_validation_leaves_the_test_set_alone() -> None:
    assert same(deal(experiment(validation=100)).test, deal(experiment(validation=500)).test)


def test_a_mean_shard_size_is_met_in_total() -> None:
    dealt = deal(experiment(clients=4, samples_per_client=100, alpha=0.1))
    sizes = [len(shard) for shard in dealt.shards]
    assert sum(sizes) == 400
    assert len(set(sizes)) > 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"samples_per_client": 110},
            r"1797 samples, but test 400 \+ validation 300 \+ public 0 \+ 10 clients x 110 = 1800",
        ),
        ({"public": 1100}, r"test 400 \+ validation 300 \+ public 1100 \+ 10 clients x at least 8 = 1880"),
        ({"samples_per_client": 7}, r"at least minimum_per_client \(8\) expected, got 7"),
    ],
)
def test_too_small_a_data_set_is_refused_with_the_arithmetic(data: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        deal(experiment(**data))


def test_dealing_needs_no_torch() -> None:
    program = (
        "import sys; from steelyard.config import Experiment; from steelyard.data.deal import deal; "
        "deal(Experiment(name='t')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "False"
