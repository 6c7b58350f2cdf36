"""Scores on a part of the validation examples: what they err by from those on all, by hand and against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from steelyard.aggregation.fedavg import fedavg
from steelyard.config import Shape, TrainingConfig
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.scoring.coalitions import Floats, all_masks
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.evaluators.base import Fold, Scores
from steelyard.scoring.games import TableGame
from steelyard.scoring.subset import Subset, draw_subset
from steelyard.scoring.totals import Totals
from steelyard.scoring.utility import Utility
from steelyard.seeding import torch_generator
from steelyard.training import train

LABELS = np.array([0] * 6 + [1] * 3 + [2])
KINDS = ("loo", "fedsv", "shapley", "banzhaf")
DRAWS = 300


def drawn(labels: np.ndarray, examples: int, seed: int = 0) -> Subset:
    subset = draw_subset(labels, examples, seed)
    assert subset is not None
    return subset


def test_labels_get_their_share_and_an_example_counts_for_those_left_out() -> None:
    """Of 6, 3 and 1 examples 2, 2 and 1 at least; the sixth and seventh go to the label of six: 4, 2 and 1 of ten."""
    subset = drawn(LABELS, 7)
    assert subset.taken_K.tolist() == [4, 2, 1]
    assert (np.diff(subset.places_E) > 0).all(), "each once, in the order of the validation set"
    assert LABELS[subset.places_E].tolist() == [0] * 4 + [1] * 2 + [2]
    assert subset.weights_E == pytest.approx([6 / 4 * 0.7] * 4 + [3 / 2 * 0.7] * 2 + [0.7])
    assert subset.weights_E.mean() == pytest.approx(1)


def test_the_draw_is_the_seeds() -> None:
    labels = np.arange(200) % 10
    assert drawn(labels, 50, 3).places_E.tolist() == drawn(labels, 50, 3).places_E.tolist()
    assert drawn(labels, 50, 3).places_E.tolist() != drawn(labels, 50, 4).places_E.tolist()
    assert np.bincount(labels[drawn(labels, 50).places_E]).tolist() == [5] * 10


def test_all_examples_are_no_subset_and_impossible_sizes_are_refused_in_a_line() -> None:
    assert draw_subset(LABELS, 0, 0) is None
    assert draw_subset(LABELS, 10, 0) is None
    for examples in (4, 11):
        with pytest.raises(UserError, match=f"0 .all. or 5 to 10 expected .*, got {examples}$"):
            draw_subset(LABELS, examples, 0)


def test_the_error_by_hand() -> None:
    """Label 0: 4 of 6 with values 0, 2, 0, 2 (variance 4/3); label 1: 2 of 3 alike; label 2 whole: no error.

    (6/10)^2 (1 - 4/6) (4/3) / 4 = 0.04. An example's part is its value times its weight.
    """
    subset = drawn(LABELS, 7)
    value_E = np.array([0.0, 2.0, 0.0, 2.0, 5.0, 5.0, 1.0])
    assert subset.std_error((value_E * subset.weights_E)[None]) == pytest.approx([0.2])


@pytest.fixture(scope="module")
def rounds() -> list[Floats]:
    """Two rounds of three clients trained on real digits: every coalition on each of 300 others, [8, 300] each."""
    pixels, targets = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(targets, dtype=torch.int64)
    model = FlatModel("cnn8", Shape(channels=1, height=8, width=8, classes=10))
    state = model.initial_state(torch_generator(1, "model"))
    utility = Utility(model, images[-300:], labels[-300:], inner_batch=100)
    tables = []
    for number in range(2):
        updates = []
        for k in range(3):
            own = (labels[:600] % 3 != k).nonzero().flatten()[60 * k : 60 * k + 60]
            generator = torch_generator(1, "train", number, k)
            config = TrainingConfig(learning_rate=0.3, epochs=4)
            updates.append(train(model, state, images[own], labels[own], config, generator))
        tables.append(utility.round(state, updates, [60] * 3).view("loss").examples(all_masks(3)))
        state = fedavg(state, updates, [60] * 3)
    return tables


def score(kind: str, table: Floats) -> Scores:
    evaluator = make_evaluators([{"name": "e", "kind": kind, "utility": "loss"}])[0].evaluator
    assert not isinstance(evaluator, Fold)
    return evaluator.evaluate(TableGame(table), np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_the_scores_on_all_examples(kind: str, rounds: list[Floats]) -> None:
    """95 % intervals of a round's scores and of the two rounds' totals, 90 of 300 examples, 300 draws."""
    labels = load_digits(return_X_y=True)[1][-300:]
    truth = [score(kind, table).value for table in rounds]
    assert np.ptp(truth[0]) > 0.01, "a game that is worth something"
    off, held = {"round": [], "total": []}, {"round": [], "total": []}
    for seed in range(DRAWS):
        subset = drawn(labels, 90, seed)
        totals, total = Totals(3, subset), np.zeros(3)
        for table in rounds:
            scores = score(kind, table[:, subset.places_E] * subset.weights_E)
            errors = totals.add("e", scores)
            total = total + scores.value
        figures = {
            "round": (scores.value - truth[-1], errors.subset_std_error),
            "total": (total - sum(truth), errors.total_subset_std_error),
        }
        for name, (miss, error) in figures.items():
            off[name].append(miss)
            held[name].append(np.abs(miss) <= 1.96 * error)
    for name, misses in off.items():
        assert 0.9 < np.mean(held[name]) < 0.98, name
        assert (np.abs(np.mean(misses, axis=0)) < 4 * np.std(misses, axis=0) / DRAWS**0.5).all(), "no bias"


def test_what_is_not_known_by_example_has_an_unknown_error_and_what_looks_at_none_has_none() -> None:
    subset = drawn(LABELS, 7)
    value = np.zeros(2)

    def told(error: list[float], calls: int) -> Scores:
        return Scores(value=value, std_error=value, validation_std_error=np.array(error), calls=calls)

    totals = Totals(2, subset)
    assert np.isnan(totals.add("median", told([0.5, 0.0], 4)).subset_std_error).tolist() == [True, False]
    later = totals.add("median", told([0.0, 0.0], 4))
    assert later.subset_std_error.tolist() == [0.0, 0.0]
    assert np.isnan(later.total_subset_std_error).tolist() == [True, False]
    assert totals.add("cosine", told([np.nan, 0.0], 0)).total_subset_std_error.tolist() == [0.0, 0.0]
