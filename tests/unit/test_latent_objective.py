"""The joint loss of the latent attack, its labels and its references, against numbers found another way."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from client.attacks.coverage import choose_labels, label_losses
from client.attacks.objective import Objective, Weights, minimize
from client.attacks.reference import from_data, from_step, gradient, honest_norm
from steelyard.config import Shape, TrainingConfig
from steelyard.generators import Decoder, MlpParams, train_decoder
from steelyard.models import FlatModel
from steelyard.training import train

Digits = tuple[torch.Tensor, torch.Tensor]
SHAPE = Shape(channels=1, height=8, width=8, classes=10)
LABELS = torch.tensor([1, 1, 4, 4, 4, 9])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels[:400] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.tensor(labels[:400], dtype=torch.int64)


@pytest.fixture(scope="module")
def decoder(digits: Digits) -> Decoder:
    return train_decoder(*digits, SHAPE, MlpParams(latent=4, hidden=64, steps=200), seed=1)


@pytest.fixture
def model() -> FlatModel:
    model = FlatModel("cnn8", SHAPE)
    model.initial_state(seeded(2))
    return model


def objective(
    model: FlatModel, decoder: Decoder, digits: Digits, *, by_label: bool = False, total: bool = False
) -> Objective:
    images, labels = digits
    return Objective(
        model=model,
        decoder=decoder,
        carriers=LABELS,
        labels=LABELS,
        reference=from_data(model, images, labels),
        norm=honest_norm(model, images, labels, 16),
        by_label=by_label,
        own_P=gradient(model, images[:50], labels[:50]) if total else None,
        own_share=50 / 56,
    )


@pytest.mark.parametrize("by_label", [False, True])
@pytest.mark.parametrize("total", [False, True])
def test_every_term_slopes_as_finite_differences_say(
    model: FlatModel, decoder: Decoder, digits: Digits, by_label: bool, total: bool
) -> None:
    model.module.double()
    decoder = replace(decoder, weights={name: tensor.double() for name, tensor in decoder.weights.items()})
    goal = objective(model, decoder, (digits[0].double(), digits[1]), by_label=by_label, total=total)
    latents = torch.randn(6, 4, generator=seeded(3), dtype=torch.float64)
    along = torch.randn(6, 4, generator=seeded(4), dtype=torch.float64)
    for name in ("direction", "magnitude", "task", "prior"):
        at = latents.clone().requires_grad_()
        (slope,) = torch.autograd.grad(getattr(goal(at), name), [at])
        step = 1e-6
        ahead, behind = (getattr(goal(latents + sign * step * along), name).detach() for sign in (1, -1))
        assert slope.abs().max() > 1e-5
        assert float((slope * along).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-4)


def test_terms_vanish_where_the_batch_is_its_own_reference(model: FlatModel, decoder: Decoder, digits: Digits) -> None:
    latents = torch.randn(6, 4, generator=seeded(3))
    images = decoder(latents, LABELS)
    mine = gradient(model, images, LABELS)
    goal = objective(model, decoder, digits)
    terms = replace(goal, reference=from_step(-mine), norm=float(mine.norm()))(latents)
    assert terms.direction.item() == pytest.approx(0, abs=1e-5)
    assert terms.magnitude.item() == pytest.approx(0, abs=1e-8)
    assert terms.task.item() == pytest.approx(functional.cross_entropy(model(images), LABELS).item())
    assert terms.prior.item() == pytest.approx(float(latents.square().sum()) / 24)
    against = replace(goal, reference=from_step(mine), norm=float(mine.norm()) / 3)(latents)
    assert against.direction.item() == pytest.approx(2, abs=1e-5)
    assert against.magnitude.item() == pytest.approx(4, rel=1e-5)


def test_the_total_direction_is_that_of_all_the_client_trains_on(
    model: FlatModel, decoder: Decoder, digits: Digits
) -> None:
    images, labels = digits
    latents = torch.randn(6, 4, generator=seeded(3))
    together = gradient(
        model, torch.cat([images[:50], decoder(latents, LABELS)]), torch.cat([labels[:50], LABELS])
    ).detach()
    for by_label in (False, True):
        goal = objective(model, decoder, digits, by_label=by_label, total=True)
        towards = goal.reference.direction_P
        whole = 1 - float(functional.cosine_similarity(together, towards, dim=0))
        batch_only = replace(goal, own_P=None)(latents).direction.item()
        expected = (whole + batch_only) / 2 if by_label else whole
        assert goal(latents).direction.item() == pytest.approx(expected, abs=1e-5)


def test_optimization_lowers_the_objective(model: FlatModel, decoder: Decoder, digits: Digits) -> None:
    weights = Weights()
    start = torch.randn(6, 4, generator=seeded(3))
    for by_label in (False, True):
        goal = objective(model, decoder, digits, by_label=by_label, total=True)
        end = minimize(goal, start, weights, steps=20, rate=0.1)
        assert goal(end).total(weights).item() < 0.95 * goal(start).total(weights).item()


def test_weights_weigh_the_terms(model: FlatModel, decoder: Decoder, digits: Digits) -> None:
    terms = objective(model, decoder, digits)(torch.randn(6, 4, generator=seeded(3)))
    total = terms.total(Weights(direction=2, magnitude=3, task=5, prior=7))
    by_hand = 2 * terms.direction + 3 * terms.magnitude + 5 * terms.task + 7 * terms.prior
    assert total.item() == pytest.approx(by_hand.item())


def test_reference_counts_every_label_the_same(model: FlatModel, digits: Digits) -> None:
    images, labels = digits
    zeros, ones = images[labels == 0][:9], images[labels == 1][:1]
    reference = from_data(model, torch.cat([zeros, ones]), torch.tensor([0] * 9 + [1]))
    zero, one = gradient(model, zeros, torch.zeros(9).long()), gradient(model, ones, torch.ones(1).long())
    assert torch.allclose(reference.direction_P, (zero + one) / 2)
    assert torch.equal(reference.of(1), one)
    assert torch.equal(reference.of(7), reference.direction_P)


def test_chosen_labels_fill_the_histogram_up() -> None:
    even = torch.tensor([1.0, 1, 1])
    assert choose_labels(torch.tensor([3, 0, 1]), even, 4).tolist() == [1, 1, 1, 2]  # to 3, 3, 2
    assert choose_labels(torch.tensor([0, 0, 0]), torch.tensor([1.0, 2, 0]), 3).tolist() == [0, 1, 1]  # to 1 : 2 : 0


def test_a_label_that_the_model_was_never_taught_is_chosen(model: FlatModel, decoder: Decoder, digits: Digits) -> None:
    images, labels = digits
    taught = labels != 7
    start = model.state.clone()
    config = TrainingConfig(epochs=5, learning_rate=0.1)
    model.load(start + train(model, start, images[taught], labels[taught], config, seeded(5)))
    losses = label_losses(model, decoder, seeded(6))
    assert int(losses.argmax()) == 7
    chosen = choose_labels(torch.full((10,), 8), losses, 16)
    assert int((chosen == 7).sum()) >= 8


def test_a_label_that_the_decoder_lacks_is_never_chosen(model: FlatModel, digits: Digits) -> None:
    images, labels = digits
    keep = (labels == 2) | (labels == 6)
    lacking = train_decoder(images[keep], labels[keep], SHAPE, MlpParams(hidden=16, steps=10), seed=1)
    losses = label_losses(model, lacking, seeded(6))
    assert losses.nonzero().flatten().tolist() == [2, 6]
    assert set(choose_labels(torch.zeros(10), losses, 20).tolist()) == {2, 6}
