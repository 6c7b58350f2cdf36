"""Every kind of decoder keeps the same promises; the kinds' own tables are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

from steelyard.config import Shape
from steelyard.errors import BadBundleError, UserError
from steelyard.generators import KINDS, ConvVaeParams, DcganParams, Decoder, MlpParams, decoder_params, train_decoder
from steelyard.generators.quality import judge

DIGITS = Shape(channels=1, height=8, width=8, classes=10)
SHAPES = [
    DIGITS,
    Shape(channels=1, height=28, width=28, classes=4),
    Shape(channels=3, height=32, width=32, classes=4),
    Shape(channels=1, height=10, width=6, classes=4),
]
QUICK: dict[str, Any] = {
    "mlp": MlpParams(hidden=16, steps=3),
    "conv_vae": ConvVaeParams(width=4, steps=3),
    "dcgan": DcganParams(width=4, steps=3),
}


def some_data(shape: Shape, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, shape.channels, shape.height, shape.width, generator=generator)
    return images, torch.arange(count) % shape.classes


def quick(kind: str, shape: Shape = DIGITS, seed: int = 1) -> Decoder:
    return train_decoder(*some_data(shape), shape, QUICK[kind], seed)


def digits(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels[start:stop] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.tensor(labels[start:stop], dtype=torch.int64)


def test_every_kind_is_tried() -> None:
    assert set(QUICK) == set(KINDS)
    assert [decoder_params({"kind": kind}).kind for kind in KINDS] == list(KINDS)
    assert decoder_params({}) == MlpParams()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.channels}x{shape.height}x{shape.width}")
@pytest.mark.parametrize("kind", KINDS)
def test_images_fit_the_shape_and_depend_on_their_own_latents_alone(kind: str, shape: Shape) -> None:
    decoder = quick(kind, shape)
    latents = torch.randn(5, decoder.latent, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 1, 2, 3])
    images = decoder(latents, labels)
    assert images.shape == (5, shape.channels, shape.height, shape.width)
    assert 0 <= images.min() < images.max() <= 1
    for place in range(5):
        alone = decoder(latents[place : place + 1], labels[place : place + 1])
        assert torch.allclose(alone[0], images[place], atol=1e-6)
    latents.requires_grad_()
    (jacobian,) = torch.autograd.grad(decoder(latents, labels)[2].sum(), latents)
    assert jacobian[2].abs().max() > 0
    assert not jacobian[[0, 1, 3, 4]].any(), "no other sample's latents matter"


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_in_the_latents_exist_and_are_right(kind: str) -> None:
    decoder = quick(kind)
    decoder = replace(decoder, weights={name: tensor.double() for name, tensor in decoder.weights.items()})
    labels = torch.tensor([3, 7])
    latents = torch.randn(2, decoder.latent, generator=torch.Generator().manual_seed(3)).double().requires_grad_()

    def brightness(z: torch.Tensor) -> torch.Tensor:
        return decoder(z, labels).square().sum()

    (first,) = torch.autograd.grad(brightness(latents), latents, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), latents)
    assert second.abs().max() > 0
    direction, step = torch.ones_like(latents), 1e-5
    ends = []
    for sign in (1, -1):
        moved = (latents + sign * step * direction).detach().requires_grad_()
        ends.append(torch.autograd.grad(brightness(moved), moved)[0].square().sum())
    slope = (ends[0] - ends[1]) / (2 * step)
    assert float((second * direction).sum()) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bits_no_global_generator_and_the_disk_keeps_all(kind: str, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    first, again, other = quick(kind), quick(kind), quick(kind, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    first.save(tmp_path / "decoder", b"{}")
    loaded = Decoder.load(tmp_path / "decoder")
    assert (loaded.kind, loaded.shape, loaded.labels, loaded.latent) == (kind, DIGITS, first.labels, first.latent)
    assert set(loaded.weights) == set(first.weights)
    for name, tensor in first.weights.items():
        assert torch.equal(tensor, again.weights[name])
        assert torch.equal(tensor, loaded.weights[name])
    assert any(not torch.equal(tensor, other.weights[name]) for name, tensor in first.weights.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_image_is_enough_to_train_on(kind: str) -> None:
    images, labels = some_data(DIGITS, 1)
    decoder = train_decoder(images, labels, DIGITS, QUICK[kind], 1)
    assert decoder.labels == (0,)
    assert all(tensor.isfinite().all() for tensor in decoder.weights.values())


def test_a_bundle_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    decoder = quick("mlp")
    replace(decoder, kind="diffusion").save(tmp_path / "decoder")
    with pytest.raises(BadBundleError, match="one of mlp, conv_vae, dcgan expected, got 'diffusion'"):
        Decoder.load(tmp_path / "decoder")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_make_no_image_of_the_shape_are_refused_when_read(kind: str, tmp_path: Path) -> None:
    decoder = quick(kind)
    missing = {name: tensor for name, tensor in decoder.weights.items() if name != "decode.1.bias"}
    narrow = {**decoder.weights, "decode.1.weight": decoder.weights["decode.1.weight"][:, 1:]}
    wild = {**decoder.weights, "decode.0.bias": torch.full_like(decoder.weights["decode.0.bias"], torch.nan)}
    faults = [
        (replace(decoder, weights=missing), "KeyError"),
        (replace(decoder, weights=narrow), "RuntimeError"),
        (replace(decoder, weights={}), "KeyError"),
        (replace(decoder, weights=wild), "finite images expected"),
        (replace(decoder, labels=()), f"a decoder of kind {kind} expected"),
        (replace(decoder, labels=(11,)), f"a decoder of kind {kind} expected"),
    ]
    for at, (wrong, message) in enumerate(faults):
        wrong.save(tmp_path / f"{at}")
        with pytest.raises(BadBundleError, match=message):
            Decoder.load(tmp_path / f"{at}")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "vae"}, r"\[attack\] decoder kind: one of 'mlp', 'conv_vae', 'dcgan' expected, got 'vae'"),
        ({"kind": "dcgan", "divergence": 0.1}, "unknown key 'divergence'"),
        ({"kind": "conv_vae", "hidden": 32}, "unknown key 'hidden'"),
        ({"width": 8}, "unknown key 'width'"),
        ({"kind": "dcgan", "smoothing": 2.0}, "smoothing: >= 0 and <= 1 expected, got 2.0"),
    ],
)
def test_mistakes_in_a_kinds_table_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoder_params(table)


@pytest.mark.slow
@pytest.mark.parametrize("params", [MlpParams(), ConvVaeParams(), DcganParams()], ids=lambda params: params.kind)
def test_on_two_hundred_digits_no_kind_ignores_the_label_or_collapses(params: Any) -> None:
    real = digits(0, 200)
    quality = judge(train_decoder(*real, DIGITS, params, 1), real, digits(200, 1200), 1)
    assert quality.recognized > 0.85
    assert quality.learned > 0.85 * quality.learned_real  # what as many real images teach the same small network
    assert quality.spread > 0.2
