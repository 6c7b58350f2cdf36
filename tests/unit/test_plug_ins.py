"""What a plug-in of one's own returns by mistake: one line that names it, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from client.app import _check_result
from client.attacks.base import Result
from client.attacks.memory import Memory
from steelyard.bundle import check_arrays
from steelyard.config import DataConfig
from steelyard.data import DATASETS, load
from steelyard.data.dataset import Dataset, colour, grey
from steelyard.data.partition import PARTITIONS, partition
from steelyard.errors import UserError
from steelyard.parsing import parse
from steelyard.scoring.evaluators import EVALUATORS, make_evaluators
from steelyard.scoring.evaluators.base import EvaluatorParams, Scores
from steelyard.scoring.games import TableGame
from steelyard.scoring.score import score_round

ROUND: Any = SimpleNamespace(clients=3, view=lambda _metric: TableGame(np.arange(8.0)))
FINE: dict[str, Any] = {"value": np.zeros(3), "std_error": np.zeros(3), "validation_std_error": np.zeros(3), "calls": 0}


def score(monkeypatch: pytest.MonkeyPatch, returned: object, start: object = None) -> Any:
    """One round by an evaluator that returns this; a fold if it has a state to start from."""

    class Own:
        def __init__(self, params: Any) -> None:
            pass

        def most_calls(self, players: int) -> int:  # noqa: ARG002 - the same for any number
            return 0

        def evaluate(self, game: Any, generator: Any) -> Any:  # noqa: ARG002 - the same for any game
            return returned

    class OwnFold(Own):
        def start(self, clients: int) -> Any:  # noqa: ARG002 - the same for any number
            return start

        def fold(self, state: Any, round_: Any, generator: Any) -> Any:  # noqa: ARG002 - the same for any round
            return returned

    monkeypatch.setitem(EVALUATORS, "own", (EvaluatorParams, Own if start is None else OwnFold))
    made = make_evaluators([{"name": "mine", "kind": "own", "utility": "loss"}])
    return score_round(ROUND, made, seed=0, round_number=4)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "Scores expected, got NoneType None"),
        (np.zeros(3), r"Scores expected, got shape \(3,\) and float64"),
        ({**FINE, "value": np.zeros(4)}, r"value as an array of 3 numbers expected, got shape \(4,\) and float64"),
        ({**FINE, "value": np.zeros(1)}, "value as an array of 3 numbers expected"),
        ({**FINE, "value": [0.0, 1.0, 2.0]}, r"value as .* expected, got list \[0.0, 1.0, 2.0\]"),
        ({**FINE, "value": torch.zeros(3)}, r"value as .* expected, got Tensor of shape \(3,\) and torch.float32"),
        ({**FINE, "value": np.zeros(3, complex)}, "value as .* and complex128"),
        ({**FINE, "std_error": 0.0}, "std_error as an array of 3 numbers expected, got float 0.0"),
        ({**FINE, "calls": None}, "calls as an integer >= 0 expected, got None"),
        ({**FINE, "examples": np.zeros(3)}, r"examples as an array \[3, validation examples\] or None expected"),
    ],
)
def test_scores_of_another_kind(returned: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = Scores(**returned) if isinstance(returned, dict) else returned
    with pytest.raises(UserError, match=rf"^\[\[evaluators\]\] mine, round 4: {message}"):
        score(monkeypatch, scores)


@pytest.mark.parametrize(
    ("start", "returned", "message"),
    [
        ({}, Scores(**FINE), "a pair expected from fold, the next state and Scores, got Scores"),
        (
            {"x": 0.0},
            None,
            "the state from start: 'x' as an array of float32, float64, int64, uint8 expected, got float",
        ),
        ({}, (None, Scores(**FINE)), "the state from fold: a dict of arrays by name expected, got NoneType None"),
        ({}, ({"x": np.array([None])}, Scores(**FINE)), "the state from fold: 'x' as .* and object"),
        ({}, ({}, Scores(**{**FINE, "value": np.zeros(2)})), "value as an array of 3 numbers expected"),
    ],
)
def test_a_fold_of_another_kind(start: Any, returned: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"^\[\[evaluators\]\] mine, round 4[:,] {message}"):
        score(monkeypatch, returned, start)


def test_scores_as_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Huge ones too: a client whose update made them overflow must not end the run."""
    huge = Scores(**{**FINE, "value": np.array([np.inf, np.nan, 1.0])})
    assert score(monkeypatch, huge)[0].scores is huge
    assert score(monkeypatch, ({"x": np.zeros(2)}, huge), {})[0].state.keys() == {"x"}


@pytest.mark.parametrize("state", [{"x": np.zeros(2, bool)}, {"x": [1.0]}, {1: np.zeros(2)}, [np.zeros(2)]])
def test_a_state_that_cant_be_kept(state: Any) -> None:
    with pytest.raises(UserError, match=r"^\[defence\] own: .*expected, got "):
        check_arrays(state, "[defence] own")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(5), r"a Result\(update_D=...\) expected from update, got Tensor of shape \(5,\)"),
        (None, r"a Result\(update_D=...\) expected from update, got NoneType"),
        (Result(update_D=torch.zeros(4)), r"update_D as a Tensor of shape \(5,\) and torch.float32 expected.* \(4,\)"),
        (Result(update_D=torch.zeros(5, dtype=torch.float64)), "update_D as .* torch.float32 expected.* torch.float64"),
        (Result(update_D=np.zeros(5, np.float32)), r"update_D as a Tensor .* expected, got shape \(5,\) and float32"),  # type: ignore[arg-type]
    ],
)
def test_an_update_of_another_kind(returned: Any, message: str) -> None:
    _check_result(Result(update_D=torch.full((5,), torch.nan)), torch.zeros(5), "x")  # which is the server's to refuse
    with pytest.raises(UserError, match=rf"^\[attack\] own, round 4: {message}"):
        _check_result(returned, torch.zeros(5), "[attack] own, round 4")


def test_a_note_that_the_log_cant_hold() -> None:
    noted = Result(update_D=torch.zeros(5), notes={"norm": torch.zeros(1)})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"note 'norm' as a number or a string expected, got Tensor of shape \(1,\)"):
        _check_result(noted, torch.zeros(5), "x")


def test_a_memory_that_a_file_cant_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"keeps of round 3: 'x' as an array of float32, .* expected, got .* and bool"):
        Memory(tmp_path, torch.device("cpu")).keep(3, {"x": torch.zeros(2) > 0})


def test_parameters_that_are_no_dataclass() -> None:
    with pytest.raises(UserError, match="a dataclass for the parameters expected, got <class"):
        parse(Memory, {}, "[attack] own")

    @dataclass(frozen=True)
    class Params:
        more: list[float]

    Params.__annotations__["more"] = list[float]  # as it is where the class stands at a file's top
    with pytest.raises(UserError, match=r"\[attack\] own more: a type that steelyard/parsing.py knows expected"):
        parse(Params, {"more": [1.0]}, "[attack] own")


IMAGES, LABELS = np.zeros((4, 8, 8)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grey(IMAGES[:, None], LABELS, white=1, classes=2), "a width and a height of each image expected"),
        (lambda: grey(IMAGES, LABELS + 1, white=1, classes=2), "labels from 0 to 1 expected, got 1 to 2"),
        (lambda: grey(IMAGES, LABELS + 0.5, white=1, classes=2), "integers as labels expected, got .* float64"),
        (lambda: grey(IMAGES, LABELS[:3], white=1, classes=2), "images as float32 .*3, 1, 8, 8.* expected, got .*4, 1"),
        (lambda: grey(IMAGES + 200, LABELS, white=1, classes=2), "pixels from 0 to 1 expected, got 200 to 200"),
        (lambda: grey(IMAGES * np.nan, LABELS, white=1, classes=2), "pixels from 0 to 1 expected, got nan to nan"),
        (lambda: grey(IMAGES[:0], LABELS[:0], white=1, classes=2), "at least one image expected"),
        (lambda: colour(IMAGES, LABELS, white=1, classes=2), "colour images .* expected, got shape"),
        (lambda: (IMAGES, LABELS), "a Dataset expected, got tuple"),
    ],
)
def test_a_data_set_of_another_kind(
    make: Callable[[], Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(DATASETS, "own", lambda _folder: make())
    with pytest.raises(UserError, match=message):
        load(DataConfig(dataset="own", folder=str(tmp_path)))


def test_a_data_set_may_be_lists() -> None:
    assert isinstance(grey(IMAGES.tolist(), LABELS.tolist(), white=1, classes=2), Dataset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (np.zeros(19, int), r"an owner for each of 20 samples expected, got shape \(19,\) and int64"),
        (np.zeros(20), "an owner for each of 20 samples expected, got .* float64"),
        ([0] * 20, "an owner for each of 20 samples expected, got list"),
        (None, "an owner for each of 20 samples expected, got NoneType"),
        (np.arange(20) % 3, r"owners from -1 \(nobody\) to 1 expected, got 0 to 2"),
        (
            np.minimum(np.arange(20) // 15, 1),
            "minimum_per_client = 8 samples for each client expected, got 5 for client 1",
        ),
    ],
)
def test_a_partition_of_another_kind(owner: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTITIONS, "iid", lambda *_: owner)
    with pytest.raises(UserError, match=rf"^\[data\] partition iid: .*{message}"):
        partition(np.arange(20) % 2, 2, np.random.default_rng(0), DataConfig(partition="iid"))
