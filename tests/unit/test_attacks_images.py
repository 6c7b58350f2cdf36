"""Attacks that move a client's own images: within their bounds, and the way their gradients say."""

from typing import Any

import pytest
import torch

import client.attacks.base
from client.attacks import Resources, make_attack
from client.attacks.outlier import simba
from client.attacks.perturbation import ascend
from client.attacks.shadow import inner_product
from steelyard.seeding import torch_generator


def trained_images(
    table: dict[str, Any], resources: Resources, state: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The images and labels that the attack trains on, and its notes."""
    seen = []
    real = client.attacks.base.train

    def listening(model: Any, start: Any, images: Any, labels: Any, *rest: Any) -> Any:
        seen.append((images, labels))
        return real(model, start, images, labels, *rest)

    monkeypatch.setattr(client.attacks.base, "train", listening)
    result = make_attack(table, resources).update(1, state)
    assert len(seen) == 1
    return *seen[0], result.notes


def test_the_inner_products_slope_is_a_true_second_derivative(resources: Resources, states: list[torch.Tensor]) -> None:
    """Against central differences in float64: a first-order slope is wrong in almost every pixel."""
    model = resources.model
    model.load(states[0])
    model.module.double()
    generator = torch_generator(1, "images")  # no real digits: their black parts sit exactly on the ReLUs' kinks
    images, labels = torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64), resources.labels[:3]
    direction = torch.randn(model.layout.trainable, generator=torch_generator(1, "direction"), dtype=torch.float64)
    _, slope = inner_product(model, images, labels, direction)
    numeric = torch.zeros_like(images)
    for at in range(images.numel()):
        step = torch.zeros_like(images)
        step.view(-1)[at] = 1e-6
        up, down = (inner_product(model, images + sign * step, labels, direction)[0] for sign in (1, -1))
        numeric.view(-1)[at] = (up - down) / 2e-6
    assert torch.allclose(slope, numeric, rtol=1e-4, atol=1e-5)
    assert float(slope.abs().max()) > 0.1


def test_ascent_stays_within_eps_and_the_pixel_range() -> None:
    images = torch.tensor([0.0, 0.01, 0.5, 0.99]).view(1, 1, 2, 2)
    up = ascend(images, 0.1, 3, torch.ones_like)
    assert torch.allclose(up, torch.tensor([0.1, 0.11, 0.6, 1.0]).view(1, 1, 2, 2))
    down = ascend(images, 0.1, 3, lambda x: -torch.ones_like(x))
    assert torch.allclose(down, torch.tensor([0.0, 0.0, 0.4, 0.89]).view(1, 1, 2, 2))
    assert torch.allclose(ascend(images, 0.1, 5, torch.ones_like), up)  # 2.5 eps in all reaches the bound
    assert torch.equal(ascend(images, 0.1, 5, torch.zeros_like), images)


@pytest.mark.parametrize("reference", ["own", "public"])
def test_shadow_raises_the_product_and_keeps_labels_and_references(
    reference: str, resources: Resources, states: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"name": "shadow", "reference": reference, "models": 3, "eps": 0.05}
    images, labels, notes = trained_images(table, resources, states[0], monkeypatch)
    moved = (images - resources.images).abs().flatten(1).max(1).values
    assert notes["end_product"] > notes["start_product"]
    assert torch.equal(labels, resources.labels)
    assert float(moved.max()) == pytest.approx(0.05, abs=1e-6)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    unmoved = sum(int((resources.labels == label).sum()) // 4 for label in range(4))
    assert int((moved == 0).sum()) == (unmoved if reference == "own" else 0)


@pytest.mark.parametrize("method", ["pgd", "simba"])
def test_outliers_fool_the_global_model_and_keep_their_labels(
    method: str, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = resources.model.initial_state(torch_generator(1, "initial"))
    good = start + make_attack({"name": "own_repeat", "samples": 400}, resources).update(1, start).update_D
    table = {"name": "outlier", "method": method, "eps": 0.3, "queries": 128}
    images, labels, notes = trained_images(table, resources, good, monkeypatch)
    assert notes["wrong_before"] < 0.1
    assert notes["wrong_after"] > 0.5
    assert torch.equal(labels, resources.labels)
    assert float((images - resources.images).abs().max()) == pytest.approx(0.3, abs=1e-6)
    assert (notes["queries"] > 0) == (method == "simba")


def test_simba_asks_each_point_as_often_as_it_may_and_no_more() -> None:
    """A model whose p(0) falls with the images' sum: only subtracting helps, so each pixel costs two questions."""
    asked: list[int] = []

    def probabilities(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        p = 0.6 + 0.01 * images.flatten(1).sum(1)
        return torch.stack([p, 1 - p], 1)

    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    moved, spent = simba(probabilities, images, labels, 0.1, 6, torch_generator(1, "order"))
    assert spent.tolist() == [6, 1]  # label 1 is misclassified as it is
    assert sum(asked) == 7
    assert sorted((moved[0] - 0.5).flatten().tolist()) == pytest.approx([-0.1, -0.1, 0.0, 0.0], abs=1e-6)
    assert torch.equal(moved[1], images[1])
    _, spent = simba(probabilities, images, labels, 0.1, 100, torch_generator(1, "order"))
    assert spent.tolist() == [9, 1]  # every value is visited once
