"""Local SGD on a network of two weights, small enough for pencil and paper, and its bits on a real one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steelyard.config import Shape, TrainingConfig
from steelyard.models import MODELS, FlatModel
from steelyard.training import evaluate, train

PIXEL = Shape(channels=1, height=1, width=1, classes=2)
DIGITS = Shape(channels=1, height=8, width=8, classes=10)


@pytest.fixture
def pixel(monkeypatch: pytest.MonkeyPatch) -> FlatModel:
    """Two logits, each one weight times one pixel: no bias."""
    monkeypatch.setitem(
        MODELS, "pixel", lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(1, shape.classes, bias=False))
    )
    return FlatModel("pixel", PIXEL)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def config(**changes: float) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 1, "batch_size": 1, "learning_rate": 0.5, **changes})  # type: ignore[arg-type]  # mixed numbers


def test_one_step_by_hand(pixel: FlatModel) -> None:
    """Weights 0, pixel 2, label 0: p = (1/2, 1/2), gradient (p - onehot) * 2 = (-1, 1), step -0.5 * gradient."""
    update = train(pixel, torch.zeros(2), image(2.0), torch.tensor([0]), config(), generator())
    assert update.tolist() == [0.5, -0.5]


def test_one_step_on_a_batch_takes_the_mean(pixel: FlatModel) -> None:
    """Pixels 2 and 4 with labels 0 and 1: mean of (-1, 1) and (2, -2) is (0.5, -0.5)."""
    labels = torch.tensor([0, 1])
    update = train(pixel, torch.zeros(2), image(2.0, 4.0), labels, config(batch_size=2), generator())
    assert update.tolist() == [-0.25, 0.25]


def test_momentum_and_weight_decay_by_hand(pixel: FlatModel) -> None:
    """A black image gives no gradient, so weight decay alone moves the weights: w' = w - lr * decay * w."""
    start = torch.tensor([1.0, -1.0])
    labels = torch.tensor([0])
    once = train(pixel, start, image(0.0), labels, config(weight_decay=0.5), generator())
    assert once.tolist() == [-0.25, 0.25]
    # Second epoch with momentum 0.5: gradient 0.5 * 0.75, plus half the first gradient 0.5; lr 0.5.
    twice = train(pixel, start, image(0.0), labels, config(weight_decay=0.5, momentum=0.5, epochs=2), generator())
    assert twice.tolist() == [-(0.25 + 0.5 * (0.375 + 0.25)), 0.25 + 0.5 * (0.375 + 0.25)]


def test_each_epoch_sees_each_sample_once_in_the_generators_order(pixel: FlatModel) -> None:
    """The same steps by hand: batches of 2 out of 5, the last one of 1, in the generator's order."""
    images, labels = torch.rand(5, 1, 1, 1, generator=generator(1)), torch.tensor([0, 1, 1, 0, 1])
    weights, shuffle = torch.zeros(2, 1), generator(7)
    for _ in range(2):
        order = torch.randperm(5, generator=shuffle)
        for batch in (order[:2], order[2:4], order[4:]):
            x = images[batch].reshape(-1, 1)
            error = torch.softmax(x @ weights.T, 1) - nn.functional.one_hot(labels[batch], 2)
            weights = weights - 0.5 * error.T @ x / len(batch)
    update = train(pixel, torch.zeros(2), images, labels, config(batch_size=2, epochs=2), generator(7))
    torch.testing.assert_close(update, weights.flatten())


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(40, 1, 8, 8, generator=generator(5)), torch.randint(0, 10, (40,), generator=generator(6))


def test_the_same_start_data_and_generator_give_the_same_bits() -> None:
    model, settings = FlatModel("cnn8", DIGITS), TrainingConfig(epochs=2, momentum=0.9)
    start = model.initial_state(generator())
    kept = start.clone()
    first = train(model, start, *data(), settings, generator(3))
    again = train(FlatModel("cnn8", DIGITS), start, *data(), settings, generator(3))
    same_model = train(model, start, *data(), settings, generator(3))
    assert torch.equal(first, again)
    assert torch.equal(first, same_model), "nothing is left over from the training before"
    assert torch.equal(start, kept), "the start is untouched"
    assert not torch.equal(first, train(model, start, *data(), settings, generator(4)))


def test_the_update_is_the_trained_state_minus_the_start_and_nothing_of_the_model() -> None:
    model = FlatModel("cnn8", DIGITS)
    start = model.initial_state(generator())
    update = train(model, start, *data(), TrainingConfig(), generator(3))
    assert torch.equal(update, model.state - start)
    assert not update.requires_grad
    kept = update.clone()
    model.load(start)
    assert torch.equal(update, kept)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.01), (0.9, 0.01)])
def test_a_step_has_the_bits_of_torchs_own_sgd(momentum: float, decay: float) -> None:
    settings = TrainingConfig(epochs=2, momentum=momentum, weight_decay=decay)
    model, (images, labels) = FlatModel("cnn8", DIGITS), data()
    start, shuffle = model.initial_state(generator()), generator(3)
    ours = train(model, start, images, labels, settings, generator(3))
    model.load(start)
    sgd = torch.optim.SGD(model.parameters, settings.learning_rate, momentum=momentum, weight_decay=decay)
    for _ in range(settings.epochs):
        for batch in torch.split(torch.randperm(len(labels), generator=shuffle), settings.batch_size):
            sgd.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            sgd.step()
    assert torch.equal(ours, model.state - start)


def test_nothing_global_is_drawn_from() -> None:
    model = FlatModel("cnn8", DIGITS)
    before = torch.get_rng_state()
    train(model, model.initial_state(generator()), *data(), TrainingConfig(), generator(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_own_vector_is_no_start() -> None:
    """It would be overwritten while it is trained, and the update would be 0."""
    model = FlatModel("cnn8", DIGITS)
    with pytest.raises(AssertionError):
        train(model, model.state, *data(), TrainingConfig(), generator())


def test_accuracy_and_loss_by_hand(pixel: FlatModel) -> None:
    """Weights (1, 0), pixels ln 3, ln 3, -ln 3: p(class 0) = 3/4, 3/4, 1/4; labels 0, 1, 1: losses of 3/4, 1/4, 3/4."""
    three = math.log(3)
    accuracy, loss = evaluate(pixel, torch.tensor([1.0, 0.0]), image(three, three, -three), torch.tensor([0, 1, 1]))
    assert accuracy == 2 / 3
    assert loss == pytest.approx(-(2 * math.log(3 / 4) + math.log(1 / 4)) / 3, rel=1e-6)


def test_more_than_one_inner_batch_counts_every_sample_once(pixel: FlatModel) -> None:
    """501 samples, the last one alone in its batch; without weights each loss is ln 2, and class 0 is said."""
    labels = torch.tensor([0] * 500 + [1])
    accuracy, loss = evaluate(pixel, torch.zeros(2), torch.ones(501, 1, 1, 1), labels)
    assert accuracy == 500 / 501
    assert loss == pytest.approx(math.log(2), rel=1e-6)


def test_evaluating_leaves_the_state_and_a_later_training_alone() -> None:
    model = FlatModel("cnn8", DIGITS)
    start = model.initial_state(generator())
    first = train(model, start, *data(), TrainingConfig(), generator(3))
    evaluate(model, start, *data())
    assert torch.equal(first, train(model, start, *data(), TrainingConfig(), generator(3)))
