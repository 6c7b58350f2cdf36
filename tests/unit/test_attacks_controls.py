"""The controls: plain training on more data, and nothing else."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from client.attacks import Resources, check, make_attack
from client.attacks.real_samples import RealSamples, RealSamplesParams
from steelyard.errors import UserError
from steelyard.seeding import torch_generator
from steelyard.training import train


def trained(own: Resources, state: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return train(own.model, state, images, labels, own.training, torch_generator(own.seed, "train", 1))


def sent(table: dict[str, Any], own: Resources, state: torch.Tensor) -> torch.Tensor:
    return make_attack(table, own).update(1, state).update_D


def test_own_repeat_trains_on_samples_of_its_own_twice(resources: Resources, states: list[torch.Tensor]) -> None:
    drawn = torch.randint(40, (8,), generator=torch_generator(7, "repeat", 1))
    both = torch.cat([torch.arange(40), drawn])
    expected = trained(resources, states[0], resources.images[both], resources.labels[both])
    assert torch.equal(sent({"name": "own_repeat", "samples": 8}, resources, states[0]), expected)


def test_public_honest_trains_on_the_public_set_or_a_part(resources: Resources, states: list[torch.Tensor]) -> None:
    assert resources.public is not None
    order = torch.randperm(60, generator=torch_generator(7, "public", 1))
    for samples, count in ((0, 60), (5, 5), (99, 60)):
        drawn = order[:count]
        images = torch.cat([resources.images, resources.public[0][drawn]])
        labels = torch.cat([resources.labels, resources.public[1][drawn]])
        expected = trained(resources, states[0], images, labels)
        assert torch.equal(sent({"name": "public_honest", "samples": samples}, resources, states[0]), expected)


def test_real_samples_fills_the_labels_that_the_shard_lacks(resources: Resources, states: list[torch.Tensor]) -> None:
    result = make_attack({"name": "real_samples", "samples": 30, "tilt": 0}, resources).update(1, states[0])
    # the shard holds about ten of each of 0 to 3: 30 samples bring the six others to five each
    assert result.notes["labels"] == "4:5,5:5,6:5,7:5,8:5,9:5"


def test_real_samples_wants_what_the_model_gets_wrong(resources: Resources, states: list[torch.Tensor]) -> None:
    assert resources.public is not None
    images, labels = resources.public
    mask = labels < 2
    favoured = states[0].clone()
    favoured[-10:] = torch.tensor([9.0, -9.0] + [0.0] * 8)  # the last layer's biases: always says 0, never 1
    own = replace(resources, public=(images[mask], labels[mask]))
    own = replace(own, labels=own.labels % 2)  # about as many of 0 as of 1
    result = make_attack({"name": "real_samples", "samples": 20}, own).update(1, favoured)
    assert result.notes["labels"] == "1:20"


def test_every_public_sample_is_used_before_one_comes_again(resources: Resources) -> None:
    control = RealSamples(RealSamplesParams(), resources)
    count = int((control.labels == 3).sum())
    drawn = control._draw(3, 2 * count, torch_generator(1, "draw"))
    assert sorted(drawn.tolist()) == sorted(2 * (control.labels == 3).nonzero().flatten().tolist())
    assert len(set(drawn[:count].tolist())) == count


@pytest.mark.parametrize("name", ["real_samples", "public_honest"])
def test_controls_that_need_the_public_set_say_so_before_anything_runs(name: str, resources: Resources) -> None:
    with pytest.raises(UserError, match=rf'{name} source = "public" needs the public set; declare knowledge'):
        check({"name": name}, public=False)
    with pytest.raises(UserError, match="needs the public set"):
        make_attack({"name": name}, replace(resources, public=None))
