"""Data sets: digits as they are, and FashionMNIST from the first place that has it. Colour ones have their own file."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from steelyard.config import DataConfig
from steelyard.data import DATASETS, fashion_mnist, load
from steelyard.data.dataset import Dataset
from steelyard.errors import UserError


def write_idx(path: Path, values: np.ndarray) -> None:
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content += values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_tiny(folder: Path, fill: int = 0, suffix: str = ".gz") -> None:
    """Three training and two test images, all pixels `fill`; labels 0 1 2 and 3 4."""
    folder.mkdir(parents=True, exist_ok=True)
    for half, labels in (("train", [0, 1, 2]), ("t10k", [3, 4])):
        write_idx(folder / f"{half}-images-idx3-ubyte{suffix}", np.full((len(labels), 28, 28), fill))
        write_idx(folder / f"{half}-labels-idx1-ubyte{suffix}", np.array(labels))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no data: home, Debian's folder and STEELYARD_DATA point below a temporary folder."""
    monkeypatch.delenv("STEELYARD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path


def pixel(dataset: Dataset) -> int:
    assert len(np.unique(dataset.images)) == 1
    return round(float(dataset.images[0, 0, 0, 0]) * 255)


def test_digits_are_scikit_learns_from_0_to_1() -> None:
    dataset = load(DataConfig())
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert dataset.images.min() == 0
    assert dataset.images.max() == 1
    # the first image's first row, as scikit-learn's user guide prints it
    np.testing.assert_array_equal(dataset.images[0, 0, 0] * 16, [0, 0, 5, 13, 9, 1, 0, 0])
    assert dataset.labels[:10].tolist() == list(range(10))


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'fashion_mnist'"):
        load(DataConfig(dataset="fashion-mnist"))
    assert set(DATASETS) == {"cifar10", "digits", "fashion_mnist", "svhn"}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_small_set_of_ones_own_is_taken_training_images_first(nowhere: Path, suffix: str) -> None:
    write_tiny(nowhere / "mine", fill=255, suffix=suffix)
    dataset = load(DataConfig(dataset="fashion_mnist", folder=str(nowhere / "mine")))
    assert dataset.images.shape == (5, 1, 28, 28)
    assert dataset.images.dtype == np.float32
    assert (dataset.images == 1).all()
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]


def test_places_are_tried_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made available from the last place to the first: each new one wins over those after it."""
    mine, root = nowhere / "mine", nowhere / "root"
    monkeypatch.setenv("STEELYARD_DATA", str(root))
    places = [nowhere / "debian", root / "fashion_mnist", root / "fashion-mnist", root]
    for fill, place in enumerate(places, start=1):
        write_tiny(place, fill)
        assert pixel(fashion_mnist.load()) == fill
    write_tiny(mine, fill=9)
    assert pixel(fashion_mnist.load(str(mine))) == 9


def test_the_cache_of_an_earlier_download_is_found(nowhere: Path) -> None:
    write_tiny(nowhere / "home" / ".cache" / "steelyard" / "fashion-mnist", fill=9)
    assert pixel(fashion_mnist.load()) == 9


def test_a_place_with_three_of_four_files_is_passed_over(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_DATA", str(nowhere / "root"))
    write_tiny(nowhere / "root", fill=1)
    (nowhere / "root" / "t10k-labels-idx1-ubyte.gz").unlink()
    write_tiny(nowhere / "debian", fill=2)
    assert pixel(fashion_mnist.load()) == 2


def test_a_named_folder_is_the_only_place(nowhere: Path) -> None:
    """Other data under the name of what was asked for would be a result of something else."""
    write_tiny(nowhere / "debian")
    with pytest.raises(UserError, match=r"\[data\] folder: .* expected in .*mine, there is no such folder"):
        fashion_mnist.load(str(nowhere / "mine"))
    write_tiny(nowhere / "mine")
    (nowhere / "mine" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"expected in .*mine, it has no t10k-labels-idx1-ubyte"):
        fashion_mnist.load(str(nowhere / "mine"))


def test_a_damaged_file_is_an_error_even_if_another_place_has_a_good_one(nowhere: Path) -> None:
    write_tiny(nowhere / "mine")
    write_tiny(nowhere / "debian")
    (nowhere / "mine" / "train-labels-idx1-ubyte.gz").write_bytes(b"\0\0\10\1")
    with pytest.raises(UserError, match=r"mine/train-labels-idx1-ubyte\.gz: 1 sizes expected"):
        fashion_mnist.load(str(nowhere / "mine"))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-images-idx3-ubyte.gz", np.zeros((3, 28, 27)), r"train images of 28x28 pixels expected, got \(28, 27\)"),
        ("t10k-images-idx3-ubyte.gz", np.zeros((3, 28, 28)), "got 3 images, 2 labels"),
        ("t10k-labels-idx1-ubyte.gz", np.array([3, 10]), "t10k labels from 0 to 9 expected, got 10"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(nowhere: Path, name: str, values: np.ndarray, message: str) -> None:
    write_tiny(nowhere / "mine")
    write_idx(nowhere / "mine" / name, values)
    with pytest.raises(UserError, match=message):
        fashion_mnist.load(str(nowhere / "mine"))


def test_a_file_of_official_size_must_have_the_official_content(nowhere: Path) -> None:
    write_tiny(nowhere / "mine")
    write_idx(nowhere / "mine" / "t10k-labels-idx1-ubyte.gz", np.zeros(10000))
    with pytest.raises(
        UserError, match=r"t10k-labels.*0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ):
        fashion_mnist.load(str(nowhere / "mine"))


def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        assert "fashion_mnist" not in os.environ.get("STEELYARD_REQUIRE", ""), "required, and not installed"
        pytest.skip("FashionMNIST is not installed: apt-get install dataset-fashion-mnist")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STEELYARD_DATA", raising=False)
    dataset = load(DataConfig(dataset="fashion_mnist"))
    assert dataset.images.shape == (70000, 1, 28, 28)
    assert np.bincount(dataset.labels).tolist() == [7000] * 10
    assert dataset.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert (dataset.images.min(), dataset.images.max()) == (0, 1)
    # the mean and deviation of the training images that are widely used to normalize them
    assert dataset.images[:60000].mean(dtype=np.float64) == pytest.approx(0.2860, abs=1e-4)
    assert dataset.images[:60000].std(dtype=np.float64) == pytest.approx(0.3530, abs=1e-4)
