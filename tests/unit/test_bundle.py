"""Bundle files: what any safetensors reader and this one agree on, and what no file can talk the reader into."""

from __future__ import annotations

import json
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays_of

from steelyard.bundle import (
    DTYPES,
    MAX_TENSORS,
    BundleFile,
    Manifest,
    TensorSpec,
    digest,
    hand_over,
    raw,
    read_arrays,
    specs_of,
    write,
    write_arrays,
    write_text,
)
from steelyard.errors import BadBundleError, RemoteFault

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "nothing": np.empty((0, 3), np.float32),
    "count": np.array(7, np.int64),
    "größe": np.array([1.5, -0.0, np.inf], np.float64),
    "bytes": np.array([1, 2, 255], np.uint8),
}
SHA = "0" * 64
DIGEST = {"__metadata__": {"sha256": SHA}}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

named_arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=5),
    st.sampled_from(list(DTYPES.values())).flatmap(
        lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    ),
    max_size=4,
)


def same(ours: dict[str, np.ndarray[Any, Any]], theirs: dict[str, np.ndarray[Any, Any]]) -> None:
    """Equal names, dtypes, shapes and bytes; NaN equals itself and 0.0 is not -0.0."""
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        assert array.tobytes() == theirs[name].tobytes()


def file_with(path: Path, header: bytes | dict[str, Any], data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_what_is_written_is_read_back_by_both_readers(path: Path) -> None:
    manifest = write_arrays(path, ARRAYS)
    same(ARRAYS, read_arrays(path))
    same(ARRAYS, safetensors.numpy.load_file(path))
    assert list(read_arrays(path)) == list(ARRAYS), "the order is the mapping's"
    assert manifest.nbytes == 6 * 4 + 0 + 8 + 3 * 8 + 3
    assert manifest.sha256 == digest(b"".join(array.tobytes() for array in ARRAYS.values()))


@settings(max_examples=50, deadline=None, database=None)
@given(named_arrays)
def test_any_arrays_survive(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    write_arrays(path, arrays)
    same(arrays, read_arrays(path))
    same(arrays, safetensors.numpy.load_file(path))


def test_a_file_of_the_safetensors_library_opens_if_it_carries_our_digest(path: Path) -> None:
    """Its writer sorts tensors by dtype and name, so the digest is of the data region as it lies there."""
    safetensors.numpy.save_file(ARRAYS, path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    sha256 = digest(path.read_bytes()[8 + length :])
    safetensors.numpy.save_file(ARRAYS, path, metadata={"sha256": sha256})
    same(ARRAYS, read_arrays(path))
    safetensors.numpy.save_file(ARRAYS, path)
    with pytest.raises(BadBundleError, match="BAD_DIGEST"):
        read_arrays(path)


def test_the_data_begins_on_a_cache_line(path: Path) -> None:
    for name in ("a", "ab", "abc" * 20):
        write_arrays(path, {name: np.ones(1, np.float32)})
        assert (path.stat().st_size - 4) % 64 == 0


def test_opened_views_share_the_mapping_and_are_read_only(path: Path) -> None:
    write_arrays(path, {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)})
    file = BundleFile.open(path)
    views, flat = file.arrays(), file.flat()
    assert flat.tolist() == [1, 1, 1, 0, 0]
    assert np.shares_memory(views["b"], flat)
    assert np.shares_memory(flat, np.frombuffer(file.data, np.uint8))
    assert not flat.flags.writeable
    assert not views["a"].flags.writeable
    assert file.data.readonly


def test_what_is_written_to_private_views_never_reaches_the_file(path: Path) -> None:
    write_arrays(path, ARRAYS)
    before = path.read_bytes()
    views = read_arrays(path, private=True)
    views["weight"][:] = 9
    assert views["weight"].tolist() == [[9, 9, 9], [9, 9, 9]]
    assert path.read_bytes() == before
    assert np.array_equal(read_arrays(path)["weight"], ARRAYS["weight"])


def test_created_views_are_zero_writable_and_reach_the_file_at_commit(path: Path) -> None:
    manifest = Manifest((TensorSpec("a", "F32", (2,)),), digest(np.array([3, 4], np.float32).tobytes()))
    file = BundleFile.create(path.with_name("x.part"), manifest)
    assert file.arrays()["a"].tolist() == [0, 0]
    file.arrays()["a"][:] = [3, 4]
    file.commit(path)
    file.close()
    assert read_arrays(path)["a"].tolist() == [3, 4]
    assert not path.with_name("x.part").exists()


def test_what_is_put_shows_in_the_views_and_reaches_the_file(path: Path) -> None:
    values = np.arange(3 * 1024, dtype=np.float32)  # three pages, which the header shifts against the file's
    file = BundleFile.create(
        path.with_name("x.part"), Manifest((TensorSpec("a", "F32", (3 * 1024,)),), digest(values.tobytes()))
    )
    for at, end in ((6000, 3 * 4096), (0, 5), (5, 6000)):
        file.put(at, memoryview(values.tobytes())[at:end])
    assert np.array_equal(file.arrays()["a"], values)
    file.commit(path)
    file.close()
    assert np.array_equal(read_arrays(path)["a"], values)
    with pytest.raises(ValueError, match="closed file"):  # not whatever file has its number by then
        file.put(0, b"late")


def test_what_is_handed_over_is_there_at_once(path: Path) -> None:
    hand_over(path, ARRAYS)
    views = BundleFile.open(path, private=True).arrays()
    assert list(views) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert views[name].dtype == array.dtype
        assert np.array_equal(views[name], array)
    with pytest.raises(BadBundleError, match="do not match the digest"):
        read_arrays(path)


def test_a_closed_file_is_gone_but_its_views_live_on(path: Path) -> None:
    write_arrays(path, {"a": np.ones(3, np.float32)})
    kept = BundleFile.open(path)
    view = kept.arrays()["a"]
    kept.close()
    assert view.tolist() == [1, 1, 1]
    file = BundleFile.open(path)
    file.close()
    with pytest.raises(ValueError, match="released"):
        file.arrays()


def test_a_write_that_dies_half_way_leaves_the_old_file(path: Path) -> None:
    old = write_arrays(path, {"a": np.ones(3, np.float32)})
    part = BundleFile.create(path.with_name(path.name + ".part"), Manifest(old.tensors, SHA))
    part.data[:4] = b"half"
    part.close()
    assert read_arrays(path)["a"].tolist() == [1, 1, 1]
    write_arrays(path, {"a": np.full(3, 2, np.float32)})
    assert read_arrays(path)["a"].tolist() == [2, 2, 2]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_does_not_fit_leaves_nothing(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            BundleFile.create(path, Manifest((TensorSpec("x", "U8", (2**21,)),), "0" * 64))
        with pytest.raises(OSError, match="File too large") as caught:
            write_text(path, "x" * 2**21)
        assert caught.value.filename == str(path), "the system does not say which one"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()


def test_a_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old\n")
    write_text(path, "né\n")
    assert path.read_bytes() == "né\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "no \ud800 text")
    assert path.read_bytes() == "né\n".encode()


def test_data_of_another_size_than_the_manifest_is_our_own_mistake(path: Path) -> None:
    with pytest.raises(AssertionError, match="the manifest's bytes"):
        write(path, (TensorSpec("a", "F32", (2,)),), memoryview(b"1234"))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("dtype", [">f4", "f2", "?"])
def test_other_dtypes_and_byte_orders_are_not_mislabelled(dtype: str) -> None:
    with pytest.raises(KeyError):
        specs_of({"a": np.ones(1, dtype)})


def test_raw_bytes_are_no_copy() -> None:
    array = np.zeros((2, 2), np.float32)
    view = raw(array)
    array[0, 0] = 1
    assert bytes(view[:4]) == np.float32(1).tobytes()
    assert len(raw(np.array(1.0, np.float64))) == 8
    assert len(raw(np.empty((0, 5), np.int64))) == 0


def test_a_manifest_of_many_gigabytes_costs_nothing() -> None:
    manifest = Manifest((TensorSpec("a", "F32", (3 * 2**30,)), TensorSpec("b", "F64", (2**31, 2))), SHA)
    tracemalloc.start()
    manifest.check()
    assert manifest.nbytes == 12 * 2**30 + 32 * 2**30
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()


def test_a_sparse_file_beyond_two_gigabytes_opens(path: Path) -> None:
    """Sizes and offsets beyond 32 bits; the file takes no disk, since nothing is written to it."""
    manifest = Manifest((TensorSpec("a", "F32", (2**29 + 1,)), TensorSpec("b", "U8", (3,))), SHA)
    BundleFile.create(path, manifest).close()
    file = BundleFile.open(path)
    assert file.manifest == manifest
    assert file.arrays()["b"].tolist() == [0, 0, 0]


def tensor(**changes: Any) -> dict[str, Any]:
    return {**DIGEST, "a": {**ONE, **changes}}


MALFORMED: dict[str, bytes | dict[str, Any]] = {
    "no JSON": b"hello",
    "no UTF-8": '{"é": 1}'.encode("latin-1"),
    "not a table": b"[]",
    "a number": b"3",
    "deep nesting": b"[" * 100_000,
    "deep nesting of tables": b'{"a":' * 100_000,
    "metadata is no table": {"__metadata__": []},
    "tensor is no table": {**DIGEST, "a": 3},
    "name twice": json.dumps(DIGEST)[:-1].encode() + b', "a": %b, "a": %b}' % ((json.dumps(ONE).encode(),) * 2),
    "no dtype": {**DIGEST, "a": {"shape": [1], "data_offsets": [0, 4]}},
    "unknown dtype": tensor(dtype="F16"),
    "dtype is no string": tensor(dtype=[]),
    "no shape": {**DIGEST, "a": {"dtype": "F32", "data_offsets": [0, 4]}},
    "negative shape": tensor(shape=[-1]),
    "two negative sizes": tensor(shape=[-1, -1]),
    "fractional shape": tensor(shape=[1.0]),
    "endless shape": tensor(shape=[float("inf")]),
    "shape of booleans": tensor(shape=[True]),
    "shape of strings": tensor(shape=["1"]),
    "shape is a string": tensor(shape="1"),
    "33 sizes": tensor(shape=[1] * 33),
    "empty, but for another size of 2^63": tensor(shape=[0, 2**63], data_offsets=[0, 0]),
    "empty, but for sizes of 2^80": tensor(shape=[0, 2**40, 2**40], data_offsets=[0, 0]),
    "no offsets": {**DIGEST, "a": {"dtype": "F32", "shape": [1]}},
    "three offsets": tensor(data_offsets=[0, 4, 8]),
    "fractional offsets": tensor(data_offsets=[0.0, 4.0]),
    "too wide": tensor(data_offsets=[0, 8]),
    "backwards": tensor(data_offsets=[4, 0]),
    "negative offset": tensor(data_offsets=[-4, 0]),
    "gap": tensor(data_offsets=[4, 8]),
    "overlap": {**tensor(), "b": ONE},
    "no digest": {"a": ONE},
    "digest is no string": {"__metadata__": {"sha256": 3}, "a": ONE},
    "digest in capitals": {"__metadata__": {"sha256": "A" * 64}, "a": ONE},
    "digest too short": {"__metadata__": {"sha256": "0" * 63}, "a": ONE},
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_header_is_a_bad_bundle_and_nothing_else(path: Path, header: bytes | dict[str, Any]) -> None:
    with pytest.raises(BadBundleError) as caught:
        BundleFile.open(file_with(path, header, b"\0" * 4))
    assert caught.value.refusal in {"BAD_LAYOUT", "BAD_DIGEST"}
    assert "\n" not in str(caught.value)


def test_the_well_formed_header_next_to_them_opens(path: Path) -> None:
    assert BundleFile.open(file_with(path, tensor(), b"\0" * 4)).manifest == Manifest(
        (TensorSpec("a", "F32", (1,)),), SHA
    )


@pytest.mark.parametrize("contents", [b"", b"1234567", (2**64 - 1).to_bytes(8, "little"), (3).to_bytes(8, "little")])
def test_a_header_longer_than_the_file_is_not_read(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)
    with pytest.raises(BadBundleError, match="TRUNCATED"):
        BundleFile.open(path)


@pytest.mark.parametrize("size", [0, 3, 5, 400])
def test_data_shorter_or_longer_than_the_header_says_is_refused(path: Path, size: int) -> None:
    with pytest.raises(BadBundleError, match="TRUNCATED"):
        BundleFile.open(file_with(path, tensor(), b"\0" * size))


def test_a_header_that_promises_exabytes_allocates_nothing(path: Path) -> None:
    file_with(path, tensor(shape=[2**60], data_offsets=[0, 2**62]), b"\0" * 4)
    tracemalloc.start()
    with pytest.raises(BadBundleError, match="TRUNCATED"):
        BundleFile.open(path)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_too_many_tensors_are_refused() -> None:
    spec = TensorSpec("a", "F32", (0,))
    with pytest.raises(BadBundleError, match="at most 100000 tensors expected, got 100001"):
        Manifest((spec,) * (MAX_TENSORS + 1), SHA).check()


def test_one_flipped_bit_is_noticed(path: Path) -> None:
    write_arrays(path, {"a": np.ones(3, np.float32)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadBundleError, match="BAD_DIGEST"):
        read_arrays(path)


def test_a_flat_vector_is_of_float32_alone(path: Path) -> None:
    write_arrays(path, {"a": np.ones(3, np.int64)})
    with pytest.raises(BadBundleError, match="float32 tensors expected"):
        BundleFile.open(path).flat()


@settings(max_examples=150, deadline=None, database=None)
@given(data=st.data())
def test_no_damage_to_a_file_is_more_than_a_remote_fault(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    write_arrays(path, {"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.uint8)})
    contents = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(contents[: data.draw(st.integers(0, len(contents)))])
    try:
        read_arrays(path)
    except RemoteFault:
        return
    assert path.stat().st_size == len(contents), "only a whole file can be read"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
@settings(max_examples=200, deadline=None, database=None)
def test_no_json_value_in_a_header_is_more_than_a_remote_fault(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "json.safetensors"
    for header in (tensor(dtype=value), tensor(shape=value), tensor(data_offsets=value), {**DIGEST, "a": value}):
        try:
            BundleFile.open(file_with(path, header, b"\0" * 4)).arrays()
        except RemoteFault:
            continue
        assert header == tensor() or header["a"] == {**ONE, "shape": []}
