"""Attacks in update space: what they do to the honest update, by numbers found another way; buffers stay honest."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from client.attacks import Resources, check, make_attack
from client.attacks.alie import quantile_z
from client.attacks.simulation import resample, skewed
from steelyard.errors import UserError
from steelyard.seeding import torch_generator
from steelyard.training import train


def sent(table: dict[str, Any], resources: Resources, state: torch.Tensor) -> torch.Tensor:
    return make_attack(table, resources).update(2, state).update_D


def test_scaling_and_sign_flip_multiply_the_trainable_part(resources: Resources, states: list[torch.Tensor]) -> None:
    # pretend that the last 10 values were running statistics
    buffered = replace(resources)
    buffered.model.layout = replace(resources.model.layout, trainable=resources.model.layout.size - 10)
    honest = sent({"name": "honest"}, buffered, states[0])
    for table, factor in (({"name": "scaling", "factor": 4}, 4), ({"name": "sign_flip", "factor": 0.5}, -0.5)):
        update = sent(table, buffered, states[0])
        assert torch.equal(update[:-10], factor * honest[:-10])
        assert torch.equal(update[-10:], honest[-10:])
    for table in ({"name": "alie"}, {"name": "ipm"}):
        update = sent(table, buffered, states[0])
        assert not torch.equal(update[:-10], honest[:-10])
        assert torch.equal(update[-10:], honest[-10:])


def test_alie_and_ipm_take_mean_and_deviation_of_resampled_updates(
    resources: Resources, states: list[torch.Tensor]
) -> None:
    own = resources
    draws, shuffles = torch_generator(7, "resample", 2), torch_generator(7, "simulate", 2)
    shards = []
    for _ in range(2):
        drawn = torch.randint(40, (40,), generator=draws)
        shards.append((own.images[drawn], own.labels[drawn]))
    a, b = (train(own.model, states[0], x, y, own.training, shuffles) for x, y in shards)
    shifted = (a + b) / 2 - 0.5 * (a - b).abs() / 2**0.5  # the deviation of two numbers is |a - b| / sqrt 2
    assert torch.allclose(sent({"name": "alie", "z": 0.5, "resamples": 2}, own, states[0]), shifted, atol=1e-6)
    reversed_ = sent({"name": "ipm", "epsilon": 0.2, "resamples": 2}, own, states[0])
    assert torch.allclose(reversed_, -0.2 * (a + b) / 2, atol=1e-7)


def test_the_quantile_rule_by_hand() -> None:
    assert quantile_z(50, 24) == pytest.approx(1.4261, abs=1e-4)  # 24 of 26 honest ones: the normal's 0.923 quantile
    assert quantile_z(11, 4) == pytest.approx(0.5659, abs=1e-4)  # 5 of 7: its 0.714 quantile
    for clients, attackers in ((10, 1), (10, 6), (3, 3)):
        with pytest.raises(UserError, match="has no z >= 0"):
            quantile_z(clients, attackers)
    with pytest.raises(UserError, match=r"alie: the quantile rule .* 1 attackers of 10"):
        check({"name": "alie", "rule": "quantile", "assumed_attackers": 1}, public=False)


def test_resampled_shards(resources: Resources) -> None:
    generator = torch_generator(1, "resampled")
    images, labels = resample(resources.images, resources.labels, 500, generator)
    assert images.shape == (500, 1, 8, 8)
    assert set(labels.tolist()) == {0, 1, 2, 3}
    shares = []
    for _ in range(200):
        _, labels = skewed(resources.images, resources.labels, 50, generator)
        shares.append(torch.bincount(labels, minlength=4) / 50)
    assert torch.stack(shares).mean(0).sub(0.25).abs().max() < 0.05  # Dirichlet(1) over 4: mean 1/4, deviation 0.19
    assert float(torch.stack(shares).std(0).mean()) == pytest.approx(0.19, abs=0.04)
