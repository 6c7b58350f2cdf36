"""Attacks that predict or simulate: L-BFGS by its equations, ACE through lost rounds, the simulated evaluator."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from client.attacks import Resources, make_attack
from client.attacks.ace import predict
from client.attacks.self_promotion import Evaluator, promote
from steelyard.config import Shape
from steelyard.lbfgs import hessian_times
from steelyard.models import FlatModel
from steelyard.seeding import torch_generator

SHAPE = Shape(channels=1, height=8, width=8, classes=10)


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(1, "numbers"), dtype=torch.float64)


def test_lbfgs_is_the_bfgs_matrix_of_its_pairs() -> None:
    """Against the textbook's rank-two updates of a dense matrix."""
    moves = seeded(3, 6)
    root = seeded(6, 6)
    changes = moves @ (root @ root.T + torch.eye(6))
    matrix = torch.eye(6, dtype=torch.float64) * (changes[-1] @ moves[-1]) / (moves[-1] @ moves[-1])
    for s, y in zip(moves, changes, strict=True):
        bs = matrix @ s
        matrix = matrix - torch.outer(bs, bs) / (s @ bs) + torch.outer(y, y) / (y @ s)
    vector = seeded(7)[1:]
    assert torch.allclose(hessian_times(moves, changes, vector), matrix @ vector)
    assert torch.allclose(hessian_times(moves, changes, moves[-1]), changes[-1])
    concave = torch.cat([changes[:1], -changes[1:2], changes[2:]])
    assert torch.allclose(hessian_times(moves, concave, vector), hessian_times(moves[[0, 2]], changes[[0, 2]], vector))
    assert not hessian_times(moves, -changes, vector).any()


def test_prediction_on_a_parabola_is_exact() -> None:
    """Gradient descent on 2 w^2 with rate 0.1 shrinks w by 0.6 a round: so do its steps."""
    models = torch.tensor([[10.0], [6.0], [3.6], [2.16]])
    assert float(predict(models, torch.tensor([1, 1, 1]))) == pytest.approx(-0.4 * 2.16, abs=1e-5)
    assert float(predict(models[:2], torch.tensor([1]))) == pytest.approx(-4)  # one step: no curvature yet
    # round 2 was missed: a move of -6.4 over two rounds is a step of -3.2 each
    assert float(predict(torch.tensor([[10.0], [3.6]]), torch.tensor([2]))) == pytest.approx(-3.2)


def test_a_correction_is_no_longer_than_the_last_step() -> None:
    models = torch.tensor([[0.0], [1.0], [1.01]])  # curvature 0.99: nothing wild
    step = float(predict(models, torch.tensor([1, 1])))
    assert step == pytest.approx(0.01 - 0.99 * 0.01, abs=1e-6)
    models = torch.tensor([[0.0], [1.0], [-9.0]])  # curvature 11: the correction of 110 is cut to 10
    assert float(predict(models, torch.tensor([1, 1]))) == pytest.approx(-10 + 10)


def test_ace_is_honest_first_and_then_as_long_as_it_was(resources: Resources, states: list[torch.Tensor]) -> None:
    honest = make_attack({"name": "honest"}, resources)
    attack = make_attack({"name": "ace", "honest_rounds": 2, "factor": 1.5}, resources)
    lengths = []
    for t in (1, 2):
        update = attack.update(t, states[t - 1]).update_D
        assert torch.equal(update, honest.update(t, states[t - 1]).update_D)
        lengths.append(float(update.norm()))
    result = attack.update(3, states[2])
    assert result.notes == {"predicts": 1, "steps_seen": 2}
    assert float(result.update_D.norm()) == pytest.approx(1.5 * sum(lengths) / 2, rel=1e-4)
    expected = predict(torch.stack(states[:3]), torch.tensor([1, 1]))
    assert float(functional.cosine_similarity(result.update_D, expected, dim=0)) == pytest.approx(1, abs=1e-5)


def test_ace_survives_missed_and_void_rounds(resources: Resources, states: list[torch.Tensor]) -> None:
    table = {"name": "ace", "honest_rounds": 0, "length": "predicted", "window": 3}
    attack = make_attack(table, resources)
    assert attack.update(1, states[0]).notes == {"predicts": 0, "steps_seen": 0}  # nothing seen yet: honest
    assert attack.update(2, states[0]).notes == {"predicts": 0, "steps_seen": 0}  # void: still nothing
    # round 3 is missed: the model was last seen two rounds ago
    step = attack.update(4, states[1]).update_D
    assert torch.allclose(step, (states[1] - states[0]) / 2)
    assert torch.equal(attack.update(5, states[1]).update_D, step)  # void: the same prediction
    assert attack.update(6, states[2]).notes["steps_seen"] == 2
    assert attack.update(7, states[3]).notes["steps_seen"] == 2  # the window
    assert len(list(resources.folder.iterdir())) == 2


def evaluator(own: Resources, state: torch.Tensor, others: torch.Tensor, sizes: list[int]) -> Evaluator:
    assert own.public is not None
    return Evaluator(
        model=own.model, global_D=state, bases_SD=others, sizes_S=sizes, images=own.public[0], labels=own.public[1]
    )


def test_the_simulated_loss_is_that_of_the_joined_coalitions(resources: Resources, states: list[torch.Tensor]) -> None:
    assert resources.public is not None
    images, labels = resources.public
    others, update = torch.stack([states[1] - states[0], 0 * states[0]]), states[2] - states[0]
    simulated = evaluator(resources, states[0], others, [1, 0])
    joined = [states[0] + (others[0] + update) / 2, states[0] + update]

    def balanced(state: torch.Tensor) -> float:
        resources.model.load(state)
        with torch.no_grad():
            logits = resources.model(images)
        losses = [functional.cross_entropy(logits[labels == c], labels[labels == c]) for c in range(10)]
        return float(sum(losses)) / 10

    loss, slope = simulated.loss(update)
    assert loss == pytest.approx(sum(map(balanced, joined)) / 2, rel=1e-5)
    assert simulated.alone() == pytest.approx((balanced(states[0] + others[0]) + balanced(states[0])) / 2, rel=1e-5)
    direction = slope / slope.norm()
    change = simulated.loss(update + 0.01 * direction)[0] - simulated.loss(update - 0.01 * direction)[0]
    assert change / 0.02 == pytest.approx(float(slope.norm()), rel=0.02)


@pytest.mark.parametrize("others", ["own", "public", "previous_step"])
@pytest.mark.parametrize("validation", ["own", "public"])
def test_promotion_raises_the_simulated_score_within_the_honest_norm(
    others: str, validation: str, resources: Resources, states: list[torch.Tensor]
) -> None:
    table: dict[str, Any] = {"name": "self_promotion", "others": others, "validation": validation, "clients": 3}
    table |= {"steps": 6, "coalitions": 3}
    attack = make_attack(table, resources)
    sources = []
    for t in (1, 2):
        honest = make_attack({"name": "honest"}, resources).update(t, states[t - 1]).update_D
        result = attack.update(t, states[t - 1])
        assert float(result.notes["end_score"]) > float(result.notes["start_score"])
        assert float(result.update_D.norm()) <= float(honest.norm()) * 1.0001
        sources.append(result.notes["others"])
    assert sources == (["own", "previous_step"] if others == "previous_step" else [others, others])


def test_promotion_goes_downhill_and_leaves_buffers_honest(resources: Resources) -> None:
    own = replace(resources, model=FlatModel("cnn32_bn", SHAPE))
    start = own.model.initial_state(torch_generator(1, "initial"))
    simulated = evaluator(own, start, torch.zeros(1, len(start)), [0])
    honest = own.train(1, start, own.images, own.labels)
    before, trainable = honest.clone(), own.model.layout.trainable
    _, slope = simulated.loss(honest)
    promoted = promote(simulated, honest, 1, 0.1)
    assert float((promoted - honest)[:trainable] @ slope) < 0
    assert before[trainable:].any()
    assert torch.equal(promoted[trainable:], before[trainable:])
    assert torch.equal(honest, before)  # it wrote into a copy
