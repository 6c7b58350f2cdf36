"""Named randomness: stable for ever, different for every name, and nothing global."""

import random

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given

from steelyard.seeding import derive_seed, numpy_generator, torch_generator

paths = st.lists(st.text(st.sampled_from("ab/%2F0"), max_size=4) | st.integers(0, 20), max_size=3)


def test_seeds_are_the_first_63_bits_of_a_hash_that_anybody_can_take() -> None:
    """`printf 7/client/3 | sha256sum` begins with f0cf1981ab993f17."""
    assert derive_seed(7, "client", 3) == 0xF0CF1981AB993F17 >> 1 == 8676057967001116555
    assert derive_seed(0) == 3456079177858693020
    assert derive_seed(0, "model") == 5558024794847056428
    assert derive_seed(0, "evaluator", "fedsv_accuracy", 1) == 3985795939089422840


def test_every_part_counts() -> None:
    variants = [(0, "client", 3, 1), (1, "client", 3, 1), (0, "attack", 3, 1), (0, "client", 4, 1), (0, "client", 3, 2)]
    longer = [(0, "client", 3), (0, "client"), (0, "client", 31), (0, 3, "client", 1)]
    seeds = {derive_seed(seed, *purpose) for seed, *purpose in variants + longer}
    assert len(seeds) == len(variants + longer)


@given(paths, paths)
def test_different_names_give_different_seeds_wherever_their_slashes_are(
    one: list[str | int], other: list[str | int]
) -> None:
    same = list(map(str, one)) == list(map(str, other))
    assert (derive_seed(0, *one) == derive_seed(0, *other)) == same


def test_a_slash_in_a_name_does_not_make_two_parts_of_it() -> None:
    assert len({derive_seed(0, "a", "b/c"), derive_seed(0, "a/b", "c"), derive_seed(0, "a", "b", "c")}) == 3


def test_every_seed_fits_both_libraries() -> None:
    for seed in range(200):
        assert 0 <= derive_seed(seed) < 2**63


def test_generators_repeat_and_differ_by_name() -> None:
    assert numpy_generator(1, "a").integers(2**40) == numpy_generator(1, "a").integers(2**40)
    assert numpy_generator(1, "a").integers(2**40) != numpy_generator(1, "b").integers(2**40)
    assert torch.equal(
        torch.rand(3, generator=torch_generator(1, "a")), torch.rand(3, generator=torch_generator(1, "a"))
    )
    assert not torch.equal(
        torch.rand(3, generator=torch_generator(1, "a")), torch.rand(3, generator=torch_generator(1, "b"))
    )


def test_the_global_generators_are_left_alone() -> None:
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002 - that it is untouched is the point
    numpy_generator(1, "a").random()
    torch.rand(3, generator=torch_generator(1, "a"))
    assert random.getstate() == before[0]
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002 - see above
    assert torch.equal(torch.get_rng_state(), before[2])
