"""CIFAR-10 and SVHN from tiny files in their exact formats, and every way in which such a file can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from steelyard.config import DataConfig
from steelyard.data import cifar10, load, svhn
from steelyard.errors import UserError

LABELS = {name: [at, (at + 5) % 10] for at, name in enumerate(cifar10.FILES)}  # two images each


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no data."""
    monkeypatch.delenv("STEELYARD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def batch(labels: list[int], fill: int = 0) -> bytes:
    """Records whose red, green and blue are `fill`, `fill` + 1 and `fill` + 2 but for the first red row: 0 to 31."""
    colours = [bytes(range(32)) + bytes([fill] * 992), bytes([fill + 1] * 1024), bytes([fill + 2] * 1024)]
    return b"".join(bytes([label]) + b"".join(colours) for label in labels)


def write_batches(folder: Path, fill: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in LABELS.items():
        (folder / name).write_bytes(batch(labels, fill))
    return folder


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
    info.size, info.type = len(content), kind
    return info, content


def batches(fill: int = 0) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members as the official archive has them: in no order, with two files beside."""
    named = [member(name, batch(labels, fill)) for name, labels in LABELS.items()]
    return [named[5], member("readme.html", b"<html>"), *named[:5], member("batches.meta.txt", b"airplane\n")]


def archive(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def write_archive(folder: Path, packed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / cifar10.ARCHIVE).write_bytes(packed)
    return folder


def write_svhn(folder: Path, fill: int = 0, *, compressed: bool = True) -> Path:
    """Three training and two test images; digits 1 2 0 and 9 0. Pixel (row, column, colour) of image n is theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in (("train_32x32.mat", [1, 2, 10]), ("test_32x32.mat", [9, 10])):
        images = np.full((32, 32, 3, len(labels)), fill, np.uint8)
        images[4, 7, 2] = np.arange(10, 10 + len(labels))
        write_mat(folder / name, images, np.array(labels, np.uint8)[:, None], compressed=compressed)
    return folder


def write_mat(path: Path, images: np.ndarray, labels: np.ndarray, *, compressed: bool = True) -> None:
    savemat(path, {"X": images, "y": labels}, do_compression=compressed)


def refusal(make: Callable[[str], object], folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        make(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# -- CIFAR-10 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["files", "folder of the archive", "archive"])
def test_cifar_images_are_red_green_blue_rows_training_first(nowhere: Path, form: str) -> None:
    mine = nowhere / "mine"
    if form == "archive":
        write_archive(mine, archive(batches(fill=100)))
    else:
        write_batches(mine if form == "files" else mine / "cifar-10-batches-bin", fill=100)
    dataset = load(DataConfig(dataset="cifar10", folder=str(mine)))
    assert dataset.images.shape == (12, 3, 32, 32)
    assert dataset.images.dtype == np.float32
    assert dataset.labels.tolist() == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9, 5, 0]
    pixels = np.rint(dataset.images * 255).astype(int)
    np.testing.assert_array_equal(dataset.images, (pixels / 255).astype(np.float32))
    assert pixels[0, 0, 0].tolist() == list(range(32)), "the first row of red"
    assert [set(pixels[3, colour, 1:].flat) for colour in range(3)] == [{100}, {101}, {102}]
    assert (dataset.shape.channels, dataset.shape.classes) == (3, 10)


def test_cifar_places_are_tried_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made available from the last place to the first: each new one wins over those after it."""
    mine, root = nowhere / "mine", nowhere / "root"
    write_batches(nowhere / "home" / ".cache" / "steelyard" / "cifar10", fill=1)
    assert round(float(cifar10.load().images[0, 2, 0, 0]) * 255) == 3
    monkeypatch.setenv("STEELYARD_DATA", str(root))
    for fill, place in enumerate([root / "cifar-10", root / "cifar10", root], start=2):
        write_archive(place, archive(batches(fill)))
        assert round(float(cifar10.load().images[0, 2, 0, 0]) * 255) == fill + 2
    write_archive(mine, archive(batches(7)))
    assert round(float(cifar10.load(str(mine)).images[0, 2, 0, 0]) * 255) == 9


def test_cifar_places_with_five_of_six_files_are_passed_over(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_DATA", str(nowhere / "root"))
    write_batches(nowhere / "root", fill=1)
    (nowhere / "root" / cifar10.TEST).unlink()
    write_batches(nowhere / "root" / "cifar10", fill=5)
    assert round(float(cifar10.load().images[0, 1, 0, 0]) * 255) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (batch([1, 2])[:-1], "data_batch_3.bin: up to 10000 records of 3073 bytes expected, got 6145 bytes"),
        (batch([1]) * 10001, "data_batch_3.bin: up to 10000 records of 3073 bytes expected, got 30733073 bytes"),
        (batch([3, 10]), "data_batch_3.bin: labels from 0 to 9 expected, got 10"),
        (b"<html>not found</html>", "got 22 bytes"),
    ],
)
def test_a_damaged_cifar_file_is_named(nowhere: Path, content: bytes, message: str) -> None:
    (write_batches(nowhere / "mine") / "data_batch_3.bin").write_bytes(content)
    write_batches(nowhere / "home" / ".cache" / "steelyard" / "cifar10")
    assert message in refusal(cifar10.load, nowhere / "mine"), "though another place has good ones"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 20 images have the official size, so that large ones need no time."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", 20)


@pytest.mark.usefixtures("few")
def test_cifar_files_of_official_size_have_balanced_labels(nowhere: Path) -> None:
    mine = write_batches(nowhere / "mine")
    (mine / cifar10.TEST).write_bytes(batch([*range(10), *range(10)]))
    assert len(cifar10.load(str(mine))) == 30
    (mine / cifar10.TEST).write_bytes(batch([*range(10), *range(9), 0]))
    assert "2 test images of each label expected, got [3, 2, 2, 2, 2, 2, 2, 2, 2, 1]" in refusal(cifar10.load, mine)
    for name in cifar10.TRAINING:
        (mine / name).write_bytes(batch([*range(10), *range(9), 0]))
    assert "10 training images of each label expected, got [15, 10," in refusal(cifar10.load, mine)


SIZE = 20 * cifar10.RECORD_BYTES


def link() -> tuple[tarfile.TarInfo, bytes]:
    info, _ = member(cifar10.TEST, kind=tarfile.SYMTYPE)
    info.linkname = "/etc/passwd"
    return info, b""


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "missing": (lambda: archive(batches()[1:]), "test_batch.bin expected inside, it is not there"),
    "twice": (lambda: archive([*batches(), batches()[0]]), "bin/test_batch.bin expected once inside, it came twice"),
    "link": (lambda: archive([link(), *batches()[1:]]), "of at most 61460 bytes expected, got no plain file"),
    "large": (
        lambda: archive([member(cifar10.TEST, bytes(SIZE + 1)), *batches()[1:]]),
        "of at most 61460 bytes expected, got 61461 bytes",
    ),
    "bomb": (lambda: archive([*batches(), member("beside", bytes(6 * SIZE + 2**24))]), "after unpacking, got more"),
    "cut": (lambda: archive(batches())[:300], "a readable tar.gz archive expected"),
    "check sum": (lambda: archive(batches())[:-8] + bytes(8), "tar.gz archive expected: CRC check failed"),
    "cut inside": (
        lambda: gzip.compress(gzip.decompress(archive(batches()))[:5000]),
        "a readable tar.gz archive expected",
    ),
    "no archive": (lambda: b"<html>not found</html>", "a readable tar.gz archive expected"),
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_cifar_archive_is_refused(nowhere: Path, make: Callable[[], bytes], message: str) -> None:
    assert message in refusal(cifar10.load, write_archive(nowhere / "mine", make()))


def test_nothing_of_an_archive_is_written_to_disk(nowhere: Path) -> None:
    members = batches()
    members[0][0].name = f"../../../{nowhere}/escaped/test_batch.bin"
    mine = write_archive(nowhere / "mine", archive(members))
    assert len(cifar10.load(str(mine))) == 12
    assert sorted(path.name for path in nowhere.rglob("*")) == [cifar10.ARCHIVE, "mine"]


def test_a_cifar_archive_of_official_size_must_have_the_official_check_sum(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official archive is not at hand: a tiny one is given its part."""
    packed = archive(batches())
    monkeypatch.setattr(cifar10, "ARCHIVE_BYTES", len(packed))
    mine = write_archive(nowhere / "mine", packed)
    assert f"MD5 {cifar10.ARCHIVE_MD5} expected, got " in refusal(cifar10.load, mine)
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(packed, usedforsecurity=False).hexdigest())
    assert len(cifar10.load(str(mine))) == 12


# -- SVHN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn_has_rows_columns_colours_in_place_and_zero_for_ten(nowhere: Path, compressed: bool) -> None:
    mine = write_svhn(nowhere / "mine", fill=51, compressed=compressed)
    dataset = load(DataConfig(dataset="svhn", folder=str(mine)))
    assert dataset.images.shape == (5, 3, 32, 32)
    assert dataset.images.dtype == np.float32
    assert dataset.labels.tolist() == [1, 2, 0, 9, 0]
    assert np.rint(dataset.images[:, 2, 4, 7] * 255).tolist() == [10, 11, 12, 10, 11]
    dataset.images[:, 2, 4, 7] = 0.2
    assert (dataset.images == np.float32(0.2)).all()


def test_svhn_places_are_tried_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, root = nowhere / "mine", nowhere / "root"
    write_svhn(nowhere / "home" / ".cache" / "steelyard" / "svhn", fill=1)
    assert round(float(svhn.load().images[0, 0, 0, 0]) * 255) == 1
    monkeypatch.setenv("STEELYARD_DATA", str(root))
    for fill, place in enumerate([root / "SVHN", root / "svhn", root], start=2):
        write_svhn(place, fill)
        assert round(float(svhn.load().images[0, 0, 0, 0]) * 255) == fill
    write_svhn(mine, 9)
    assert round(float(svhn.load(str(mine)).images[0, 0, 0, 0]) * 255) == 9


IMAGES, DIGITS = np.zeros((32, 32, 3, 2), np.uint8), np.array([[1], [2]], np.uint8)


@pytest.mark.parametrize(
    ("images", "digits", "message"),
    [
        (IMAGES.transpose(3, 0, 1, 2), DIGITS, "X of bytes [32, 32, 3, n] expected, got uint8 [2, 32, 32, 3]"),
        (np.zeros((2, 2), np.uint8), DIGITS, "X of bytes [32, 32, 3, n] expected, got uint8 [2, 2]"),
        (IMAGES.astype(float), DIGITS, "X of bytes [32, 32, 3, n] expected, got float64 [32, 32, 3, 2]"),
        (IMAGES, DIGITS[:1], "as many labels y as images X expected, got 2 images, 1 labels"),
        (IMAGES, DIGITS - 1, "labels y from 1 to 10 expected (10 is the digit 0), got 0"),
        (IMAGES, DIGITS + 9, "labels y from 1 to 10 expected (10 is the digit 0), got 11"),
        (IMAGES, DIGITS + 0.5, "got 1.5"),
    ],
)
def test_svhn_values_that_do_not_fit_are_refused(
    nowhere: Path, images: np.ndarray, digits: np.ndarray, message: str
) -> None:
    mine = write_svhn(nowhere / "mine")
    write_mat(mine / "test_32x32.mat", images, digits)
    said = refusal(svhn.load, mine)
    assert "test_32x32.mat: " in said
    assert message in said


@pytest.mark.parametrize("digits", [DIGITS.T, DIGITS.astype(float), DIGITS.astype(np.int64)])
def test_svhn_labels_may_be_a_row_and_of_any_kind_of_number(nowhere: Path, digits: np.ndarray) -> None:
    mine = write_svhn(nowhere / "mine")
    write_mat(mine / "test_32x32.mat", IMAGES, digits)
    assert svhn.load(str(mine)).labels.tolist() == [1, 2, 0, 1, 2]


def test_svhn_files_of_official_size_or_number_must_have_the_official_check_sum(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official files are not at hand: a tiny one is given their part."""
    mine = write_svhn(nowhere / "mine")
    path = mine / "test_32x32.mat"
    md5, size = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(), path.stat().st_size
    wrong = f"test_32x32.mat: official size, so MD5 {'0' * 32} expected, got {md5}"
    for part in (svhn.Part(images=9, size=size, md5="0" * 32), svhn.Part(images=2, size=9, md5="0" * 32)):
        monkeypatch.setitem(svhn.PARTS, "test_32x32.mat", part)
        assert wrong in refusal(svhn.load, mine)
    monkeypatch.setitem(svhn.PARTS, "test_32x32.mat", svhn.Part(images=2, size=size, md5=md5))
    assert len(svhn.load(str(mine))) == 5
