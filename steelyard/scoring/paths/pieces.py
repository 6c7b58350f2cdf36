"""A traced network in pieces, each of which takes a batch in parts that stay in a core's cache.

Between two pieces a single tensor is alive, so everything else of a part has been used up when the next part begins.
Early layers have large activations and few weights, so their parts are small; late ones are the other way round, and
small parts would read their weights from memory again and again.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

CACHE = 1 << 20  # bytes that a layer's activations may have: beside its scratch, they fit the 2 MiB of many a core
REREAD = 2  # a part's activations are to have at least 1/REREAD of its largest layer's weights, which are read for each


class Piece:
    """Some nodes of a graph in a row, run on `part` examples at a time."""

    def __init__(self, module: nn.Module, part: int) -> None:
        self.module = module
        self.part = part
        self._out: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The piece's output on a batch; the next call overwrites it."""
        if len(x) <= self.part:
            made: torch.Tensor = self.module(x)
            return made
        for at in range(0, len(x), self.part):
            made = self.module(x[at : at + self.part])
            shape = (len(x), *made.shape[1:])
            if self._out is None or self._out.shape != shape:
                layout = torch.channels_last if made.ndim == 4 else torch.contiguous_format
                self._out = torch.empty(shape, dtype=made.dtype, device=made.device, memory_format=layout)
            self._out[at : at + self.part].copy_(made)
        assert self._out is not None
        return self._out


def sizes_of(graph: fx.GraphModule, x: torch.Tensor) -> dict[fx.Node, int]:
    """Bytes of the tensor that each node makes of one example."""
    ShapeProp(graph).propagate(x)
    made = {node: node.meta.get("tensor_meta") for node in graph.graph.nodes}
    return {node: meta.shape.numel() * meta.dtype.itemsize for node, meta in made.items() if hasattr(meta, "shape")}


def cut(graph: fx.GraphModule, sizes: dict[fx.Node, int]) -> list[Piece]:
    """The graph's pieces, in order; neighbours that may take equal parts, within a factor of two, are one."""
    nodes = list(graph.graph.nodes)
    ends = _ends(nodes)
    spans: list[tuple[int, int, int]] = []  # the node that goes in, the one that comes out, examples at a time
    for start, end in pairwise(ends):
        inside = nodes[start + 1 : end + 1]
        activations = max(sizes.get(node, 0) for node in inside)
        weights = max(_weights(graph, node) for node in inside)
        part = max(1, max(CACHE, weights // REREAD) // max(1, activations))
        if spans and part <= 2 * spans[-1][2] and spans[-1][2] <= 2 * part:
            spans[-1] = (spans[-1][0], end, min(part, spans[-1][2]))
        else:
            spans.append((start, end, part))
    return [Piece(_between(graph, nodes, start, end), part) for start, end, part in spans]


def _ends(nodes: list[fx.Node]) -> list[int]:
    """Places of the nodes after which nothing but their own tensor is used: the images first, the logits last."""
    place = {node: at for at, node in enumerate(nodes)}
    last_use = [max((place[user] for user in node.users), default=at) for at, node in enumerate(nodes)]
    tensors = [at for at, node in enumerate(nodes[:-1]) if node.op != "get_attr"]  # weights are at hand anywhere
    return [at for at in tensors if all(last_use[before] <= at for before in tensors if before < at)]


def _weights(graph: fx.GraphModule, node: fx.Node) -> int:
    """Bytes of the largest parameter of a node's layer."""
    if node.op != "call_module":
        return 0
    parameters = graph.get_submodule(str(node.target)).parameters()
    return max((tensor.numel() * tensor.element_size() for tensor in parameters), default=0)


def _between(graph: fx.GraphModule, nodes: list[fx.Node], start: int, end: int) -> fx.GraphModule:
    """The nodes after one place up to another as a graph of their own, with the same modules."""
    piece = fx.Graph()
    known: dict[fx.Node, fx.Node] = {nodes[start]: piece.placeholder("x")}
    for node in nodes[start + 1 : end + 1]:
        known[node] = piece.node_copy(node, lambda argument: _copied(piece, known, argument))
    piece.output(known[nodes[end]])
    return fx.GraphModule(graph, piece)


def _copied(piece: fx.Graph, known: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    """A node's copy; weights that the forward pass names itself are fetched where a piece needs them."""
    if node not in known:
        known[node] = piece.node_copy(node)
    return known[node]
