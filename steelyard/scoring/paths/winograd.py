"""The winograd paths: the folded graph, with 3x3 and 5x5 convolutions by minimal filtering.

Which of them, and how, is `filtering`'s to say. The others stay as they are, or compute in bfloat16 where the products
of filtering do, and what they make is rounded; what filtering makes stays float32, since residual blocks add it up.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence

import torch
from torch import fx, nn

from steelyard.models import FlatModel
from steelyard.scoring.paths.filtering import Filtering, Scratch, fits
from steelyard.scoring.paths.folded import Folded


class Winograd(Folded):
    """Logits of any model that torch.fx can trace.

    Args:
        model: the network.
        images: float32 [B, channels, height, width] of each inner batch.
        dtype: what convolutions multiply in, float32 or bfloat16.

    Raises:
        UserError: the model's forward pass can't be traced, or minimal filtering was not compiled for this processor.
    """

    def __init__(self, model: FlatModel, images: Sequence[torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, images)
        self._replaced = _replace(self._graph, dtype)

    def _load(self) -> None:
        super()._load()
        for ours, conv in self._replaced:
            ours.load(conv.weight, conv.bias)


class Rounded(nn.Module):
    """A convolution like `conv`, of float32 and to float32, computed in bfloat16; rectified (ReLU) if wanted."""

    def __init__(self, conv: nn.Conv2d, *, rectifies: bool) -> None:
        super().__init__()
        self._conv = copy.deepcopy(conv).bfloat16()
        self._rectifies = rectifies
        self._steps: tuple[int, ...] = (1, 1)
        if conv.kernel_size == (1, 1) and conv.padding in {(0, 0), "valid"}:  # what it steps over needs no rounding
            self._steps, self._conv.stride = conv.stride, (1, 1)

    def load(self, weight: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        """Round filters [O, C, height, width] and their biases."""
        self._conv.weight.copy_(weight)
        if self._conv.bias is not None:
            assert bias_O is not None
            self._conv.bias.copy_(bias_O)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as nn.Conv2d, which may be called by name
        """Float32 [B, C, height, width] to [B, O, height, width], as `conv` does."""
        last = input.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        down, right = self._steps
        made: torch.Tensor = self._conv(input[..., ::down, ::right].to(torch.bfloat16, memory_format=layout))
        return (made.relu_() if self._rectifies else made).float()


def _replace(graph: fx.GraphModule, dtype: torch.dtype) -> list[tuple[Filtering | Rounded, nn.Conv2d]]:
    """Put minimal filtering in the place of every convolution that it fits, with the sum and the ReLU behind it.

    In bfloat16 the others are replaced too, with the ReLU behind them.

    Returns:
        What was put there, and the convolutions, which know the present weights.
    """
    scratch = Scratch()
    # By the convolution's name. Ours has a new one: the network may read the old one's weights itself.
    made: dict[str, tuple[Filtering | Rounded, nn.Conv2d]] = {}
    modules = dict(graph.named_modules())
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    for node in calls:
        name = str(node.target)
        conv = modules[name]
        if name in made or not isinstance(conv, nn.Conv2d):
            continue
        filtered = fits(conv, dtype)
        if not filtered and dtype == torch.float32:
            continue
        alone = sum(str(other.target) == name for other in calls) == 1
        if alone and filtered:
            _take_sum(node, modules)
        rectifies = alone and _take_relu(node, modules)
        replacement = (
            Filtering(conv, scratch, rectifies=rectifies, dtype=dtype)
            if filtered
            else Rounded(conv, rectifies=rectifies)
        )
        made[name] = (replacement, conv)
        ours = f"{type(replacement).__name__.lower()}_{len(made)}"
        while hasattr(graph, ours):  # the network's own
            ours += "_"
        graph.add_submodule(ours, replacement)
        modules[ours] = replacement
        for call in calls:
            if str(call.target) == name:
                call.target = ours
    graph.delete_all_unused_submodules()
    graph.recompile()
    return list(made.values())


def _take_sum(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Let a call take in the sum that alone uses it, as `addend`: a residual block's.

    The call moves to where the sum was, behind what makes the other summand. So nothing on the way may write in place.
    """
    if len(node.users) != 1:
        return
    total = next(iter(node.users))
    sums = total.op == "call_function" and total.target in {operator.add, torch.add}  # += is traced as +
    if not sums or total.kwargs or len(total.args) != 2:
        return
    other = total.args[1] if total.args[0] is node else total.args[0]
    if not isinstance(other, fx.Node) or other is node:
        return
    between = node.next
    while between is not total:
        harmless = between.op == "call_module" and not getattr(modules[str(between.target)], "inplace", False)
        if between.op != "get_attr" and not harmless:
            return
        between = between.next
    total.prepend(node)
    node.kwargs = {**node.kwargs, "addend": other}
    _erase(total, node)


def _take_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Take the ReLU that alone uses a call's result out of the graph; returns whether there is one."""
    behind = next(iter(node.users)) if len(node.users) == 1 else None
    if behind is None or not _rectifies(behind, modules):
        return False
    _erase(behind, node)
    return True


def _erase(behind: fx.Node, node: fx.Node) -> None:
    behind.replace_all_uses_with(node)
    behind.graph.erase_node(behind)


def _rectifies(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.op == "call_function" and node.target in {torch.relu, nn.functional.relu}
