"""Scores that are hard to buy: numbers by hand, what they become FedSV at, and what they no longer pay for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from client.attacks.company_view import LOSSES, OTHERS, company_loss
from client.attacks.unroll import call
from steelyard.config import Shape
from steelyard.models import FlatModel
from steelyard.scoring.coalitions import Floats, Masks, all_masks
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.evaluators.base import Evaluator, Fold
from steelyard.scoring.evaluators.company import size_weights
from steelyard.scoring.evaluators.fedsv import shapley_coefficients
from steelyard.scoring.games import TableGame
from steelyard.scoring.part import PartRound

RNG = np.random.default_rng(5)


class ExampleGame(TableGame):
    """A table of every coalition's utility on every validation example, [2^n, E]."""

    def __init__(self, table_CE: Floats) -> None:
        super().__init__(table_CE.mean(axis=1))
        self.table_CE = table_CE

    def examples(self, masks_Cn: Masks) -> Floats:
        return self.table_CE[self._rows(masks_Cn)]


@dataclass
class Played:
    """A round whose coalitions' utilities are a table, and whose other games are a function of the updates."""

    table_CE: Floats
    labels_E: NDArray[np.int64]
    members: tuple[int, ...]
    clients: int
    number: int = 1
    last: bool = False
    trainable: int = 2
    samples: tuple[int, ...] = (10, 20, 30)
    global_D: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))
    asked: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.updates_nD = tuple(np.array([k, 1], np.float32) for k in self.members)

    def view(self, metric: str) -> ExampleGame:  # noqa: ARG002 - one table
        return ExampleGame(self.table_CE)

    def play(self, global_D: Any, updates_nD: Any, samples: Any, metric: str) -> TableGame:  # noqa: ARG002
        """Worth 1 as soon as anybody is in: going along is all that it takes."""
        self.asked.append((updates_nD, samples))
        return TableGame(np.array([0.0] + [1.0] * (2 ** len(updates_nD) - 1)))


def scored(kind: str, rounds: list[Played], **params: Any) -> Floats:
    """The rows of a fold over some rounds, [rounds, N]."""
    fold = made(kind, **params)
    assert isinstance(fold, Fold)
    state, rows = fold.start(rounds[0].clients), []
    for round_ in rounds:
        state, scores = fold.fold(state, round_, np.random.default_rng(0))  # type: ignore[arg-type]
        rows.append(scores.value)
    return np.array(rows)


def made(kind: str, **params: Any) -> Evaluator | Fold:
    return make_evaluators([{"name": "e", "kind": kind, "utility": "accuracy", **params}])[0].evaluator


def random_round(members: tuple[int, ...], clients: int, examples: int = 12) -> Played:
    table = RNG.integers(0, 2, size=(2 ** len(members), examples)).astype(np.float64)
    return Played(table, np.arange(examples) % 3, members, clients)


# --- company ---------------------------------------------------------------------------------------------------------


def test_company_by_hand() -> None:
    """Two clients, two labels with an example each. Client 0 gives the first and takes the second, client 1 neither."""
    table = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    round_ = Played(table, np.array([0, 1]), (0, 1), 2)
    np.testing.assert_allclose(scored("company", [round_], least=0, losses=1.0), [[0, 0]])
    np.testing.assert_allclose(scored("company", [round_], losses=0.5), [[0.5 - 0.25, 0]])
    np.testing.assert_allclose(scored("company", [round_], losses=0.0), [[0.5, 0]])


def test_company_pays_nothing_for_what_is_earned_alone() -> None:
    """Either client lifts the empty coalition, and nothing is left for the second: no marginal in company."""
    table = np.array([[0.0], [1.0], [1.0], [1.0]])
    round_ = Played(table, np.array([0]), (0, 1), 2)
    np.testing.assert_allclose(scored("company", [round_]), [[0, 0]])
    np.testing.assert_allclose(scored("company", [round_], least=0), [[0.5, 0.5]])


def test_a_label_counts_by_its_total_over_rounds() -> None:
    """Gain 1 then loss 1 on the same label, halves of the validation data: the loss is taken back whole."""
    gain, loss = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [-1.0, 0.0]])
    rounds = [Played(table, np.array([0, 1]), (1,), 2) for table in (gain, loss, loss)]
    np.testing.assert_allclose(scored("company", rounds, losses=0.5), [[0, 0.5], [0, -0.5], [0, -0.25]])


@pytest.mark.parametrize("members", [(0,), (0, 1), (0, 2, 3), (0, 1, 2, 3)])
def test_company_becomes_fedsv(members: tuple[int, ...]) -> None:
    rounds = [random_round(members, 4) for _ in range(3)]
    rows = scored("company", rounds, least=0, losses=1.0)
    for row, round_ in zip(rows, rounds, strict=True):
        shapley = shapley_coefficients(len(members)) @ round_.table_CE.mean(axis=1)
        np.testing.assert_allclose(row[list(members)], shapley, atol=1e-12)
        assert not row[[k for k in range(4) if k not in members]].any()


def test_company_is_its_definition() -> None:
    """A slow loop over marginals, label by label."""
    rounds, total = [random_round((0, 1, 2), 3) for _ in range(2)], np.zeros(3)
    masks = all_masks(3)
    for k in range(3):
        for label in range(3):
            part = 0.0
            for round_ in rounds:
                worth = (round_.table_CE * (round_.labels_E == label)).mean(axis=1)
                for size in (1, 2):
                    joined = [row for row, mask in enumerate(masks) if mask.sum() == size and not mask[k]]
                    part += np.mean([worth[row | 1 << k] - worth[row] for row in joined]) / 2
            total[k] += part if part > 0 else 0.75 * part
    np.testing.assert_allclose(scored("company", rounds).sum(axis=0), total, atol=1e-12)


def test_sampled_company_is_unbiased() -> None:
    round_, fold = random_round((0, 1, 2, 3), 4), made("company", losses=1.0, method="permutation", permutations=4)
    exact = scored("company", [round_], losses=1.0)[0]
    assert isinstance(fold, Fold)
    drawn = [
        fold.fold(fold.start(4), round_, np.random.default_rng(i))[1]  # type: ignore[arg-type]
        for i in range(400)
    ]
    values = np.array([scores.value for scores in drawn])
    assert (np.abs(values.mean(axis=0) - exact) < 4 * values.std(axis=0) / 20).all()
    squares = np.mean([scores.std_error**2 for scores in drawn], axis=0)
    np.testing.assert_allclose(np.sqrt(squares), values.std(axis=0), rtol=0.3)


def test_sizes_of_company() -> None:
    np.testing.assert_allclose(size_weights(4, 1), [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(size_weights(2, 5), [0, 1])
    np.testing.assert_allclose(size_weights(1, 1), [1])


# --- fold median -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [20, 60])
def test_the_error_of_a_sampled_median_covers(pairs: int) -> None:
    """Examples that are right once enough of those who know them are there; the mean's error covers 0.8."""
    rng = np.random.default_rng(3)
    known, needed = rng.random((7, 100)) < 0.45, rng.integers(1, 4, 100)
    table = (all_masks(7).astype(int) @ known >= needed).astype(np.float64)
    exact = made("fold_median", method="exact").evaluate(TableGame(table), rng).value
    sampled = made("fold_median", method="permutation", permutations=pairs)
    scores = [sampled.evaluate(TableGame(table), np.random.default_rng(seed)) for seed in range(100)]
    assert 0.9 < np.mean([np.abs(s.value - exact) <= 1.96 * s.std_error for s in scores]) < 0.98


def test_fold_median_by_hand() -> None:
    """One client that is worth 0, 0.5 and 9 on three folds of two examples: the mean is bought, the median is not."""
    table = np.array([[0.0] * 6, [0.0, 1.0, 9.0, 0.0, 0.0, 9.0]])
    evaluator = made("fold_median", folds=3)
    assert not isinstance(evaluator, Fold)
    scores = evaluator.evaluate(ExampleGame(table), np.random.default_rng(0))
    np.testing.assert_allclose(scores.value, [0.5])
    whole = made("fold_median", folds=1)
    assert not isinstance(whole, Fold)
    np.testing.assert_allclose(whole.evaluate(ExampleGame(table), np.random.default_rng(0)).value, [19 / 6])


# --- rider -----------------------------------------------------------------------------------------------------------


def test_a_rider_leaves_nothing_for_going_along() -> None:
    """Round 1 has no rider. In round 2 the rider sends the step, weighed as a mean client, and earns what all would."""
    first, second = (random_round((0, 2), 3) for _ in range(2))
    second.global_D = np.array([3, -1], np.float32)
    rows = scored("rider", [first, second])
    np.testing.assert_allclose(rows[0, [0, 2]], shapley_coefficients(2) @ first.table_CE.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(rows[1], [0, 0, 0], atol=1e-12)
    ((updates, samples),) = second.asked
    np.testing.assert_array_equal(updates[-1], [3, -1])
    assert samples == (10, 30, 20)


def test_a_void_round_keeps_the_rider() -> None:
    first, void, third, fourth = (random_round(members, 3) for members in ((0, 1), (), (0, 1), (0, 1)))
    for round_ in (void, third, fourth):
        round_.global_D = np.array([1, 0], np.float32)
    scored("rider", [first, void, third, fourth], weight=0.5)
    np.testing.assert_array_equal(third.asked[0][0][-1], [1, 0])
    np.testing.assert_array_equal(fourth.asked[0][0][-1], [1, 0])
    assert fourth.asked[0][1][-1] == 8


# --- a part of the validation examples -------------------------------------------------------------------------------


def test_parts_of_a_round_average_to_the_whole() -> None:
    """FedSV is linear in the examples, so two halves average to it; labels go with their examples."""
    whole = random_round((0, 1, 2), 3)
    halves = [PartRound(whole, places) for places in (np.arange(6), np.arange(6, 12))]  # type: ignore[arg-type]
    np.testing.assert_array_equal(halves[1].labels_E, whole.labels_E[6:])
    values = [shapley_coefficients(3) @ half.view("accuracy").values(all_masks(3)) for half in halves]
    np.testing.assert_allclose(np.mean(values, axis=0), shapley_coefficients(3) @ whole.table_CE.mean(axis=1))


# --- the attacker that knows the rule --------------------------------------------------------------------------------


def test_the_attacker_simulates_gains_whole_and_losses_in_part() -> None:
    """The update that the others send leaves every label as it is; turning it round gains or loses by label."""
    model, generator = FlatModel("cnn8", Shape(channels=1, height=8, width=8, classes=3)), torch.Generator()
    start_P = model.initial_state(generator.manual_seed(1))[: model.layout.trainable]
    step_P = 0.05 * torch.randn(len(start_P), generator=generator)
    data = torch.rand(9, 1, 8, 8, generator=generator), torch.arange(9) % 3
    along = company_loss(model, start_P, step_P, step_P, data)
    assert float(along) == pytest.approx(0, abs=1e-5)
    update_P = (-step_P).requires_grad_()
    against = company_loss(model, start_P, update_P, step_P, data)
    gains = []
    for size in OTHERS:
        mixed = (size - 1) / (size + 1)
        by_label = [
            functional.cross_entropy(call(model, start_P + part * step_P, data[0]), data[1], reduction="none")
            .view(3, 3)
            .mean(0)
            for part in (1.0, mixed)
        ]
        gains.append(by_label[0] - by_label[1])
    expected = torch.stack([gain.clamp(min=0) + LOSSES * gain.clamp(max=0) for gain in gains]).mean()
    assert float(against.detach()) == pytest.approx(-float(expected.detach()), abs=1e-5)
    against.backward()  # type: ignore[no-untyped-call]
    assert update_P.grad is not None
    assert update_P.grad.any()
