"""Fetching data over a real HTTP connection to a server in this process."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from steelyard.data import cifar10, fashion_mnist, svhn
from steelyard.data.download import fetch
from steelyard.errors import UserError

BODY = b"steelyard" * 1000
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


class Site(ThreadingHTTPServer):
    """Serves `files`; one in `stalled` stops after half of its body, one in `dripping` goes on byte by byte."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.stalled: set[str] = set()
        self.dripping: set[str] = set()
        self.over = threading.Event()
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.server.requests.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        body = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that gave up closes its end
            self.send_body(name, body)

    def send_body(self, name: str, body: bytes) -> None:
        half = len(body) // 2
        self.wfile.write(body[:half])
        if name in self.server.stalled:
            self.server.over.wait(60)
        elif name in self.server.dripping:
            for byte in body[half:]:
                self.server.over.wait(0.05)
                self.wfile.write(bytes([byte]))
        else:
            self.wfile.write(body[half:])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def closed_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address that refuses: its port is taken by a socket that does not listen."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no data: home and Debian's folder are empty ones, STEELYARD_DATA is not set."""
    monkeypatch.delenv("STEELYARD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path


def test_a_file_is_fetched_into_a_folder_that_is_made_for_it(site: Site, tmp_path: Path) -> None:
    site.files["data.gz"] = BODY
    target = tmp_path / "cache" / "fashion-mnist" / "data.gz"
    fetch(f"{site.url}/data.gz", target, size=len(BODY), md5=MD5, limit_s=30)
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target], "the partial file is gone"


WRONG = {
    "other content": (BODY[:-1] + b"!", f"MD5 {MD5} expected, got "),
    "too short": (BODY[:-1], "9000 bytes expected, got 8999"),
    "too long": (BODY + b"!", "9000 bytes expected, got more"),
}


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_leaves_nothing_behind(site: Site, tmp_path: Path, body: bytes, message: str) -> None:
    site.files["data.gz"] = body
    with pytest.raises(UserError, match=message):
        fetch(f"{site.url}/data.gz", tmp_path / "data.gz", size=len(BODY), md5=MD5, limit_s=30)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_does_not_replace_one_that_is_there(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.gz").write_bytes(b"old")
    site.files["data.gz"] = BODY[::-1]
    with pytest.raises(UserError, match="MD5"):
        fetch(f"{site.url}/data.gz", tmp_path / "data.gz", size=len(BODY), md5=MD5, limit_s=30)
    assert (tmp_path / "data.gz").read_bytes() == b"old"


def test_a_missing_file_and_a_refused_connection_say_so(site: Site, closed_url: str, tmp_path: Path) -> None:
    for url, message in [(site.url, "404"), (closed_url, "refused")]:
        with pytest.raises(UserError, match=f"{url}/data.gz: .*{message}"):
            fetch(f"{url}/data.gz", tmp_path / "data.gz", size=len(BODY), md5=MD5, limit_s=30)
    assert list(tmp_path.iterdir()) == []


def test_a_stalled_transfer_is_given_up(site: Site, tmp_path: Path) -> None:
    site.files["data.gz"] = BODY
    site.stalled.add("data.gz")
    with pytest.raises(UserError, match="timed out"):
        fetch(f"{site.url}/data.gz", tmp_path / "data.gz", size=len(BODY), md5=MD5, limit_s=0.2)
    assert list(tmp_path.iterdir()) == []


def test_a_transfer_that_drips_on_is_given_up(site: Site, tmp_path: Path) -> None:
    """No single wait is long, but the whole would take minutes: more than this test may."""
    site.files["data.gz"] = BODY
    site.dripping.add("data.gz")
    with pytest.raises(UserError, match=r"9000 bytes expected within 0\.5 s, got |timed out"):
        fetch(f"{site.url}/data.gz", tmp_path / "data.gz", size=len(BODY), md5=MD5, limit_s=0.5)
    assert list(tmp_path.iterdir()) == []


def test_threads_that_fetch_the_same_file_do_not_meet(site: Site, tmp_path: Path) -> None:
    """A sweep's runs start side by side in one process, and each deals the data."""
    site.files |= {"slow.gz": BODY, "quick.gz": BODY}
    site.dripping.add("slow.gz")
    target = tmp_path / "data.gz"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(fetch, f"{site.url}/slow.gz", target, size=len(BODY), md5=MD5, limit_s=30)
        while not site.requests and not slow.done():
            wait([slow], 0.01)
        fetch(f"{site.url}/quick.gz", target, size=len(BODY), md5=MD5, limit_s=30)
        site.over.set()
        slow.result(30)
    assert target.read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [target]


def test_every_place_and_the_way_out_are_named_when_all_fail(
    nowhere: Path, closed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nowhere / "debian").mkdir()
    with pytest.raises(UserError) as at_home:
        fashion_mnist.load("", closed_url)
    monkeypatch.setenv("STEELYARD_DATA", str(nowhere / "root"))
    with pytest.raises(UserError) as elsewhere:
        fashion_mnist.load("", closed_url)
    for error, places in [
        (at_home, ["debian (has no train-images-idx3-ubyte[.gz])", "home/.cache/steelyard/fashion-mnist"]),
        (elsewhere, ["root", "root/fashion-mnist", "root/fashion_mnist", "debian"]),
    ]:
        message = str(error.value)
        assert "\n" not in message
        assert [place for place in places if f"{nowhere}/{place}" not in message] == []
        assert "refused" in message
        assert "apt-get install dataset-fashion-mnist" in message


def official(name: str) -> bytes:
    """An official .gz, rebuilt from Debian's: the same deflate stream behind a header with file name and time."""
    debian = (fashion_mnist.DEBIAN_FOLDER / f"{name}.gz").read_bytes()
    seconds = 1504176606 if name.startswith("train") else 1504176627  # 2017-08-31, within the published MD5
    return b"\x1f\x8b\x08\x08" + seconds.to_bytes(4, "little") + b"\0\3" + name.encode() + b"\0" + debian[10:]


def test_the_official_files_are_fetched_once_and_pass_their_published_checksums(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        assert "fashion_mnist" not in os.environ.get("STEELYARD_REQUIRE", ""), "required, and not installed"
        pytest.skip("FashionMNIST is not installed: apt-get install dataset-fashion-mnist")
    site.files = {f"{name}.gz": official(name) for name in fashion_mnist.PARTS}
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("STEELYARD_DATA", str(tmp_path))
    for _ in range(2):
        dataset = fashion_mnist.load("", site.url)
        assert np.bincount(dataset.labels).tolist() == [7000] * 10
    assert site.requests == list(site.files), "each was fetched once; the second load found them"
    assert sorted(path.name for path in (tmp_path / "fashion-mnist").iterdir()) == sorted(site.files)


# -- colour: the official files are not at hand, so tiny ones in the same formats are given their part -----------------


def published(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tiny_archive() -> bytes:
    """CIFAR-10 with one image per file, labels 0 to 5."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for label, name in enumerate(cifar10.FILES):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = 3073
            tar.addfile(info, io.BytesIO(bytes([label]) + bytes(3072)))
    return packed.getvalue()


def tiny_mat(digit: int) -> bytes:
    """SVHN with one image."""
    file = io.BytesIO()
    savemat(file, {"X": np.zeros((32, 32, 3, 1), np.uint8), "y": np.array([[digit]], np.uint8)}, do_compression=True)
    return file.getvalue()


def test_cifar_is_fetched_once_and_checked(site: Site, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tiny_archive()
    monkeypatch.setattr(cifar10, "ARCHIVE_BYTES", len(packed))
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", published(packed))
    site.files[cifar10.ARCHIVE] = packed[:-1] + b"!"
    with pytest.raises(UserError, match=f"cifar10: six files .* nor could they be fetched: .*MD5 {published(packed)}"):
        cifar10.load("", site.url)
    cache = nowhere / "home" / ".cache" / "steelyard" / "cifar10"
    assert list(cache.iterdir()) == [], "a wrong file leaves nothing behind"
    site.files[cifar10.ARCHIVE] = packed
    for _ in range(2):
        assert cifar10.load("", site.url).labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert site.requests == [cifar10.ARCHIVE] * 2, "refused, fetched, and found"
    assert list(cache.iterdir()) == [cache / cifar10.ARCHIVE]


def test_svhn_is_fetched_once_and_checked(site: Site, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_DATA", str(nowhere))
    for name, digit in (("train_32x32.mat", 10), ("test_32x32.mat", 7)):
        site.files[name] = tiny_mat(digit)
        part = svhn.Part(images=1, size=len(site.files[name]), md5=published(site.files[name]))
        monkeypatch.setitem(svhn.PARTS, name, part)
    for _ in range(2):
        assert svhn.load("", site.url).labels.tolist() == [0, 7]
    assert site.requests == list(site.files), "each was fetched once; the second load found them"
    (nowhere / "svhn" / "test_32x32.mat").unlink()
    assert svhn.load("", site.url).labels.tolist() == [0, 7]
    assert site.requests[2:] == ["test_32x32.mat"], "what is there is not fetched again"


@pytest.mark.parametrize(("name", "load"), [("cifar10", cifar10.load), ("svhn", svhn.load)])
def test_every_place_of_a_colour_set_is_named_when_all_fail(
    name: str, load: Callable[[str, str], object], nowhere: Path, closed_url: str
) -> None:
    with pytest.raises(UserError) as caught:
        load("", closed_url)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name}: ")
    for part in (f"{nowhere}/home/.cache/steelyard/{name} (no such folder)", "refused"):
        assert part in message
    assert message.endswith("Put the files into a folder and name it in [data] folder or in STEELYARD_DATA")
