"""A traced network in pieces, each of which takes a batch in parts that stay in a core's cache.

Between two pieces a single tensor is alive, with a row for each example, so everything else of a part has been used up
when the next part begins. Early layers have large activations and few weights, so their parts are small; late ones are
the other way round, and small parts would read their weights from memory again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

# Tried on ResNet-18: twice or half of either is within 5 %.
CACHE = 1 << 20  # bytes that a layer's activations of a part may have
REREAD = 2  # a part's activations are to have at least 1/REREAD of its largest layer's weights, which are read for each


class Piece:
    """Some nodes of a graph in a row, run on `part` examples at a time."""

    def __init__(self, module: nn.Module, part: int) -> None:
        self.module = module
        self.part = part
        self._out: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The piece's output on a batch; the next call may overwrite it."""
        if len(x) <= self.part:
            made: torch.Tensor = self.module(x)
            return made
        for at in range(0, len(x), self.part):
            made = self.module(x[at : at + self.part])
            if self._out is None or len(self._out) < len(x) or self._out.shape[1:] != made.shape[1:]:
                layout = torch.channels_last if made.ndim == 4 else torch.contiguous_format
                shape = (len(x), *made.shape[1:])
                self._out = torch.empty(shape, dtype=made.dtype, device=made.device, memory_format=layout)
            self._out[at : at + len(made)].copy_(made)
        assert self._out is not None
        return self._out[: len(x)]


class Sizes(fx.Interpreter):
    """Bytes of what each node makes of one example, and the nodes whose tensor has a row for each example.

    Args:
        graph: the network.
        images: float32 [2, channels, height, width]: two, so that a row for each can be told from other dimensions.
    """

    def __init__(self, graph: fx.GraphModule, images: torch.Tensor) -> None:
        super().__init__(graph)
        self.bytes: dict[fx.Node, int] = {}
        self.by_example: set[fx.Node] = set()
        self._examples = len(images)
        self.run(images)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and take note of what it made."""
        made = super().run_node(n)
        if isinstance(made, torch.Tensor):
            self.bytes[n] = made.numel() * made.element_size() // self._examples
            if made.ndim and len(made) == self._examples:
                self.by_example.add(n)
        return made


def cut(graph: fx.GraphModule, sizes: Sizes) -> list[Piece]:
    """The graph's pieces, in order; neighbours that may take equal parts, within a factor of two, are one."""
    nodes = list(graph.graph.nodes)
    spans: list[tuple[int, int, int]] = []  # the node that goes in, the one that comes out, examples at a time
    for start, end in pairwise([*_cuts(nodes, sizes), len(nodes) - 1]):
        inside = nodes[start + 1 : end + 1]
        activations = max(sizes.bytes.get(node, 0) for node in inside)
        weights = max(_weights(graph, node) for node in inside)
        part = max(1, max(CACHE, weights // REREAD) // max(1, activations))
        if spans and part <= 2 * spans[-1][2] and spans[-1][2] <= 2 * part:
            spans[-1] = (spans[-1][0], end, min(part, spans[-1][2]))
        else:
            spans.append((start, end, part))
    return [Piece(_between(graph, nodes, start, end), part) for start, end, part in spans]


def _cuts(nodes: Sequence[fx.Node], sizes: Sizes) -> list[int]:
    """Places of the nodes after which nothing but their own tensor is used, the images first; not the last made."""
    place = {node: at for at, node in enumerate(nodes)}
    last_use = [max((place[user] for user in node.users), default=at) for at, node in enumerate(nodes)]
    between = [at for at, node in enumerate(nodes[:-2]) if at and node in sizes.by_example]
    return [0, *(at for at in between if all(use <= at for use in last_use[:at]))]


def _weights(graph: fx.GraphModule, node: fx.Node) -> int:
    """Bytes of the largest parameter of a node's layer."""
    if node.op != "call_module":
        return 0
    parameters = graph.get_submodule(str(node.target)).parameters()
    return max((tensor.numel() * tensor.element_size() for tensor in parameters), default=0)


def _between(graph: fx.GraphModule, nodes: Sequence[fx.Node], start: int, end: int) -> fx.GraphModule:
    """The nodes after one place up to another as a graph of their own, with the same modules."""
    piece = fx.Graph()
    known: dict[fx.Node, fx.Node] = {nodes[start]: piece.placeholder("x")}
    for node in nodes[start + 1 : end + 1]:
        known[node] = piece.node_copy(node, known.__getitem__)
    if nodes[end].op != "output":
        piece.output(known[nodes[end]])
    return fx.GraphModule(graph, piece)
