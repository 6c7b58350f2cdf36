"""Decoders: what they make, that they are the same every time, and that they survive the disk."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from steelyard.config import Shape
from steelyard.generators import Decoder, MlpParams, cached_decoder, train_decoder

Digits = tuple[torch.Tensor, torch.Tensor]
SHAPE = Shape(channels=1, height=8, width=8, classes=10)
QUICK = MlpParams(hidden=32, steps=30)


@pytest.fixture(scope="module")
def digits() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels[:300] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return images, torch.tensor(labels[:300], dtype=torch.int64)


def only(digits: Digits, *labels: int) -> Digits:
    images, all_labels = digits
    keep = torch.isin(all_labels, torch.tensor(labels))
    return images[keep], all_labels[keep]


def same(a: Decoder, b: Decoder) -> bool:
    return a.labels == b.labels and all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def test_samples_look_like_their_label(digits: Digits) -> None:
    images, labels = digits
    decoder = train_decoder(images, labels, SHAPE, MlpParams(steps=300), seed=1)
    asked = torch.arange(10).repeat_interleave(20)
    made = decoder.sample(asked, torch.Generator().manual_seed(1))
    assert made.shape == (200, 1, 8, 8)
    assert 0 <= made.min() < 0.05
    assert 0.9 < made.max() <= 1
    real_means = torch.stack([images[labels == c].mean(0) for c in range(10)]).flatten(1)
    made_means = made.view(10, 20, 64).mean(1)
    assert torch.cdist(made_means, real_means).argmin(1).tolist() == list(range(10))
    within = made.view(10, 20, 64).std(1).mean()
    assert within > 0.05  # the samples of one label differ from each other


def test_a_decoder_refuses_labels_that_it_has_not_seen(digits: Digits) -> None:
    decoder = train_decoder(*only(digits, 3, 8), SHAPE, QUICK, seed=1)
    assert decoder.labels == (3, 8)
    with pytest.raises(ValueError, match=r"\(3, 8\) expected.*\[5\]"):
        decoder.sample(torch.tensor([3, 5]), torch.Generator().manual_seed(1))


def test_same_seed_same_bits_and_no_global_generator(digits: Digits) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (train_decoder(*digits, SHAPE, QUICK, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(first, again)
    assert not same(first, other)


def test_a_second_start_loads_the_decoder(digits: Digits, tmp_path: Path) -> None:
    first = cached_decoder(tmp_path, *digits, SHAPE, QUICK, 1)
    (path,) = tmp_path.iterdir()
    assert same(first, Decoder.load(path))
    other = train_decoder(*digits, SHAPE, QUICK, 2)
    other.save(path)  # a planted file shows that it is read, not trained again
    assert same(cached_decoder(tmp_path, *digits, SHAPE, QUICK, 1), other)


def test_everything_that_decides_a_decoder_names_it(digits: Digits, tmp_path: Path) -> None:
    cached_decoder(tmp_path, *digits, SHAPE, QUICK, 1)
    cached_decoder(tmp_path, *digits, SHAPE, QUICK, 2)
    cached_decoder(tmp_path, *digits, SHAPE, MlpParams(hidden=32, steps=31), 1)
    cached_decoder(tmp_path, *only(digits, 1, 2), SHAPE, QUICK, 1)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_file_is_reported_and_trained_anew(
    digits: Digits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = cached_decoder(tmp_path, *digits, SHAPE, QUICK, 1)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert same(cached_decoder(tmp_path, *digits, SHAPE, QUICK, 1), first)
    assert "damaged" in caplog.text
    assert same(Decoder.load(path), first)
