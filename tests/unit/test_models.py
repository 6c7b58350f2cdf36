"""Flat models: one vector, the network that views it, and an initialization that draws from its own generator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scripts.doctor import model_bytes
from steelyard.bundle import TensorSpec
from steelyard.config import Shape
from steelyard.errors import UserError
from steelyard.models import MODELS, FlatModel, default_model

DIGITS = Shape(channels=1, height=8, width=8, classes=10)
FASHION = Shape(channels=1, height=28, width=28, classes=10)
COLOUR = Shape(channels=3, height=32, width=32, classes=10)
LARGE = ("resnet18", "vgg16_bn", "wrn28_10")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_normalization(shape: Shape) -> nn.Module:
    """Conv 1 -> 2 (3x3), batch normalization, a linear layer without bias: all kinds of state there are."""
    size = 2 * shape.height * shape.width
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(size, shape.classes, bias=False)
    )


@pytest.mark.parametrize(
    ("name", "shape", "size"), [("cnn8", DIGITS, 9930), ("cnn28", FASHION, 9098), ("cnn32", COLOUR, 19466)]
)
def test_sizes_by_hand(name: str, shape: Shape, size: int) -> None:
    """cnn8: 16*9+16 + 32*16*9+32 + 10*512+10 = 9930. cnn28: 8*9+8 + 16*8*9+16 + 10*784+10 = 9098.

    cnn32: 16*27+16 + 32*16*9+32 + 32*32*9+32 + 10*512+10 = 19466.
    """
    layout = FlatModel(name, shape).layout
    assert (layout.size, layout.trainable) == (size, size)
    assert sum(math.prod(spec.shape) for spec in layout.specs) == size


def test_the_layout_names_tensors_in_declaration_order() -> None:
    assert FlatModel("cnn8", DIGITS).layout.specs == (
        TensorSpec("0.weight", "F32", (16, 1, 3, 3)),
        TensorSpec("0.bias", "F32", (16,)),
        TensorSpec("3.weight", "F32", (32, 16, 3, 3)),
        TensorSpec("3.bias", "F32", (32,)),
        TensorSpec("6.weight", "F32", (10, 512)),
        TensorSpec("6.bias", "F32", (10,)),
    )


def test_normalization_comes_after_the_parameters_and_counters_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "normalized", with_normalization)
    model = FlatModel("normalized", DIGITS)
    names = [spec.name for spec in model.layout.specs]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "1.running_mean", "1.running_var"]
    assert (model.layout.trainable, model.layout.size) == (18 + 2 + 4 + 1280, 18 + 2 + 4 + 1280 + 4)
    state = model.initial_state(generator())
    assert state[20:24].tolist() == [1, 1, 0, 0], "normalization starts as the identity"
    assert state[-4:].tolist() == [0, 0, 1, 1], "mean 0, variance 1"


@pytest.mark.parametrize(("name", "shape"), [("cnn8", DIGITS), ("cnn28", FASHION)])
def test_a_loaded_state_is_the_plain_network_with_the_same_weights(name: str, shape: Shape) -> None:
    model = FlatModel(name, shape)
    state = model.initial_state(generator(1))
    plain = MODELS[name](shape)
    nn.utils.vector_to_parameters(state, plain.parameters())
    images = torch.rand(5, 1, shape.height, shape.width, generator=generator(2))
    model.load(torch.zeros_like(state))
    assert model(images).abs().max() == 0
    model.load(state)
    assert torch.equal(model(images), plain(images))
    assert model(images).shape == (5, 10)


def test_parameters_are_views_of_the_state_and_loading_copies() -> None:
    model = FlatModel("cnn8", DIGITS)
    state = torch.arange(model.layout.size, dtype=torch.float32)
    model.load(state)
    assert model.parameters[1].tolist() == list(range(144, 160)), "the first bias follows 16 * 9 weights"
    with torch.no_grad():
        model.parameters[0].zero_()
    assert model.state[:145].tolist() == [0.0] * 144 + [144.0]
    assert state[1] == 1, "the loaded vector is left alone"
    assert all(parameter.requires_grad for parameter in model.parameters)


@pytest.mark.parametrize("shape", [(1,), (), (9929,), (1, 9930)])
def test_a_vector_of_another_shape_is_no_state(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="a whole state"):
        FlatModel("cnn8", DIGITS).load(torch.ones(shape))


def test_initialization_repeats_and_depends_on_its_generator_alone() -> None:
    model = FlatModel("cnn8", DIGITS)
    first = model.initial_state(generator(3))
    kept = first.clone()
    torch.rand(1, generator=generator(9))
    assert torch.equal(first, FlatModel("", DIGITS).initial_state(generator(3)))
    assert not torch.equal(first, model.initial_state(generator(4)))
    assert torch.equal(first, kept), "a later initialization does not reach into an earlier state"


def test_initialization_is_uniform_within_its_bound_and_biases_are_zero() -> None:
    """He-uniform: |w| <= sqrt(6 / fan-in), fan-in 9, 16 * 9 and 512."""
    model = FlatModel("cnn8", DIGITS)
    model.initial_state(generator())
    for weight, fan_in in zip(model.parameters[::2], (9, 144, 512), strict=True):
        bound = math.sqrt(6 / fan_in)
        assert 0.9 * bound < weight.abs().max() <= bound
        assert abs(float(weight.detach().std()) / (bound / math.sqrt(3)) - 1) < 0.2
    assert all(bias.abs().max() == 0 for bias in model.parameters[1::2])


def test_nothing_global_is_drawn_from() -> None:
    before = torch.get_rng_state()
    FlatModel("cnn28", FASHION).initial_state(generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_network_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"^unknown model 'cnn9'; did you mean 'cnn8'\? known: cnn8, cnn28, "):
        FlatModel("cnn9", DIGITS)


def test_images_without_a_network_of_their_own_size() -> None:
    assert [default_model(shape) for shape in (DIGITS, FASHION, COLOUR)] == ["cnn8", "cnn28", "cnn32"]
    with pytest.raises(
        UserError,
        match=r"^\[model\] name: no default network for 32x16 images; name one of cnn8, cnn28, cnn28_large, cnn32",
    ):
        FlatModel("", Shape(channels=3, height=32, width=16, classes=10))


class Constant(nn.Module):
    """A constant in a buffer, which would be 0 wherever a state is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1,), 0.5))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.PReLU, "no initialization is known for PReLU"),
        (Constant, "no initialization is known for Constant; .* write constants into forward"),
        (nn.Dropout, "no dropout expected"),
    ],
)
def test_what_a_state_cannot_hold_is_refused(
    module: type[nn.Module], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "odd", lambda _: nn.Sequential(nn.Linear(2, 2), module()))
    with pytest.raises(UserError, match=rf"^\[model\] odd: {message}"):
        FlatModel("odd", DIGITS).initial_state(generator())


def test_a_function_that_returns_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "odd", lambda _: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=r"^\[model\] odd: an nn.Module expected, got NoneType"):
        FlatModel("odd", DIGITS)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Flatten(), "a network with parameters expected, got Flatten"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), r"images \(2, 1, 8, 8\) .* torch says: mat1 and mat2 shapes"),
    ],
)
def test_a_network_that_takes_no_such_images(module: nn.Module, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "odd", lambda _: module)
    with pytest.raises(UserError, match=rf"^\[model\] odd: {message}"):
        FlatModel("odd", DIGITS).try_out()


@pytest.mark.parametrize("outputs", [1, 11])
def test_logits_for_another_number_of_labels(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "odd", lambda _: nn.Sequential(nn.Flatten(), nn.Linear(64, outputs)))
    with pytest.raises(UserError, match=rf"logits of shape \(3, 10\) expected, got Tensor of shape \(3, {outputs}\)"):
        FlatModel("odd", DIGITS)(torch.zeros(3, 1, 8, 8))


# -- the networks of the study ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "normalized"),
    [
        ("cnn32_bn", 19_546, 80),
        ("resnet18", 11_173_962, 4_800),
        ("vgg16_bn", 14_728_266, 4_224),
        ("wrn28_10", 36_479_194, 8_976),
    ],
)
def test_normalized_networks_have_their_published_sizes(name: str, parameters: int, normalized: int) -> None:
    """Beside them a state holds mean and variance of every normalized channel.

    cnn32_bn: 16 + 32 + 32 = 80. resnet18: 64 + 2*2*64 + 5*(128 + 256 + 512) = 4800.
    vgg16_bn: 2*64 + 2*128 + 3*256 + 6*512 = 4224. wrn28_10: 16 + 7*160 + 160 + 7*320 + 320 + 7*640 + 640 = 8976.
    """
    layout = FlatModel(name, COLOUR).layout
    assert (layout.trainable, layout.size) == (parameters, parameters + 2 * normalized)
    grey = FlatModel(name, Shape(channels=1, height=32, width=32, classes=10)).layout
    first = layout.specs[0].shape
    assert layout.size - grey.size == first[0] * 2 * 9, "one channel less takes 9 weights of each first filter"


@pytest.mark.parametrize("name", [*LARGE, "cnn32", "cnn32_bn"])
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_a_network_of_the_study_takes_a_single_image(name: str, channels: int, side: int) -> None:
    """Even to train on: the last batch of an epoch may be a single image."""
    model = FlatModel(name, Shape(channels=channels, height=side, width=side, classes=7))
    state = model.initial_state(generator())
    images = torch.rand(1, channels, side, side, generator=generator(1))
    for mode in (model.module.train, model.module.eval):
        model.load(state)
        mode()
        with torch.inference_mode():
            logits = model(images)
        assert logits.shape == (1, 7)
        assert 0.01 < logits.abs().max() < 100, "neither vanishing nor exploding"


@pytest.mark.parametrize(("name", "least"), [("cnn32_bn", 8), ("resnet18", 9), ("vgg16_bn", 17), ("wrn28_10", 5)])
def test_the_smallest_image_and_one_pixel_less(name: str, least: int) -> None:
    images = torch.rand(1, 1, least, least, generator=generator(1))
    model = FlatModel(name, Shape(channels=1, height=least, width=least, classes=10))
    model.initial_state(generator())
    model.module.train()
    assert model(images).isfinite().all()
    with pytest.raises(UserError, match=f"{name}: images of at least {least}x{least} pixels expected, got {least}x"):
        FlatModel(name, Shape(channels=1, height=least, width=least - 1, classes=10))


@pytest.mark.parametrize("name", MODELS)
def test_the_doctor_estimates_every_network_from_above(name: str) -> None:
    sides = {"cnn8": 8, "cnn28": 28, "cnn28_large": 28}
    side = sides.get(name, 32)
    size = 4 * FlatModel(name, Shape(channels=3, height=side, width=side, classes=10)).layout.size
    assert size <= model_bytes(name)
    assert model_bytes(name) < 1.05 * size or size < 10**6
