"""Evaluation paths against the plain one: equal utilities within each path's stated bound, and refusals in one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional

from deploy.prepare import server_half
from server import app
from steelyard.benchmarks.evaluation import utility_of
from steelyard.benchmarks.rounds import TrainedRound, trained_round
from steelyard.config import ClientsConfig, DataConfig, Experiment, RosterEntry, ScoringConfig, Shape, to_json
from steelyard.errors import UserError
from steelyard.models import MODELS, FlatModel
from steelyard.parsing import parse
from steelyard.scoring.coalitions import Floats, all_masks
from steelyard.scoring.paths import PATHS, Bound, make_path
from steelyard.scoring.paths.filtering import Filtering
from steelyard.scoring.paths.folded import Folded
from steelyard.scoring.paths.folding import folded
from steelyard.scoring.paths.tf32 import FoldedTf32
from steelyard.scoring.paths.winograd import Winograd
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
    "convolutions for minimal filtering": lambda s: nn.Sequential(
        nn.Conv2d(s.channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 48, 5, padding=2, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Conv2d(48, 16, 3),
        nn.Flatten(),
        nn.Linear(16 * 3, s.classes),
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


def assert_within_bound(game: Callable[[str], RoundGame], path: str, bound: Bound | None = None) -> None:
    bound, plain, other = bound or PATHS[path].bound, game("plain"), game(path)
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


@pytest.mark.parametrize("path", [path for path, kind in PATHS.items() if path != "plain" and "cpu" in kind.devices])
def test_a_path_keeps_its_bound_on_a_trained_round(path: str, trained: TrainedRound) -> None:
    def game(path: str) -> RoundGame:
        utility = Utility(trained.model, trained.images, trained.labels, inner_batch=64, path=path)
        return utility.round(trained.global_D, trained.updates, trained.samples)

    assert_within_bound(game, path)
    assert game("plain").view("accuracy").values(all_masks(4)).max() > 0.6, "it has learned"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("path", [path for path, kind in PATHS.items() if "cuda" in kind.devices])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_path_on_a_gpu_is_within_its_bound_of_plain_on_the_cpu(
    path: str, workers: int, trained: TrainedRound
) -> None:
    def utilities(utility: Utility) -> tuple[Floats, Floats]:
        with closing(utility):
            game = utility.round(trained.global_D, trained.updates, trained.samples)
            return game.view("loss").values(all_masks(4)), game.view("accuracy").values(all_masks(4))

    here = utilities(utility_of(trained, "plain", 64, workers=1))
    there = utilities(utility_of(trained, path, 64, workers, "cuda"))
    bound = PATHS[path].bound
    assert there[0] == pytest.approx(here[0], rel=max(bound.loss, 1e-5), abs=max(bound.loss, 1e-5))
    assert there[1] == pytest.approx(here[1], abs=max(bound.accuracy, 1 / len(trained.labels)))


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("path", ["im2col", "folded", "winograd", "im2col_winograd"])
def test_float32_paths_fit_other_chains(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, name, CHAINS[name])
    assert_within_bound(lambda path: random_game(FlatModel(name, SHAPE), SHAPE, path), path)


@pytest.mark.parametrize("path", ["folded", "winograd"])
def test_traced_paths_fit_a_residual_network(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "residual", Residual)
    assert_within_bound(lambda path: random_game(FlatModel("residual", SHAPE), SHAPE, path), path)


class Wide(nn.Module):
    """Channels that minimal filtering fits; a norm or none, a ReLU behind, a shortcut, a convolution that shrinks."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.first = nn.Conv2d(shape.channels, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 48, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(48)
        self.third = nn.Conv2d(48, 48, 3, padding=1, bias=False)
        self.smaller = nn.Conv2d(48, 32, 3, stride=2, padding="valid")
        self.last = nn.Conv2d(32, 32, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(48, 1, 1))
        self.relu = nn.ReLU()
        self.out = nn.Linear(32, shape.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.second(torch.relu(self.first(x)))))
        x = functional.relu(self.scale * self.third(x) + x)
        x = self.relu(self.last(self.relu(self.smaller(x))))
        logits: torch.Tensor = self.out(x.mean((2, 3)))
        return logits


class Tangled(Wide):
    """Convolutions that a ReLU and others read, that are called twice and once rectified, of every other kind."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.same = nn.Conv2d(48, 48, 3, padding="same")
        self.grouped = nn.Conv2d(48, 48, 3, padding=1, groups=4)
        self.dilated = nn.Conv2d(48, 48, 3, padding=2, dilation=2)
        self.circular = nn.Conv2d(48, 48, 3, padding=1, padding_mode="circular")
        self.pointwise = nn.Conv2d(48, 48, 1)
        self.inplace = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        x = torch.relu(x) - x
        x = torch.relu(self.third(x)) + self.third(self.scale * x)
        x = self.grouped(self.same(x)) + functional.conv2d(self.scale * x, self.third.weight, padding=1)
        x = self.pointwise(self.circular(self.dilated(self.inplace(x))))
        x = self.last(self.smaller(x))
        x = self.relu(x).view(x.shape[0], 32, -1).mean(2)
        logits: torch.Tensor = self.out(x)
        logits.mul_(2.0)  # last, behind what the output node names
        return logits


class Aside(Wide):
    """A branch that is computed after the logits and thrown away, and channels that are split and put together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        left, right = x.chunk(2, 1)
        x = self.relu(self.last(self.relu(self.smaller(torch.cat([right, left], 1))))).mean((2, 3))
        logits: torch.Tensor = self.out(x)
        x.norm()
        return logits


class Mirrored(Wide):
    """Each image and its mirror image are one batch for a while, so rows are not examples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(torch.cat([x, x.flip(3)])))
        one, other = self.out(self.second(x).mean((2, 3))[:, :32]).chunk(2)
        logits: torch.Tensor = one + other
        return logits


class Summed(Wide):
    """Convolutions in sums, of which a path may take in six, and must leave the others."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.more = nn.ModuleList(nn.Conv2d(48, 48, 3, padding=1) for _ in range(8))
        self.same = nn.Conv2d(48, 48, 3, padding=1)
        self.inplace = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(self.first(x)))
        x = torch.relu(self.more[0](x) + x)
        y = self.more[1](x)
        y += self.norm(x)  # made behind the convolution
        x = functional.relu(torch.add(y, self.same(y)))
        x = self.more[3](x) + self.scale
        x = x + self.more[4](x).add(1.0)
        y = self.more[5](x)
        x = y + self.inplace(x)  # the convolution reads what this overwrites
        y = self.more[6](x)
        x += y
        one = x.shape[1] // 48  # a number of the graph
        x = self.more[2](x) + one
        y = self.more[7](x)
        x = 0.01 * torch.add(y + y, self.third(x), alpha=0.5)  # small enough for losses below the largest
        x = self.relu(self.last(self.relu(self.smaller(x))))
        logits: torch.Tensor = self.out(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("path", ["winograd", "winograd_bf16"])
@pytest.mark.parametrize("network", [Wide, Tangled, Aside, Mirrored, Summed])
def test_winograd_fits_wide_networks(network: type[Wide], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "wide", network)
    # Of random weights logits are hundreds, and two largest ones lie closer than bfloat16 tells apart.
    bound = Bound(loss=3e-2, accuracy=0.1) if path == "winograd_bf16" else None
    assert_within_bound(lambda path: random_game(FlatModel("wide", SHAPE), SHAPE, path), path, bound)


@pytest.mark.parametrize("path", ["winograd", "winograd_bf16"])
@pytest.mark.parametrize(("network", "taken"), [("wide", 6), ("resnet18", 8)])
def test_winograd_takes_in_the_sums_that_it_may(
    network: str, taken: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "wide", Summed)
    made = make_path(path, FlatModel(network, Shape(channels=3, height=32, width=32, classes=10)), [])
    assert isinstance(made, Winograd)
    nodes = list(made._graph.graph.nodes)
    assert sum("addend" in node.kwargs for node in nodes) == taken
    if network == "resnet18":
        assert not [node for node in nodes if node.op == "call_function"]


class Namesakes(nn.Module):
    """Modules whose names, joined otherwise, would be the same, or those that a path might give its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.first = nn.Conv2d(shape.channels, 16, 1)
        self.a = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
        self.a_0 = nn.Conv2d(16, 16, 3, padding=1)
        self.filtering_1 = nn.Conv2d(16, 16, 1)
        self.out = nn.Linear(16, shape.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        logits: torch.Tensor = self.out((self.a(x) + 2 * self.a_0(x) + self.filtering_1(x)).mean((2, 3)))
        return logits


def test_winograd_takes_no_module_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "namesakes", Namesakes)
    assert_within_bound(lambda path: random_game(FlatModel("namesakes", SHAPE), SHAPE, path), "winograd")


@pytest.mark.parametrize(
    ("name", "dtype", "replaced"), [("winograd", torch.float32, 16), ("winograd_bf16", torch.bfloat16, 20)]
)
def test_winograd_takes_every_convolution_of_a_resnet_that_it_fits(
    name: str, dtype: torch.dtype, replaced: int
) -> None:
    """Of 20: not the first, which has three channels, and the three of 1x1."""
    path = make_path(name, FlatModel("resnet18", Shape(channels=3, height=32, width=32, classes=10)), [])
    assert isinstance(path, Winograd)
    assert sum(isinstance(layer, Filtering) for layer in path._graph.modules()) == 16
    assert len(path._replaced) == replaced
    left = [layer for layer in path._graph.modules() if isinstance(layer, nn.Conv2d)]
    assert sorted(layer.in_channels for layer in left) == [3, 64, 128, 256]
    assert {layer.weight.dtype for layer in left} == {dtype}


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


@pytest.mark.parametrize(("path", "device", "other"), [("winograd", "meta", "cpu"), ("folded_tf32", "cpu", "cuda")])
def test_a_path_is_refused_on_a_device_that_it_is_not_made_for(path: str, device: str, other: str) -> None:
    there = FlatModel("cnn8", Shape(channels=1, height=8, width=8, classes=10), device)
    with pytest.raises(UserError, match=f"is made for {other} alone; set device = '{other}', or path = 'folded'"):
        make_path(path, there, [])


def test_a_gpu_is_handed_weights_in_the_order_of_its_images() -> None:
    there = make_path("folded", FlatModel("resnet18", Shape(channels=3, height=9, width=9, classes=10), "meta"), [])
    assert isinstance(there, Folded)
    weights = [tensor for tensor in there._graph.parameters() if tensor.ndim == 4]
    assert len(weights) == 20
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_tf32_is_allowed_for_its_own_path_alone_and_on_the_cpu_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FlatModel("resnet18", Shape(channels=3, height=9, width=9, classes=10))
    model.initial_state(torch.Generator().manual_seed(0))
    images = [torch.rand(3, 3, 9, 9), torch.rand(2, 3, 9, 9)]
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", False)
    seen: list[bool] = []
    ours, theirs = FoldedTf32(model, images), Folded(model, images)
    next(ours._graph.children()).register_forward_hook(lambda *_: seen.append(cudnn.allow_tf32))
    with torch.inference_mode():
        for made, expected in zip(ours.logits(), theirs.logits(), strict=True):
            assert not cudnn.allow_tf32
            assert torch.equal(made, expected)
    assert seen == [True, True]


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

    def check(path: str, model: str, device: str) -> None:
        tables = {"name": "e", "scoring": {"path": path, "device": device}, "model": {"name": model}}
        half = server_half(parse(Experiment, tables, "e"), nothing, (RosterEntry(client=0, samples=1),))
        file.write_text(to_json(half))
        app.check(file)

    for device in ("cpu", "cuda"):  # whether or not there is one here
        for path, model in (
            ("im2col", "cnn8"),
            ("folded", "resnet18"),
            ("im2col_bf16", ""),
            ("plain", "linear first"),
        ):
            check(path, model, device)
        with pytest.raises(UserError, match=r"begins with Linear; set path = 'plain'"):
            check("im2col", "linear first", device)
    check("winograd", "resnet18", "cpu")
    check("folded_tf32", "resnet18", "cuda")
    for path, device in (("winograd", "cuda"), ("folded_tf32", "cpu")):
        with pytest.raises(UserError, match="is made for"):
            check(path, "resnet18", device)
