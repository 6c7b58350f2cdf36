"""Evaluation paths against the plain one: equal utilities within each path's stated bound, and refusals in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

from steelyard.config import ScoringConfig, Shape
from steelyard.errors import UserError
from steelyard.models import MODELS, FlatModel
from steelyard.scoring.coalitions import all_masks
from steelyard.scoring.paths import PATHS
from steelyard.scoring.utility import RoundGame, Utility

SAMPLES = [40, 25, 60, 10]
CHAINS: dict[str, Callable[[Shape], nn.Module]] = {
    "odd sizes": lambda s: nn.Sequential(
        nn.Conv2d(s.channels, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 4 * 2, s.classes)
    ),
    "pool before relu, no bias": lambda s: nn.Sequential(
        nn.Conv2d(s.channels, 4, 3, padding=1, bias=False),
        nn.MaxPool2d((2, 2)),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(6 * 3 * 2, 7),
        nn.ReLU(),
        nn.Linear(7, s.classes),
    ),
    "no pooling, a rectangle": lambda s: nn.Sequential(
        nn.Conv2d(s.channels, 4, (3, 5), padding=(0, 2), stride=(2, 1), dilation=(1, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 5 * 7, s.classes),
    ),
    "overlapping pools behind": lambda s: nn.Sequential(
        nn.Sequential(nn.Conv2d(s.channels, 4, 3), nn.Dropout(0.5)),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 9 * 5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6, s.classes)),
    ),
}
CHAIN_SHAPE = Shape(channels=3, height=11, width=7, classes=5)
CNNS = {
    "cnn8": Shape(channels=1, height=8, width=8, classes=10),
    "cnn28": Shape(channels=3, height=28, width=28, classes=10),
}


def a_game(model: FlatModel, shape: Shape, path: str, inner_batch: int = 16, examples: int = 50) -> RoundGame:
    generator = torch.Generator().manual_seed(5)
    state = model.initial_state(generator)
    updates = [0.05 * torch.randn(model.layout.size, generator=generator) for _ in SAMPLES]
    images = torch.rand(examples, shape.channels, shape.height, shape.width, generator=generator)
    labels = torch.randint(0, shape.classes, (examples,), generator=generator)
    return Utility(model, images, labels, inner_batch=inner_batch, path=path).round(state, updates, SAMPLES)


def chain_model(name: str, monkeypatch: pytest.MonkeyPatch) -> FlatModel:
    monkeypatch.setitem(MODELS, name, CHAINS[name])
    return FlatModel(name, CHAIN_SHAPE)


def assert_within_bound(model: FlatModel, shape: Shape, path: str) -> None:
    bound = PATHS[path][1]
    plain, other = a_game(model, shape, "plain"), a_game(model, shape, path)
    for metric, allowed in (("accuracy", bound.accuracy), ("loss", bound.loss)):
        theirs = plain.view(metric).values(all_masks(4))  # type: ignore[arg-type]
        assert other.view(metric).values(all_masks(4)) == pytest.approx(theirs, rel=allowed, abs=allowed)  # type: ignore[arg-type]
        if metric == "loss":
            assert len(set(theirs.tolist())) == 16, "every coalition has a model of its own"


def test_the_configuration_knows_every_path() -> None:
    assert get_args(get_type_hints(ScoringConfig)["path"]) == tuple(PATHS)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "plain"])
@pytest.mark.parametrize("name", CNNS)
def test_a_path_keeps_its_bound_on_our_networks(name: str, path: str) -> None:
    assert_within_bound(FlatModel(name, CNNS[name]), CNNS[name], path)


@pytest.mark.parametrize("name", CHAINS)
def test_im2col_fits_other_chains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_within_bound(chain_model(name, monkeypatch), CHAIN_SHAPE, "im2col")


def test_im2col_by_hand() -> None:
    """One 2x2 image, one 1x1 filter of weight -1 and bias 3: the pool sees 3 - (4, 3, 2, 1) and keeps 2."""
    shape = Shape(channels=1, height=2, width=2, classes=2)
    MODELS["by hand"] = lambda _: nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2)
    )
    try:
        model = FlatModel("by hand", shape)
    finally:
        del MODELS["by hand"]
    model.load(torch.tensor([-1.0, 3.0, 1.0, -2.0, 0.5, 0.25]))  # filter, its bias, two weights, two biases
    path = PATHS["im2col"][0](model, [torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])])
    with torch.inference_mode():
        assert [logits.tolist() for logits in path.logits()] == [[[2.5, -3.75]]]


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (nn.Linear(3, 4), "begins with Linear"),
        (nn.Conv2d(3, 3, 3, groups=3), "ungrouped and padded with zeros"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), "ungrouped and padded with zeros"),
    ],
)
def test_a_model_that_im2col_does_not_fit_is_refused(
    first: nn.Module, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_: Shape) -> Any:
        return nn.Sequential(first, nn.ReLU())

    monkeypatch.setitem(MODELS, "other", build)
    with pytest.raises(UserError, match=f"{said}.*set path = 'plain'"):
        a_game(FlatModel("other", CHAIN_SHAPE), CHAIN_SHAPE, "im2col")
