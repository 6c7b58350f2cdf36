"""Evaluation paths against the plain one: equal utilities within each path's stated bound, and refusals in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional

from deploy.prepare import server_half
from server import app
from steelyard.benchmarks.rounds import TrainedRound, trained_round
from steelyard.config import ClientsConfig, DataConfig, Experiment, RosterEntry, ScoringConfig, Shape, to_json
from steelyard.errors import UserError
from steelyard.models import MODELS, FlatModel
from steelyard.parsing import parse
from steelyard.scoring.coalitions import all_masks
from steelyard.scoring.paths import PATHS, make_path
from steelyard.scoring.paths.folding import folded
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
    "batch norm, in pairs and alone": lambda s: nn.Sequential(
        nn.Conv2d(s.channels, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 2, s.classes),
    ),
    "overlapping pools behind": lambda s: nn.Sequential(
        nn.Sequential(nn.Conv2d(s.channels, 4, 3), nn.Dropout(0.5)),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 9 * 5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6, s.classes)),
    ),
}
SHAPE = Shape(channels=3, height=11, width=7, classes=5)


class Residual(nn.Module):
    """A block with a shortcut, a BatchNorm behind no convolution, and a convolution that two others share."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.first = nn.Conv2d(shape.channels, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(6, affine=False)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.last_norm = nn.BatchNorm2d(6)
        self.out = nn.Linear(6, shape.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.first(x)))
        x = self.last_norm(x + self.scale * self.second_norm(self.second(x)))
        x = self.second(x) + x
        logits: torch.Tensor = self.out(functional.adaptive_avg_pool2d(functional.relu(x), 1).flatten(1))
        return logits


class Branching(nn.Module):
    """A forward pass that looks at its data, so that no graph of it exists."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.out = nn.Linear(shape.channels, shape.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        if x.sum() > 0:
            x = -x
        logits: torch.Tensor = self.out(x)
        return logits


def random_game(model: FlatModel, shape: Shape, path: str, inner_batch: int = 16, examples: int = 50) -> RoundGame:
    generator = torch.Generator().manual_seed(5)
    state = 0.2 * torch.randn(model.layout.size, generator=generator)
    updates = [0.05 * torch.randn(model.layout.size, generator=generator) for _ in SAMPLES]
    state[model.layout.trainable :] = 1.0  # running means and variances, the latter above 0 with every update
    images = torch.rand(examples, shape.channels, shape.height, shape.width, generator=generator)
    labels = torch.randint(0, shape.classes, (examples,), generator=generator)
    return Utility(model, images, labels, inner_batch=inner_batch, path=path).round(state, updates, SAMPLES)


def assert_within_bound(game: Callable[[str], RoundGame], path: str) -> None:
    bound, plain, other = PATHS[path][1], game("plain"), game(path)
    masks = all_masks(plain.players)
    losses, got = plain.view("loss").values(masks), other.view("loss").values(masks)
    assert got == pytest.approx(losses, rel=bound.loss, abs=bound.loss)
    accuracies, got = plain.view("accuracy").values(masks), other.view("accuracy").values(masks)
    assert got == pytest.approx(accuracies, rel=0, abs=bound.accuracy)
    assert len(set(losses.tolist())) == len(masks), "every coalition has a model of its own"


def test_the_configuration_knows_every_path() -> None:
    assert get_args(get_type_hints(ScoringConfig)["path"]) == tuple(PATHS)


@pytest.fixture(scope="module")
def trained() -> TrainedRound:
    """The second round of four clients on digits: a model that has learned, and updates that are real."""
    return trained_round(
        Experiment(
            name="trained",
            rounds=2,
            data=DataConfig(samples_per_client=100, validation=200, test=10),
            clients=ClientsConfig(count=4),
        )
    )


@pytest.mark.parametrize("path", [path for path in PATHS if path != "plain"])
def test_a_path_keeps_its_bound_on_a_trained_round(path: str, trained: TrainedRound) -> None:
    def game(path: str) -> RoundGame:
        utility = Utility(trained.model, trained.images, trained.labels, inner_batch=64, path=path)
        return utility.round(trained.global_D, trained.updates, trained.samples)

    assert_within_bound(game, path)
    assert game("plain").view("accuracy").values(all_masks(4)).max() > 0.6, "it has learned"


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("path", ["im2col", "folded"])
def test_float32_paths_fit_other_chains(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, name, CHAINS[name])
    assert_within_bound(lambda path: random_game(FlatModel(name, SHAPE), SHAPE, path), path)


def test_folded_fits_a_residual_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "residual", Residual)
    assert_within_bound(lambda path: random_game(FlatModel("residual", SHAPE), SHAPE, path), "folded")


def test_folding_by_hand() -> None:
    """Weight 3, bias 1; mean 2, variance 4 (eps 0), gamma -5, beta 7: s = -5/2, W' = -7.5, b' = (1 - 2) s + 7."""
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    for tensor, value in (
        (conv.weight, 3.0),
        (conv.bias, 1.0),
        (norm.running_mean, 2.0),
        (norm.running_var, 4.0),
        (norm.weight, -5.0),
        (norm.bias, 7.0),
    ):
        assert tensor is not None
        nn.init.constant_(tensor, value)
    weight, bias = folded(conv, norm)
    assert (weight.item(), bias.item() if bias is not None else None) == (-7.5, 9.5)


def test_im2col_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One 2x2 image, one 1x1 filter of weight -1 and bias 3: the pool sees 3 - (4, 3, 2, 1) and keeps 2."""
    shape = Shape(channels=1, height=2, width=2, classes=2)
    layers = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2))
    monkeypatch.setitem(MODELS, "by hand", lambda _: layers)
    model = FlatModel("by hand", shape)
    model.load(torch.tensor([-1.0, 3.0, 1.0, -2.0, 0.5, 0.25]))  # filter, its bias, two weights, two biases
    path = make_path("im2col", model, [torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])])
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
    monkeypatch.setitem(MODELS, "other", lambda _: nn.Sequential(first, nn.ReLU()))
    with pytest.raises(UserError, match=f"{said}.*set path = 'plain'"):
        make_path("im2col", FlatModel("other", SHAPE), [])


def test_a_model_that_cannot_be_traced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "branching", Branching)
    with pytest.raises(UserError, match=r"torch.fx can trace; Branching: .*set path = 'plain'"):
        make_path("folded", FlatModel("branching", SHAPE), [])


def test_a_path_that_does_not_fit_is_refused_when_the_half_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "linear first", lambda _: nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    nothing = Shape(channels=1, height=1, width=1, classes=1)  # a half to be checked knows no data set's
    file = tmp_path / "half.json"
    for path, model in (("im2col", "cnn8"), ("folded", "resnet18"), ("im2col_bf16", ""), ("plain", "linear first")):
        experiment = parse(Experiment, {"name": "e", "scoring": {"path": path}, "model": {"name": model}}, "e")
        file.write_text(to_json(server_half(experiment, nothing, (RosterEntry(client=0, samples=1),))))
        app.check(file)
    experiment = parse(Experiment, {"name": "e", "scoring": {"path": "im2col"}, "model": {"name": "linear first"}}, "e")
    file.write_text(to_json(server_half(experiment, nothing, (RosterEntry(client=0, samples=1),))))
    with pytest.raises(UserError, match=r"begins with Linear; set path = 'plain'"):
        app.check(file)
