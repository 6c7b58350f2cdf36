"""What happens to BatchNorm's running statistics: averaged like parameters, no part of the geometry, never below 0."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.attacks import Resources, make_attack
from server.acceptance import fault_of
from server.ledger import Ledger
from server.settlement import Settlement
from steelyard import bundle
from steelyard.aggregation.fedavg import fedavg
from steelyard.config import (
    ModelConfig,
    ProtocolConfig,
    RosterEntry,
    ScoringConfig,
    ServerHalf,
    Shape,
    TrainingConfig,
    TransportConfig,
)
from steelyard.models import MODELS, FlatModel
from steelyard.models.layout import variances
from steelyard.recording import ClosedRound, Recordings
from steelyard.scoring.coalitions import all_masks
from steelyard.scoring.evaluation import Evaluation
from steelyard.scoring.utility import Utility
from steelyard.seeding import torch_generator
from steelyard.training import train

SHAPE = Shape(channels=1, height=8, width=8, classes=10)
TRAINABLE, STATISTICS = 18 + 2 + 4 + 1280, 4  # of `normalized`


def normalized(shape: Shape, momentum: float | None = 0.1) -> nn.Module:
    """Conv 1 -> 2 (3x3), batch normalization, a linear layer without bias."""
    return nn.Sequential(
        nn.Conv2d(shape.channels, 2, 3, padding=1),
        nn.BatchNorm2d(2, momentum=momentum),
        nn.Flatten(),
        nn.Linear(2 * shape.height * shape.width, shape.classes, bias=False),
    )


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`normalized` forgets by 0.1 a step; `averaging` takes the plain mean over steps, which needs its counter."""
    monkeypatch.setitem(MODELS, "normalized", normalized)
    monkeypatch.setitem(MODELS, "averaging", lambda shape: normalized(shape, momentum=None))


def data(seed: int, count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch_generator(seed, "data")
    return torch.rand(count, 1, 8, 8, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def trained(model: FlatModel, start_D: torch.Tensor, seed: int) -> torch.Tensor:
    return train(model, start_D, *data(seed), TrainingConfig(batch_size=8), torch_generator(seed, "train"))


# -- training ----------------------------------------------------------------------------------------------------------


def test_statistics_of_one_step_by_hand() -> None:
    """Convolution 0 with biases 5 and -3: means 5 and -3, variances 0; mixed with 0 and 1 by a tenth."""
    model = FlatModel("normalized", SHAPE)
    start = model.initial_state(torch_generator(0, "model"))
    start[:18] = 0
    start[18:20] = torch.tensor([5.0, -3.0])
    config = TrainingConfig(epochs=1, batch_size=20, learning_rate=0.1)
    update = train(model, start, *data(0), config, torch_generator(0, "train"))
    assert update[-4:].tolist() == pytest.approx([0.5, -0.3, -0.1, -0.1])


@pytest.mark.parametrize("name", ["normalized", "averaging"])
def test_training_repeats_whatever_the_network_ran_before(name: str) -> None:
    """Statistics, and the counter that does not travel, are the loaded state's: nothing is left of another client's."""
    model = FlatModel(name, SHAPE)
    start = model.initial_state(torch_generator(0, "model"))
    first = trained(model, start, 1)
    trained(model, start + first, 2)
    assert torch.equal(trained(model, start, 1), first)
    assert torch.equal(trained(FlatModel(name, SHAPE), start, 1), first), "as in a process that starts anew"
    counters = [buffer for buffer in model.module.buffers() if not buffer.is_floating_point()]
    assert [int(counter) for counter in counters] == [6], "2 epochs of 3 batches"
    model.load(start)
    assert [int(counter) for counter in counters] == [0]


def test_a_plain_mean_over_steps_starts_with_every_load() -> None:
    """Without momentum, statistics are the mean of those of a training's own batches, which start from nothing."""
    model = FlatModel("averaging", SHAPE)
    start = model.initial_state(torch_generator(0, "model"))
    start[:18] = 0
    start[18:20] = torch.tensor([5.0, -3.0])
    config = TrainingConfig(epochs=1, batch_size=20, learning_rate=0.1)
    for _ in range(2):
        update = train(model, start, *data(0), config, torch_generator(0, "train"))
        assert (start + update)[-4:].tolist() == pytest.approx([5.0, -3.0, 0.0, 0.0], abs=1e-6)


def test_evaluation_leaves_statistics_alone() -> None:
    model = FlatModel("normalized", SHAPE)
    state = model.initial_state(torch_generator(0, "model"))
    images, labels = data(3)
    Evaluation(model, images, labels, inner_batch=8, path="plain").outcome(state)
    assert torch.equal(model.state, state)


@pytest.mark.parametrize("table", [{"name": "free_rider", "noise": 1.0}, {"name": "random_noise", "target": "update"}])
def test_attacks_on_the_update_do_not_touch_statistics(table: dict[str, Any], tmp_path: Path) -> None:
    images, labels = data(4)
    resources = Resources(
        model=FlatModel("normalized", SHAPE),
        images=images,
        labels=labels,
        public=None,
        training=TrainingConfig(),
        seed=7,
        folder=tmp_path,
    )
    start = resources.model.initial_state(torch_generator(0, "model"))
    attack, honest = make_attack(table, resources), make_attack({"name": "honest"}, replace(resources))
    attack.update(1, start)
    update = attack.update(2, start + 0.01).update_D
    expected = torch.zeros(4) if table["name"] == "free_rider" else honest.update(2, start + 0.01).update_D[-4:]
    assert update[:TRAINABLE].any()
    assert torch.equal(update[-4:], expected)


def test_the_latent_attack_does_a_round_twice_to_the_same_bits(tmp_path: Path) -> None:
    """Its gradients are those of the loaded statistics, also right after it trained, which is another mode."""
    images, labels = data(5, count=40)
    resources = Resources(
        model=FlatModel("normalized", SHAPE),
        images=images,
        labels=labels,
        public=None,
        training=TrainingConfig(),
        seed=7,
        folder=tmp_path / "straight",
    )
    table = {"name": "latent", "samples": 8, "steps": 2, "decoder": {"hidden": 16, "steps": 20}}
    state = resources.model.initial_state(torch_generator(0, "model"))
    straight = make_attack(table, resources)
    for t in (1, 2):
        expected = straight.update(t, state).update_D
        for _ in range(2):
            anew = replace(resources, folder=tmp_path / "anew", model=FlatModel("normalized", SHAPE))
            assert torch.equal(make_attack(table, anew).update(t, state).update_D, expected)
        state = state + expected


# -- coalitions --------------------------------------------------------------------------------------------------------


def round_of_two() -> tuple[FlatModel, Utility, torch.Tensor, list[torch.Tensor]]:
    """Means 1 and 2, variances 4 and 8; client 0 (10 samples) adds 4 to all four, client 1 (30 samples) takes 4 off."""
    model = FlatModel("normalized", SHAPE)
    state = model.initial_state(torch_generator(0, "model"))
    state[-4:] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    updates = [torch.zeros_like(state) for _ in range(2)]
    updates[0][-4:], updates[1][-4:] = 4.0, -4.0
    return model, Utility(model, *data(6), inner_batch=8), state, updates


def test_statistics_of_coalitions_by_hand() -> None:
    _, utility, state, updates = round_of_two()
    game = utility.round(state, updates, [10, 30])
    assert game.coalition_state([])[-4:].tolist() == [1, 2, 4, 8], "the empty coalition has the global model's"
    assert game.coalition_state([0])[-4:].tolist() == [5, 6, 8, 12], "one member's are its own"
    assert game.coalition_state([1])[-4:].tolist() == [-3, -2, 0, 4]
    assert game.coalition_state([0, 1])[-4:].tolist() == [-1, 0, 2, 6], "together: 4 * 10/40 - 4 * 30/40 = -2"
    assert torch.equal(game.coalition_state([0, 1]), fedavg(state, updates, [10, 30])), "the aggregate, bit for bit"


def test_a_coalition_is_scored_with_its_own_statistics() -> None:
    """Updates that change statistics alone change predictions, and so they are paid for."""
    model, utility, state, updates = round_of_two()
    losses = utility.round(state, updates, [10, 30]).view("loss").values(all_masks(2))
    assert len(set(losses.tolist())) == 4
    images, labels = data(6)
    model.load(state + updates[0])
    model.module.eval()
    with torch.no_grad():
        by_hand = nn.functional.cross_entropy(model(images), labels)
    assert losses[1] == pytest.approx(-float(by_hand), rel=1e-5)


def test_a_last_bit_below_zero_counts_as_zero() -> None:
    """Clients of 1, 1 and 7 samples take a variance to 0: rounded, their sum takes away more than there was."""
    model = FlatModel("normalized", SHAPE)
    state = model.initial_state(torch_generator(0, "model"))
    updates = []
    state[-2:] = 1e30
    for _ in range(3):
        updates.append(torch.zeros_like(state))
        updates[-1][-2:] = -1e30
        assert fault_of(0, model.layout.specs, state.numpy(), updates[-1].numpy()) is None
    together = fedavg(state, updates, [1, 1, 7])
    assert together[-1] < 0
    model.load(together)
    assert model.state[-2:].tolist() == [0, 0]
    model.module.eval()
    assert model(data(0)[0]).isfinite().all()


# -- geometry ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_settlement(tmp_path: Path) -> Iterator[Any]:
    """A settlement of three clients on the normalized network, which settles updates [3][D] in a run of its own."""
    ledgers = []

    def settle(name: str, updates: list[torch.Tensor]) -> dict[str, str]:
        half = ServerHalf(
            seed=0,
            rounds=1,
            shape=SHAPE,
            model=ModelConfig(name="normalized"),
            roster=tuple(RosterEntry(client=k, samples=10 * (k + 1)) for k in range(3)),
            evaluators=({"name": "loo", "kind": "loo", "utility": "loss"},),
            scoring=ScoringConfig(),
            protocol=ProtocolConfig(),
            transport=TransportConfig(),
        )
        images, labels = (tensor.numpy() for tensor in data(8))
        arrays = {
            "validation_images": images,
            "validation_labels": labels,
            "test_images": images,
            "test_labels": labels,
        }
        ledgers.append(Ledger(tmp_path / name))
        recordings = Recordings(tmp_path / name)
        settlement = Settlement(half, arrays, recordings, ledgers[-1])
        settlement.write_initial_model()
        for k, update in enumerate(updates):
            bundle.write(recordings.update_file(1, k), settlement.specs, bundle.raw(update.numpy()))
        settlement.settle(ClosedRound(round=1, received=(0, 1, 2), missing=(), void=False, reason="all came"))
        with (tmp_path / name / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return next(csv.DictReader(file))

    yield settle
    for ledger in ledgers:
        ledger.close()


def test_suspicion_does_not_see_statistics_though_the_model_has_them(make_settlement: Any) -> None:
    model = FlatModel("normalized", SHAPE)
    start = model.initial_state(torch_generator(0, "model"))
    updates = [trained(model, start, seed) for seed in range(3)]
    plain = make_settlement("plain", updates)
    updates[1][-4:] += 1e6
    shifted = make_settlement("shifted", updates)
    assert plain["suspicion"] == shifted["suspicion"]
    assert plain["model_sha256"] != shifted["model_sha256"]
    assert plain["loss"] != shifted["loss"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_variances_are_found_by_name_in_every_network() -> None:
    model = FlatModel("normalized", SHAPE)
    assert variances(model.layout.specs) == (("1.running_var", slice(TRAINABLE + 2, TRAINABLE + 4)),)
    assert variances(FlatModel("cnn8", SHAPE).layout.specs) == ()
    for name in ("resnet18", "vgg16_bn"):
        flat = FlatModel(name, Shape(channels=3, height=32, width=32, classes=10))
        by_name = sum(place.stop - place.start for _, place in variances(flat.layout.specs))
        assert 2 * by_name == flat.layout.size - flat.layout.trainable, "half of the statistics are variances"


def test_a_variance_below_zero_is_refused_with_its_place() -> None:
    model = FlatModel("normalized", SHAPE)
    state = model.initial_state(torch_generator(0, "model")).numpy()
    update = np.zeros_like(state)
    update[-3:] = [-1e6, -1.0, -1.0]  # a mean may go anywhere, a variance down to 0
    assert fault_of(2, model.layout.specs, state, update) is None
    update[-1] = np.nextafter(np.float32(-1), np.float32(-2))
    fault = fault_of(2, model.layout.specs, state, update)
    assert fault is not None
    assert fault.refusal == "NEGATIVE_VARIANCE"
    assert fault.detail.startswith("client 2: 1.running_var[1] of at least 0 expected")
    update[-1] = np.nan
    fault = fault_of(2, model.layout.specs, state, update)
    assert fault is not None
    assert fault.refusal == "NOT_FINITE"


def test_nobody_is_refused_for_a_bit_that_an_earlier_sum_lost() -> None:
    model = FlatModel("normalized", SHAPE)
    state = model.initial_state(torch_generator(0, "model"))
    state[-2:] = -1e-9
    for update in (torch.zeros_like(state), trained(model, state, 1)):
        assert fault_of(0, model.layout.specs, state.numpy(), update.numpy()) is None
    lower = torch.zeros_like(state)
    lower[-1] = -1e-9
    assert fault_of(0, model.layout.specs, state.numpy(), lower.numpy()) is not None


def test_honest_training_is_never_refused() -> None:
    """Not even where a variance goes from very large to 0: minus what is taken away is the least it can round to."""
    generator = np.random.default_rng(0)
    before = np.exp(generator.uniform(-60, 60, 10000)).astype(np.float32)
    after = (before * np.exp(generator.uniform(-40, 3, 10000))).astype(np.float32)
    after[:100] = 0
    specs = (bundle.TensorSpec("norm.running_var", "F32", (10000,)),)
    assert fault_of(0, specs, before, after - before) is None
