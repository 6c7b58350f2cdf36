"""The sample-weighted mean, by hand and bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steelyard.aggregation.fedavg import fedavg


def test_weights_are_the_members_shares_of_the_samples() -> None:
    w = torch.tensor([1.0, 10.0])
    updates = [torch.tensor([4.0, 0.0]), torch.tensor([0.0, -8.0])]
    assert fedavg(w, updates, [30, 10]).tolist() == [1 + 3.0, 10 - 2.0]
    assert fedavg(w, updates[:1], [30]).tolist() == [5.0, 10.0], "alone, a member weighs 1"


def test_nobody_leaves_the_model_as_it_is() -> None:
    w = torch.tensor([1.0, 2.0])
    result = fedavg(w, [], [])
    assert torch.equal(result, w)
    assert result.data_ptr() != w.data_ptr()


@pytest.mark.parametrize("members", [0, 1, 3])
def test_inputs_are_not_written_and_not_shared(members: int) -> None:
    generator = torch.Generator().manual_seed(members)
    w = torch.randn(1001, generator=generator)
    updates = [torch.randn(1001, generator=generator) for _ in range(members)]
    before = [t.clone() for t in (w, *updates)]
    fedavg(w, updates, list(range(1, members + 1))).fill_(0)
    assert all(torch.equal(a, b) for a, b in zip(before, (w, *updates), strict=True))


@pytest.mark.parametrize("size", [1, 7, 64, 100_003])
def test_bits_are_those_of_plain_float32_arithmetic_in_client_order(size: int) -> None:
    """Numpy rounds after every product and every sum: no fused operation, no vector tail, no thread may differ."""
    generator = torch.Generator().manual_seed(size)
    w, *updates = (torch.randn(size, generator=generator) for _ in range(6))
    samples = [3, 17, 8, 40, 1]
    step = np.zeros(size, dtype=np.float32)
    for update, n in zip(updates, samples, strict=True):
        step = step + update.numpy() * np.float32(n / 69)
    expected = torch.from_numpy(step + w.numpy())
    assert torch.equal(fedavg(w, updates, samples), expected)
    unaligned = [torch.cat([torch.zeros(1), u])[1:] for u in updates]
    assert torch.equal(fedavg(w, unaligned, samples), expected), "views at odd addresses give the same bits"


@pytest.mark.parametrize(
    ("updates", "samples", "message"),
    [
        ([torch.zeros(3)], [1], r"float32 \(2,\) expected"),
        ([torch.zeros(2, dtype=torch.float64)], [1], "float32"),
        ([torch.zeros(2)], [0], "positive sample count expected, got 0"),
        ([torch.zeros(2)], [1, 2], "1 updates and 2 counts"),
    ],
)
def test_what_does_not_fit_is_refused(updates: list[torch.Tensor], samples: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fedavg(torch.zeros(2), updates, samples)


def test_a_global_state_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="float32 vector expected"):
        fedavg(torch.zeros(2, 2), [], [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_bits_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(9)
    w, *updates = (torch.randn(100_003, generator=generator) for _ in range(8))
    there = fedavg(w.cuda(), [update.cuda() for update in updates], [3, 1, 4, 1, 5, 9, 2])
    assert torch.equal(there.cpu(), fedavg(w, updates, [3, 1, 4, 1, 5, 9, 2]))
