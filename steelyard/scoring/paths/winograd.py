"""The winograd path: the folded graph, with 3x3 and 5x5 convolutions by minimal filtering.

Which of them, and how, is `filtering`'s to say; the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from steelyard.models import FlatModel
from steelyard.scoring.paths.filtering import Filtering, Scratch, fits
from steelyard.scoring.paths.folded import Folded


class Winograd(Folded):
    """Logits of any model that torch.fx can trace, in float32.

    Args:
        model: the network.
        images: float32 [B, channels, height, width] of each inner batch.

    Raises:
        UserError: the model's forward pass can't be traced, or minimal filtering was not compiled for this processor.
    """

    def __init__(self, model: FlatModel, images: Sequence[torch.Tensor]) -> None:
        super().__init__(model, images)
        self._filtered = _replace(self._graph)

    def _load(self) -> None:
        super()._load()
        for filtering, conv in self._filtered:
            filtering.load(conv.weight, conv.bias)


def _replace(graph: fx.GraphModule) -> list[tuple[Filtering, nn.Conv2d]]:
    """Put minimal filtering in the place of every convolution that it fits, with the ReLU behind it.

    Returns:
        What was put there, and the convolutions, which know the present weights.
    """
    scratch = Scratch()
    # By the convolution's name. Ours has a new one: the network may read the old one's weights itself.
    made: dict[str, tuple[Filtering, nn.Conv2d]] = {}
    modules = dict(graph.named_modules())
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    for node in calls:
        name = str(node.target)
        conv = modules[name]
        if name in made or not isinstance(conv, nn.Conv2d) or not fits(conv):
            continue
        alone = len(node.users) == 1 and sum(str(other.target) == name for other in calls) == 1
        behind = next(iter(node.users)) if alone else None
        rectifies = behind is not None and _rectifies(behind, modules)
        filtering = Filtering(conv, scratch, rectifies=rectifies)
        made[name] = (filtering, conv)
        ours = f"filtered_{len(made)}"
        while hasattr(graph, ours):  # the network's own
            ours += "_"
        graph.add_submodule(ours, filtering)
        modules[ours] = filtering
        for call in calls:
            if str(call.target) == name:
                call.target = ours
        if rectifies and behind is not None:
            behind.replace_all_uses_with(node)
            graph.graph.erase_node(behind)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return list(made.values())


def _rectifies(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.op == "call_function" and node.target in {torch.relu, nn.functional.relu}
