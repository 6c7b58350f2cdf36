"""Coalition models on a real network: numbers by hand, and bits that depend on the mask alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from steelyard.aggregation.fedavg import fedavg
from steelyard.config import EVALUATORS, Shape
from steelyard.models import FlatModel
from steelyard.scoring.coalitions import all_masks
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.outcome import MAX_LOSS
from steelyard.scoring.paths import PATHS
from steelyard.scoring.score import score_round
from steelyard.scoring.utility import RoundGame, Utility

DIGITS = Shape(channels=1, height=8, width=8, classes=10)
SAMPLES = [40, 25, 60, 10]
ON_THE_CPU = [path for path, kind in PATHS.items() if "cpu" in kind.devices]


def random_round(
    inner_batch: int = 16, examples: int = 50, path: str = "plain"
) -> tuple[RoundGame, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    model = FlatModel("cnn8", DIGITS)
    state = model.initial_state(generator)
    updates = [0.05 * torch.randn(model.layout.size, generator=generator) for _ in SAMPLES]
    images = torch.rand(examples, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (examples,), generator=generator)
    utility = Utility(model, images, labels, inner_batch=inner_batch, path=path)
    return utility.round(state, updates, SAMPLES), state, updates


def bias_round() -> RoundGame:
    """A cnn8 whose weights are all 0, so that its logits are the last layer's bias whatever the image.

    Labels: five 0, three 1, two 2. The global model says class 9; clients 0, 1, 2 (equal samples) push class 0 by 6,
    class 1 by 4, class 2 by 3. A coalition says the class of its first member, so its accuracy is 0.5, 0.3 or 0.2.
    """
    model = FlatModel("cnn8", DIGITS)
    state = torch.zeros(model.layout.size)
    state[-1] = 0.5
    updates = [torch.zeros(model.layout.size) for _ in range(3)]
    for k, push in enumerate((6.0, 4.0, 3.0)):
        updates[k][-10 + k] = push
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    return Utility(model, torch.rand(10, 1, 8, 8), labels, inner_batch=4).round(state, updates, [7, 7, 7])


def test_a_real_round_that_is_an_airport_game_by_hand() -> None:
    game = bias_round()
    assert game.view("accuracy").values(all_masks(3)).tolist() == [0.0, 0.5, 0.3, 0.5, 0.2, 0.5, 0.3, 0.5]
    fedsv, fedsv_loss, loo, _ = (
        result.scores for result in score_round(game, make_evaluators(EVALUATORS), seed=0, round_number=1)
    )
    # Airport: the first stretch of 0.2 is shared by three, the next 0.1 by two, the last 0.2 is client 0's alone.
    assert fedsv.value == pytest.approx([0.2 / 3 + 0.1 / 2 + 0.2, 0.2 / 3 + 0.1 / 2, 0.2 / 3])
    assert loo.value.tolist() == [0.5 - 0.3, 0.0, 0.0]
    # Without client 0 five examples lose 1, three gain 1, two stay: mean 0.2, variance (8 - 10 * 0.04) / 9.
    assert loo.validation_std_error == pytest.approx([math.sqrt(7.6 / 9 / 10), 0.0, 0.0])
    assert (fedsv.calls, loo.calls) == (8, 4)
    # Loss: logits are the biases; together (2, 4/3, 1, 0 x 6, 0.5), so log sum exp minus the mean true logit.
    together = math.log(math.exp(2) + math.exp(4 / 3) + math.exp(1) + 6 + math.exp(0.5)) - (5 * 2 + 3 * 4 / 3 + 2) / 10
    alone = math.log(9 + math.exp(0.5))
    assert fedsv_loss.value.sum() == pytest.approx(alone - together, rel=1e-6)


def test_values_are_those_of_a_plain_forward_pass() -> None:
    game, state, updates = random_round()
    utility_images = torch.cat(game._utility._evaluation._path._images).contiguous()
    labels = torch.cat(game._utility._evaluation._labels)
    model = FlatModel("cnn8", DIGITS)
    masks = all_masks(4)
    accuracy, loss = game.view("accuracy").values(masks), game.view("loss").values(masks)
    for row, mask in enumerate(masks):
        members = [k for k in range(4) if mask[k]]
        total = sum(SAMPLES[k] for k in members)
        model.load(state + sum(updates[k] * (SAMPLES[k] / total) for k in members))
        with torch.no_grad():
            logits = model(utility_images)
        assert accuracy[row] == float((logits.argmax(1) == labels).double().mean())
        assert loss[row] == pytest.approx(-float(functional.cross_entropy(logits, labels)), rel=1e-5)
    assert len(set(loss.tolist())) == 16, "every coalition has a model of its own"


@pytest.mark.parametrize("path", ON_THE_CPU)
def test_bits_do_not_depend_on_company_order_or_asker(path: str) -> None:
    masks = all_masks(4)
    reference = random_round(path=path)[0].view("loss").values(masks)
    alone = [float(random_round(path=path)[0].view("loss").values(mask[None])[0]) for mask in masks]
    assert alone == reference.tolist()
    for chunk in (3, 5):
        game = random_round(path=path)[0]
        game.view("accuracy").examples(masks[::-2])
        view = game.view("loss")
        rows = np.random.default_rng(chunk).permutation(16)
        got = dict(
            itertools.chain.from_iterable(
                zip(rows[at : at + chunk].tolist(), view.values(masks[rows[at : at + chunk]]).tolist(), strict=True)
                for at in range(0, 16, chunk)
            )
        )
        assert [got[row] for row in range(16)] == reference.tolist()


@pytest.mark.parametrize("path", ON_THE_CPU)
def test_a_model_left_in_training_with_another_state_changes_nothing(path: str) -> None:
    game = random_round(path=path)[0]
    reference = random_round(path=path)[0].view("loss").values(all_masks(4))
    game._utility._evaluation._model.load(torch.full_like(game._utility._evaluation._model.state, 3.0))
    game._utility._evaluation._model.module.train()
    assert game.view("loss").values(all_masks(4)).tolist() == reference.tolist()


def test_examples_average_to_the_values() -> None:
    game = random_round(inner_batch=7)[0]
    for metric in ("accuracy", "loss"):
        view = game.view(metric)
        assert view.examples(all_masks(4)).shape == (16, 50)
        np.testing.assert_allclose(view.examples(all_masks(4)).mean(axis=1), view.values(all_masks(4)), rtol=1e-12)


def test_the_full_coalition_is_the_aggregate_to_the_bit() -> None:
    game, state, updates = random_round()
    assert torch.equal(game.coalition_state(range(4)), fedavg(state, updates, SAMPLES))
    assert torch.equal(game.coalition_state([]), state)


def test_inputs_and_global_generators_are_untouched() -> None:
    game, state, updates = random_round()
    before = [t.clone() for t in (state, *updates)]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - it must not move
    score_round(game, make_evaluators(EVALUATORS), seed=0, round_number=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002 - it must not move
    assert all(torch.equal(a, b) for a, b in zip(before, (state, *updates), strict=True))


def test_the_validation_data_is_the_utilitys_own() -> None:
    model = FlatModel("cnn8", DIGITS)
    state = model.initial_state(torch.Generator().manual_seed(1))
    images, labels = torch.rand(9, 1, 8, 8), torch.arange(9)
    utility = Utility(model, images, labels, inner_batch=4)
    before = utility._evaluation.outcome(state).loss
    images.zero_()
    labels.zero_()
    assert utility._evaluation.outcome(state).loss == before


def test_calls_count_as_with_a_cold_cache() -> None:
    game = random_round()[0]
    first, second = game.view("accuracy"), game.view("loss")
    first.values(all_masks(4))
    second.values(all_masks(4)[[1, 2, 2]])
    assert (first.calls, second.calls, game.evaluated) == (16, 2, 16)


def test_progress_tells_done_of_what_had_to_be_evaluated() -> None:
    told: list[tuple[int, int]] = []
    random, state, updates = random_round()
    game = random._utility.round(state, updates, SAMPLES, progress=lambda done, total: told.append((done, total)))
    game.view("accuracy").values(all_masks(4)[[1, 2, 1]])
    game.view("loss").values(all_masks(4)[[1, 2, 3]])
    assert told == [(1, 2), (2, 2), (1, 1)]


@pytest.mark.parametrize("path", ON_THE_CPU)
@pytest.mark.parametrize("poison", [1e30, 3e38])
def test_a_diverged_model_scores_badly_and_finitely(poison: float, path: str) -> None:
    random, state, _ = random_round(path=path)
    game = random._utility.round(state, [torch.full_like(state, poison), torch.zeros_like(state)], [1, 1])
    assert game.view("accuracy").values(np.array([[True, False]])).tolist() == [0.0]
    assert game.view("loss").values(np.array([[True, False]])).tolist() == [-MAX_LOSS]
    for result in score_round(game, make_evaluators(EVALUATORS), seed=0, round_number=1):
        assert np.isfinite(result.scores.value).all()


@pytest.mark.parametrize("participants", [0, 1])
def test_rounds_of_nobody_and_of_one(participants: int) -> None:
    random, state, updates = random_round()
    game = random._utility.round(state, updates[:participants], SAMPLES[:participants])
    for result in score_round(game, make_evaluators(EVALUATORS), seed=0, round_number=1):
        values = game.view("loss" if result.evaluator.endswith("loss") else "accuracy").values(all_masks(participants))
        assert result.scores.value.tolist() == [values[-1] - values[0]] * participants
        assert result.scores.std_error.tolist() == [0.0] * participants
        assert result.scores.calls == 2 * participants


def test_what_does_not_fit_is_refused_before_any_evaluation() -> None:
    random, state, updates = random_round()
    with pytest.raises(ValueError, match="positive sample count"):
        random._utility.round(state, updates, [1, 2, 3, 0])
    with pytest.raises(ValueError, match="a label each"):
        Utility(FlatModel("cnn8", DIGITS), torch.zeros(2, 1, 8, 8), torch.zeros(1), inner_batch=1)
