"""The latent attack through the update itself: simulated local training, carriers of labels that a decoder lacks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from client.attacks import Resources, check, make_attack
from client.attacks.coverage import carry
from client.attacks.objective import UpdateObjective
from client.attacks.reference import from_data
from client.attacks.unroll import LocalTraining, call
from steelyard.config import Shape, TrainingConfig
from steelyard.errors import UserError
from steelyard.generators import Decoder, MlpParams, train_decoder
from steelyard.seeding import torch_generator

SHAPE = Shape(channels=1, height=8, width=8, classes=10)
TRAINING = TrainingConfig(learning_rate=0.1, momentum=0.5, weight_decay=0.01)
QUICK: dict[str, Any] = {"samples": 12, "decoder": {"hidden": 32, "steps": 60}, "steps": 4, "granularity": "batch"}


@pytest.fixture
def resources(resources: Resources) -> Resources:
    """The usual client, whose training has every setting of SGD."""
    return replace(resources, training=TRAINING)


@pytest.fixture
def states(resources: Resources) -> list[torch.Tensor]:
    """Global models of two rounds; the second has learnt all ten labels from the public set."""
    start = resources.model.initial_state(torch_generator(1, "initial"))
    assert resources.public is not None
    return [start, start + replace(resources, training=TrainingConfig(epochs=20)).train(1, start, *resources.public)]


@pytest.fixture
def decoder(resources: Resources) -> Decoder:
    return train_decoder(resources.images, resources.labels, SHAPE, MlpParams(hidden=32, steps=60), seed=1)


def test_simulated_training_makes_the_update_that_training_makes(
    resources: Resources, states: list[torch.Tensor]
) -> None:
    assert resources.public is not None
    images, labels = resources.public
    for round_, last in ((1, 0), (2, 3)):
        simulated = LocalTraining(resources=resources, round=round_, global_D=states[1], last=last)(images, labels)
        made = resources.train(
            round_, states[1], torch.cat([resources.images, images]), torch.cat([resources.labels, labels])
        )
        assert torch.allclose(simulated, made, atol=1e-6)
        assert float(made.abs().max()) > 0.01


def test_the_updates_terms_slope_as_finite_differences_say(
    resources: Resources, states: list[torch.Tensor], decoder: Decoder
) -> None:
    assert resources.public is not None
    x, y = resources.public
    own = replace(resources, images=resources.images.double(), public=(x.double(), y))
    own.model.module.double()
    own.model.load(states[1].double())
    double = replace(decoder, weights={name: tensor.double() for name, tensor in decoder.weights.items()})
    labels = torch.tensor([0, 1, 2, 2, 3, 3])
    goal = UpdateObjective(
        training=LocalTraining(resources=own, round=1, global_D=states[1].double()),
        decoder=double,
        carriers=labels,
        labels=labels + 4,
        reference=from_data(own.model, x.double(), y),
        norm=0.3,
    )
    latents = torch.randn(6, decoder.latent, generator=torch_generator(3, "at"), dtype=torch.float64)
    along = torch.randn(6, decoder.latent, generator=torch_generator(4, "along"), dtype=torch.float64)
    for name in ("direction", "magnitude", "task", "prior", "utility"):
        at = latents.clone().requires_grad_()
        (slope,) = torch.autograd.grad(getattr(goal(at), name), [at])
        ahead, behind = (getattr(goal(latents + sign * 1e-5 * along), name).detach() for sign in (1, -1))
        assert slope.abs().max() > 1e-6, name
        assert float((slope * along).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-3), name


def test_training_that_is_differentiated_at_its_end_alone_slopes_less(
    resources: Resources, states: list[torch.Tensor]
) -> None:
    assert resources.public is not None
    images, labels = resources.public
    slopes = []
    for last in (0, 2):
        at = images.clone().requires_grad_()
        update = LocalTraining(resources=resources, round=1, global_D=states[0], last=last)(at, labels)
        (slope,) = torch.autograd.grad(update.square().sum(), [at])
        slopes.append((slope.flatten(1).norm(dim=1) > 0).sum())
    assert slopes[0] == len(labels)
    assert 0 < slopes[1] <= 2 * TRAINING.batch_size


def test_a_carrier_is_what_the_model_comes_nearest_to_taking_for_the_label(
    resources: Resources, states: list[torch.Tensor], decoder: Decoder
) -> None:
    resources.model.load(states[1])
    latents, carriers = carry(resources.model, decoder, 7, 3, torch_generator(5, "carriers"))
    assert set(carriers.tolist()) <= {0, 1, 2, 3}
    taken = functional.softmax(call(resources.model, states[1], decoder(latents, carriers)), dim=1)[:, 7]
    labels = torch.arange(4).repeat_interleave(50)
    usual = functional.softmax(resources.model(decoder.sample(labels, torch_generator(6, "usual"))), dim=1)[:, 7]
    assert taken.min().item() > usual.mean().item()


def test_labels_that_the_decoder_lacks_are_carried_once_a_model_knows_them(
    resources: Resources, states: list[torch.Tensor]
) -> None:
    table = {"name": "decoder_samples", "samples": 12, "labels": "all", "tilt": 0.0, "decoder": QUICK["decoder"]}
    attack = make_attack(table, resources)
    first, second = (attack.update(t, states[t - 1]).notes for t in (1, 2))
    assert first["carried"] == 0
    assert second["carried"] == 12
    assert second["labels"] == "4:2,5:2,6:2,7:2,8:2,9:2"


def test_the_update_is_driven_where_the_evaluator_looks(resources: Resources, states: list[torch.Tensor]) -> None:
    """More of the utility term: the same decoder, labels and first latents, and a better model on the public set."""
    assert resources.public is not None
    x, y = resources.public
    plain = {key: QUICK[key] for key in ("samples", "decoder")} | {"decoder_source": "public"}
    table = plain | {"align": "update", "reference": "public", "granularity": "batch", "steps": 12}
    loss = {}
    for name, attack in (
        ("decoder_samples", {"name": "decoder_samples", **plain}),
        ("latent", {"name": "latent", **table, "weights": {"utility": 1.0}}),
    ):
        update_D = make_attack(attack, resources).update(2, states[1]).update_D
        loss[name] = functional.cross_entropy(call(resources.model, states[1] + update_D, x), y).item()
    assert loss["latent"] < loss["decoder_samples"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"align": "update", "granularity": "class"}, 'set granularity = "batch"'),
        ({"align": "total", "weights": {"utility": 1.0}}, "got 'total' and 'previous_step'"),
        ({"align": "update", "weights": {"utility": 1.0}}, "got 'update' and 'previous_step'"),
    ],
)
def test_settings_that_do_not_go_together_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check({"name": "latent", **table}, public=True)
