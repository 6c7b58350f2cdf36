"""Where arriving bytes go: bounds, counts, digests."""

import hashlib
import mmap
from pathlib import Path

import pytest

from steelyard.bundle import Manifest, TensorSpec
from steelyard.errors import BadBundleError
from steelyard.transport.base import Sink, chunks


def announced(data: bytes) -> Manifest:
    return Manifest((TensorSpec("x", "U8", (len(data),)),), hashlib.sha256(data).hexdigest())


def test_chunks_of_any_size_add_up() -> None:
    into = bytearray(6)
    sink = Sink(memoryview(into), announced(b"abcdef"))
    for chunk in (b"a", b"", memoryview(b"bcd"), b"ef"):
        sink.write(chunk)
    sink.finish()
    assert bytes(into) == b"abcdef"
    assert sink.received == 6


def test_chunks_are_put_where_they_belong_by_whoever_may() -> None:
    into, put = bytearray(6), []
    sink = Sink(memoryview(into), announced(b"abcdef"), lambda at, chunk: put.append((at, bytes(chunk))))
    for chunk in (b"abc", memoryview(b"de"), b"f"):
        sink.write(chunk)
    sink.finish()
    assert put == [(0, b"abc"), (3, b"de"), (5, b"f")]
    assert bytes(into) == bytes(6)


def test_too_much_is_refused_before_it_is_written() -> None:
    memory = bytearray(b"......!!")
    sink = Sink(memoryview(memory)[:6], announced(b"abcdef"))
    sink.write(b"abcde")
    with pytest.raises(BadBundleError, match="6 bytes announced, at least 7 sent") as caught:
        sink.write(b"fg")
    assert caught.value.refusal == "TOO_LARGE"
    assert memory == b"abcde.!!"


@pytest.mark.parametrize(("sent", "refusal"), [(b"abcde", "TRUNCATED"), (b"abcdeF", "BAD_DIGEST")])
def test_too_little_and_wrong_bytes_are_found_at_the_end(sent: bytes, refusal: str) -> None:
    sink = Sink(memoryview(bytearray(6)), announced(b"abcdef"))
    sink.write(sent)
    with pytest.raises(BadBundleError) as caught:
        sink.finish()
    assert caught.value.refusal == refusal


def test_an_empty_bundle_needs_no_chunk() -> None:
    Sink(memoryview(bytearray()), Manifest((), hashlib.sha256().hexdigest())).finish()


def test_offsets_beyond_two_gib(tmp_path: Path) -> None:
    size = 2**31 + 10  # a sparse file: a page of it is ever touched
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    sink = Sink(memoryview(mapped), Manifest((TensorSpec("x", "U8", (size,)),), "0" * 64))
    sink.received = 2**31 + 3
    sink.write(b"abc")
    assert sink.received == 2**31 + 6
    assert mapped[2**31 + 2 : 2**31 + 7] == b"\0abc\0"


def test_slices_cover_a_buffer_once() -> None:
    assert [bytes(c) for c in chunks(memoryview(b"abcdefg"), 3)] == [b"abc", b"def", b"g"]
    assert [bytes(c) for c in chunks(memoryview(b"abcdef"), 3)] == [b"abc", b"def"]
    assert list(chunks(memoryview(b""), 3)) == []
