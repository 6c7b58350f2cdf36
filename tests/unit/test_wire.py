"""Manifests and refusals across the wire."""

import tracemalloc

import pytest

from steelyard.bundle import Manifest, TensorSpec
from steelyard.errors import BadBundleError, RefusedError
from steelyard.wire import manifest_from_wire, manifest_to_wire, pb, raise_if_refused, refusal_name, refusal_value

DIGEST = "0123456789abcdef" * 4


def manifest(*specs: TensorSpec, sha256: str = DIGEST) -> Manifest:
    return Manifest(specs, sha256)


def test_a_manifest_survives_the_wire_with_scalars_and_zero_sizes() -> None:
    original = manifest(
        TensorSpec("scalar", "F64", ()), TensorSpec("none", "F32", (3, 0)), TensorSpec("weight", "I64", (2, 3))
    )
    message = pb.Manifest.FromString(manifest_to_wire(original).SerializeToString())
    assert message.nbytes == 8 + 0 + 48
    assert manifest_from_wire(message) == original


def test_more_than_two_gib_fits_the_wire() -> None:
    original = manifest(TensorSpec("a", "F32", (2**30, 3)), TensorSpec("b", "U8", (2**40,)))
    message = pb.Manifest.FromString(manifest_to_wire(original).SerializeToString())
    assert message.nbytes == 12 * 2**30 + 2**40
    assert manifest_from_wire(message).nbytes == 12 * 2**30 + 2**40


def test_the_announced_size_must_be_the_shapes_size() -> None:
    message = manifest_to_wire(manifest(TensorSpec("a", "F32", (4,))))
    message.nbytes = 17
    with pytest.raises(BadBundleError, match="16 bytes expected from the shapes, 17 announced") as caught:
        manifest_from_wire(message)
    assert caught.value.refusal == "BAD_LAYOUT"


@pytest.mark.parametrize(
    ("bad", "refusal"),
    [
        (manifest(TensorSpec("a", "F16", (1,))), "BAD_LAYOUT"),
        (manifest(TensorSpec("a", "F32", (-1,))), "BAD_LAYOUT"),
        (manifest(TensorSpec("a", "U8", (2,) * 1000)), "BAD_LAYOUT"),
        (manifest(TensorSpec("a", "F32", (1,)), TensorSpec("a", "F32", (1,))), "BAD_LAYOUT"),
        (manifest(TensorSpec("__metadata__", "F32", (1,))), "BAD_LAYOUT"),
        (manifest(sha256="F" * 64), "BAD_DIGEST"),
    ],
)
def test_a_malformed_manifest_is_refused_by_name(bad: Manifest, refusal: str) -> None:
    tensors = [pb.Tensor(name=s.name, dtype=s.dtype, shape=s.shape) for s in bad.tensors]
    with pytest.raises(BadBundleError) as caught:
        manifest_from_wire(pb.Manifest(tensors=tensors, sha256=bad.sha256))
    assert caught.value.refusal == refusal


def test_a_manifest_of_too_many_tensors_is_refused_before_a_record_is_made_of_each() -> None:
    message = pb.Manifest.FromString(b"\x0a\x00" * 1_000_000)
    tracemalloc.start()
    with pytest.raises(BadBundleError, match="at most 100000 tensors expected, got 1000000"):
        manifest_from_wire(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_refusals_have_the_same_names_on_both_sides() -> None:
    assert refusal_value("BAD_DIGEST") == 11
    assert refusal_name(11) == "BAD_DIGEST"
    assert refusal_name(99) == "REFUSAL_99"
    with pytest.raises(ValueError, match="NO_SUCH"):
        refusal_value("NO_SUCH")


def test_a_refused_reply_raises_with_its_line() -> None:
    raise_if_refused(pb.JoinReply())
    with pytest.raises(RefusedError) as caught:
        raise_if_refused(pb.FetchReply(refusal=pb.WRONG_ROUND, detail="round 3 is open, got 2"))
    assert (caught.value.refusal, caught.value.detail) == ("WRONG_ROUND", "round 3 is open, got 2")
