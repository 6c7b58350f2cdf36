"""The geometry of updates, against vectors in the plane."""

import numpy as np
import pytest
import torch

from steelyard.report import suspicion


def test_norms_and_cosines_in_the_plane() -> None:
    # Coordinate medians of (3, 4), (0, 2), (-5, 0), (1, 0): ((0 + 1) / 2, (0 + 2) / 2) = (0.5, 1).
    updates = np.array([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0], [1.0, 0.0]])
    norms, cosines = suspicion.norms_and_cosines(updates)
    length = 1.25**0.5
    assert norms.tolist() == [5.0, 2.0, 5.0, 1.0]
    assert cosines == pytest.approx([1 - 5.5 / (5 * length), 1 - 1 / length, 1 + 0.5 / length, 1 - 0.5 / length])


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_distances_are_to_the_median_of_any_number(n: int) -> None:
    updates = np.random.default_rng(n).normal(size=(n, 1000)).astype(np.float32)
    _, cosines = suspicion.norms_and_cosines(updates)
    rows, middle = updates.astype(np.float64), np.median(updates.astype(np.float64), axis=0)
    expected = [
        1 - np.sum(row * middle) / (np.sqrt(np.sum(row * row)) * np.sqrt(np.sum(middle * middle))) for row in rows
    ]
    assert cosines.tolist() == pytest.approx(expected, abs=1e-15)


def test_no_direction_is_a_distance_of_one() -> None:
    norms, cosines = suspicion.norms_and_cosines(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))
    assert norms.tolist() == [0.0, 1.0, 2.0]
    assert cosines.tolist() == [1.0, 0.0, 0.0]
    assert suspicion.norms_and_cosines(np.zeros((2, 3)))[1].tolist() == [1.0, 1.0]


def test_tensors_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.tensor([[1.0, 2.0, -3.0, 4.0, 5.0], [0.0, 1.0, 1.0, 0.0, 2.0], [7.0, 0.0, 0.0, 1.0, 1.0]])
    whole = suspicion.norms_and_cosines(updates.numpy())
    monkeypatch.setattr(suspicion, "BLOCK", 2)
    blocks = suspicion.norms_and_cosines(updates)
    assert blocks[0] == pytest.approx(whole[0])
    assert blocks[1] == pytest.approx(whole[1])
