"""The folded path: the model's own graph with every BatchNorm folded into its convolution; it fits residual nets too.

The graph is traced once (torch.fx) from a copy of the model, whose weights are filled anew for every state. In bfloat16
the linear layer that makes the logits stays in float32.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.scoring.paths.folding import foldable, folded


class Folded:
    """Logits of any model that torch.fx can trace.

    Args:
        model: the network.
        images: float32 [B, channels, height, width] of each inner batch.
        dtype: what the layers compute in.

    Raises:
        UserError: the model's forward pass can't be traced.
    """

    def __init__(self, model: FlatModel, images: Sequence[torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
        module = model.module
        self._graph = _trace(module)
        pairs = _fold(self._graph)
        self._graph.to(dtype).requires_grad_(requires_grad=False)
        if dtype != torch.float32:
            _keep_logits_exact(self._graph)
        if model.state.device.type != "cpu":  # else each convolution there reorders its weights again
            for weight in (tensor for tensor in self._graph.parameters() if tensor.ndim == 4):
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self._graph.recompile()
        self._pairs = [(_conv(self._graph, conv), _conv(module, conv), _norm(module, norm)) for conv, norm in pairs]
        theirs = dict(module.named_parameters()) | dict(module.named_buffers())
        mine = dict(self._graph.named_parameters()) | dict(self._graph.named_buffers())
        convs = {name for conv, _ in pairs for name in (f"{conv}.weight", f"{conv}.bias")}
        self._others = [(tensor, theirs[name]) for name, tensor in mine.items() if name in theirs and name not in convs]
        self._images = [x.to(dtype, copy=True, memory_format=torch.channels_last) for x in images]

    def logits(self) -> Iterator[torch.Tensor]:
        """Logits [B, classes] of each inner batch."""
        self._load()
        for images in self._images:
            yield self._through(images)

    def _through(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 logits of one inner batch."""
        logits: torch.Tensor = self._graph(images)
        return logits.float()

    def _load(self) -> None:
        """Fill the graph with the model's present state."""
        for mine, conv, norm in self._pairs:
            weight, bias_O = folded(conv, norm)
            assert mine.bias is not None
            assert bias_O is not None
            mine.weight.copy_(weight)
            mine.bias.copy_(bias_O)
        for tensor, source in self._others:
            tensor.copy_(source)


def _trace(module: nn.Module) -> fx.GraphModule:
    """The graph of a copy in evaluation mode, which shares no tensor with the model."""
    try:
        return fx.symbolic_trace(copy.deepcopy(module).eval())
    except (TypeError, ValueError, RuntimeError) as error:  # torch.fx's TraceError is a ValueError
        raise UserError(
            f"[scoring] paths that begin with 'folded' or 'winograd' fit models that torch.fx can trace; "
            f"{type(module).__name__}: {error}; set path = 'plain'"
        ) from None


def _fold(traced: fx.GraphModule) -> list[tuple[str, str]]:
    """Take every norm that follows a convolution out of the graph; returns the names of both."""
    modules = dict(traced.named_modules())
    once = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    pairs: dict[str, str] = {}
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = str(before.target), str(node.target)
        if conv not in pairs and once[conv] == once[norm] == 1 and foldable(modules[conv], modules[norm]):
            modules[conv].bias = nn.Parameter(modules[conv].weight.new_empty(modules[conv].out_channels))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
            pairs[conv] = norm
    traced.delete_all_unused_submodules()
    return list(pairs.items())


def _conv(module: nn.Module, name: str) -> nn.Conv2d:
    conv = module.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _norm(module: nn.Module, name: str) -> nn.BatchNorm2d:
    norm = module.get_submodule(name)
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def _keep_logits_exact(traced: fx.GraphModule) -> None:
    """Let the linear layer that the graph ends with compute in float32."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    last = output.args[0]
    if isinstance(last, fx.Node) and last.op == "call_module":
        layer = traced.get_submodule(str(last.target))
        if isinstance(layer, nn.Linear):
            layer.float()
            with traced.graph.inserting_before(last):
                last.args = (traced.graph.call_method("float", last.args),)
