"""The classic games' closed forms against the definition: the mean marginal over all n! orders."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

from steelyard.scoring.coalitions import Floats, Masks, all_masks
from steelyard.scoring.games import (
    FunctionGame,
    TableGame,
    additive_game,
    airport_game,
    coverage_game,
    glove_game,
    symmetric_voting_game,
    weighted_majority_game,
)

Known = tuple[FunctionGame, Floats]


def mean_marginal_over_all_orders(game: FunctionGame) -> list[float]:
    totals = [0.0] * game.players
    orders = list(permutations(range(game.players)))
    for order in orders:
        mask = np.zeros((1, game.players), dtype=bool)
        value = game.values(mask)[0]
        for player in order:
            mask[0, player] = True
            before, value = value, game.values(mask)[0]
            totals[player] += value - before
    return [total / len(orders) for total in totals]


@pytest.mark.parametrize(
    "make",
    [
        lambda: additive_game([1.5, -2.0, 0.0], empty=7.0),
        lambda: symmetric_voting_game(5, 3),
        lambda: weighted_majority_game(3, 4, 4),
        lambda: weighted_majority_game(2, 4, 6),
        lambda: weighted_majority_game(1, 0, 1),
        lambda: glove_game(1, 2),
        lambda: glove_game(2, 3),
        lambda: glove_game(3, 1),
        lambda: airport_game([3.0, 1.0, 2.0, 2.0]),
        lambda: coverage_game(np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]], dtype=bool), [3.0, 6.0, 0.5]),
    ],
)
def test_closed_forms_are_the_mean_marginals(make: Callable[[], Known]) -> None:
    game, shapley = make()
    np.testing.assert_allclose(shapley, mean_marginal_over_all_orders(game), atol=1e-12)


def test_textbook_numbers() -> None:
    assert glove_game(1, 2)[1] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert airport_game([1.0, 2.0, 4.0])[1] == pytest.approx([1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 2])
    assert weighted_majority_game(3, 4, 4)[1] == pytest.approx([3 / 5, 1 / 10, 1 / 10, 1 / 10, 1 / 10])


def test_masks_count_in_binary_with_player_0_lowest() -> None:
    assert all_masks(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]
    assert all_masks(0).shape == (1, 0)


def test_a_table_of_examples_averages_to_its_values() -> None:
    game = TableGame(np.array([[0.0, 0.0], [1.0, 3.0]]))
    masks: Masks = all_masks(1)
    assert game.values(masks).tolist() == [0.0, 2.0]
    assert game.examples(masks).tolist() == [[0.0, 0.0], [1.0, 3.0]]


def test_calls_are_distinct_coalitions() -> None:
    game = TableGame(np.arange(4.0))
    game.values(all_masks(2)[[1, 1, 3]])
    game.examples(all_masks(2)[[3, 1]])
    assert game.calls == 2


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bool masks \[C, 2\] expected"):
        TableGame(np.arange(4.0)).values(all_masks(3))
    with pytest.raises(ValueError, match="2\\^n rows"):
        TableGame(np.arange(3.0))
