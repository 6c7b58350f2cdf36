"""Attacks on a device other than the CPU, without one: tensors that say they lie elsewhere and compute here.

torch's device "meta" stands for the GPU, since every build of torch has it. What a GPU refuses is refused: an operation
on tensors of two devices (but for single values, and places given by the CPU), a generator of the CPU that draws there,
numpy's look into its memory. The bits are those of the CPU, whose kernels do the work.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from client.attacks import Resources, make_attack
from steelyard.devices import use_device
from steelyard.models import FlatModel

ELSEWHERE = torch.device("meta")
MOVES = ("aten::copy_", "aten::_to_copy")
NO_SINGLES = ("aten::cat", "aten::stack")  # which take single values from nowhere else either
PLACES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Away(torch.Tensor):
    """A tensor that says it lies on another device; `near` holds its values here."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Away:  # noqa: ANN001 - it is the class
        made: Away = torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=ELSEWHERE,
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.near.tolist()

    def data_ptr(self) -> int:
        return self.near.data_ptr()


class AnotherDevice(TorchDispatchMode):
    """While it is entered, what is made on or moved to the device is an `Away`."""

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given, name = tree_leaves((args, kwargs)), function._schema.name
    away = [tensor for tensor in given if isinstance(tensor, Away)]
    here = [tensor for tensor in given if isinstance(tensor, torch.Tensor) and not isinstance(tensor, Away)]
    assert not any(tensor.device == ELSEWHERE for tensor in here), f"{name}: a tensor that torch made past this mode"
    asked = kwargs.get("device")
    goes = torch.device(asked) == ELSEWHERE if asked is not None else bool(away)
    if away and name not in MOVES:
        places_may_be_here = name in PLACES and isinstance(args[0], Away)
        together = tree_leaves((args[2:] if places_may_be_here else args, kwargs))
        near = [x for x in together if isinstance(x, torch.Tensor) and not isinstance(x, Away)]
        assert not any(x.dim() or name in NO_SINGLES for x in near), f"{name}: tensors of two devices"
        assert name != "aten::bincount" or len(away) == 1, "a GPU has no deterministic bincount with weights"
    assert not (goes and any(isinstance(x, torch.Generator) for x in given)), f"{name}: a generator of another device"
    args, kwargs = tree_map(lambda x: x.near if isinstance(x, Away) else x, (args, kwargs))
    made = function(*args, **(kwargs if asked is None else kwargs | {"device": torch.device("cpu")}))
    if function._schema.is_mutable and name.endswith("_"):
        return given[0]
    return tree_map(lambda x: Away(x) if isinstance(x, torch.Tensor) else x, made) if goes else made


def moved(model: FlatModel) -> FlatModel:
    """The model, each of its tensors an `Away` whose values are the ones it had: all still views of one state."""
    for module in model.module.modules():
        for kept in (module._parameters, module._buffers):
            for key, tensor in kept.items():
                if tensor is not None:
                    there = Away(tensor.detach())
                    kept[key] = torch.nn.Parameter(there) if kept is module._parameters else there
    model.parameters = list(model.module.parameters())
    model.state = Away(model.state)
    model._variances = [Away(tensor) for tensor in model._variances]
    model._counters = [Away(tensor) for tensor in model._counters]
    return model


def test_the_other_device_refuses_what_a_gpu_refuses() -> None:
    with AnotherDevice():
        there = torch.randn(3, 4).to(ELSEWHERE)
        assert there.device == ELSEWHERE
        assert (there + torch.tensor(1.0)).cpu().tolist() == (there.cpu() + 1).tolist()
        assert there[torch.tensor([0, 2])].device == ELSEWHERE
        with pytest.raises(AssertionError, match="tensors of two devices"):
            there @ torch.randn(4, 2)
        with pytest.raises(AssertionError, match="tensors of two devices"):
            torch.randn(3)[there[:, 0].argsort()]
        with pytest.raises(AssertionError, match="tensors of two devices"):
            there[torch.tensor([0, 1])] = torch.ones(2, 4)
        with pytest.raises(AssertionError, match="tensors of two devices"):
            torch.stack([there[0, 0], torch.tensor(1.0)])
        with pytest.raises(AssertionError, match="no deterministic bincount"):
            torch.bincount(there[0].long() * 0, weights=there[0])
        with pytest.raises(AssertionError, match="a generator of another device"):
            torch.randn(3, generator=torch.Generator(), device=ELSEWHERE)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


def updates(table: dict[str, Any], resources: Resources, states: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the attack sends in each round, here; made anew before each, as after a crash."""
    return [make_attack(table, resources).update(t + 1, state).update_D.cpu() for t, state in enumerate(states)]


def on(device: torch.device | str, resources: Resources, model: FlatModel, folder: Path) -> Resources:
    """A client with the same data on a device."""
    assert resources.public is not None
    public = resources.public[0].to(device), resources.public[1].to(device)
    images, labels = resources.images.to(device), resources.labels.to(device)
    return replace(resources, model=model, images=images, labels=labels, public=public, folder=folder)


def test_an_attack_on_another_device_gives_the_bits_of_the_cpu(
    table: dict[str, Any], resources: Resources, states: list[torch.Tensor], tmp_path: Path
) -> None:
    expected = updates(table, resources, states)
    model = moved(FlatModel("cnn8", resources.shape))
    with AnotherDevice():
        there = on(ELSEWHERE, resources, model, tmp_path / "elsewhere")
        got = updates(table, there, [state.to(ELSEWHERE) for state in states])
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_attack_on_a_gpu_gives_the_same_bits_twice_and_nearly_those_of_the_cpu(
    table: dict[str, Any], resources: Resources, states: list[torch.Tensor], tmp_path: Path
) -> None:
    device = use_device("cuda:0", "the test's device")
    expected = updates(table, resources, states)
    there = [state.to(device) for state in states]
    first, again = (
        updates(table, on(device, resources, FlatModel("cnn8", resources.shape, device), tmp_path / name), there)
        for name in ("first", "again")
    )
    for one, other, theirs in zip(first, again, expected, strict=True):
        assert torch.equal(one, other)
        assert float((one - theirs).norm()) <= 0.05 * float(theirs.norm())
