"""Networks, their initialization without a global generator, and the flat vector that the federation moves.

Legend: D is the number of float values of a model. A model's *state* is one float32 vector [D]: all trainable
parameters in declaration order, then all float buffers (BatchNorm's running statistics). Updates are differences of
states; geometry looks at the trainable part alone (`Layout.trainable`). Integer counters do not travel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from steelyard.bundle import TensorSpec
from steelyard.config import Shape
from steelyard.errors import UserError
from steelyard.models.small import small_cnn_8, small_cnn_28
from steelyard.parsing import choose

MODELS: dict[str, Callable[[Shape], nn.Module]] = {
    "cnn8": small_cnn_8,
    "cnn28": small_cnn_28,
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a state vector [D], in order; the first `trainable` values are parameters."""

    specs: tuple[TensorSpec, ...]
    size: int
    trainable: int


class FlatModel:
    """A network whose parameters and float buffers are views of one state vector [D].

    Loading a state is one copy of D floats; the module is then ready to run. `parameters` are the leaves to
    differentiate. Nothing here draws a random number except `initial_state`, from the generator it is given.
    """

    def __init__(self, name: str, shape: Shape) -> None:
        name = name or default_model(shape)
        with torch.device("meta"):
            self.module = choose(name, MODELS, "model")(shape)
        self.module.to_empty(device="cpu")
        self.parameters = list(self.module.parameters())
        self.classes = shape.classes
        trainable = dict(self.module.named_parameters())
        floats = {n: b for n, b in self.module.named_buffers() if b.is_floating_point()}
        named = {**trainable, **floats}
        self.layout = Layout(
            specs=tuple(TensorSpec(n, "F32", tuple(t.shape)) for n, t in named.items()),
            size=sum(t.numel() for t in named.values()),
            trainable=sum(t.numel() for t in trainable.values()),
        )
        self.state = torch.zeros(self.layout.size)
        at = 0
        for tensor in named.values():
            tensor.data = self.state[at : at + tensor.numel()].view(tensor.shape)
            at += tensor.numel()

    def load(self, state_D: torch.Tensor) -> None:
        """Copy a state [D] in."""
        assert state_D.shape == self.state.shape, "a whole state: a single value would fill the model unnoticed"
        with torch.no_grad():
            self.state.copy_(state_D)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] for images [B, channels, height, width]."""
        logits: torch.Tensor = self.module(images)
        return logits

    def initial_state(self, generator: torch.Generator) -> torch.Tensor:
        """A freshly initialized state [D]: He-uniform weights, zero biases, unit normalization; one generator."""
        for module in self.module.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = math.sqrt(6 / module.weight[0].numel())
                with torch.no_grad():
                    module.weight.uniform_(-bound, bound, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif list(module.parameters(recurse=False)):
                raise UserError(f"no initialization is known for {type(module).__name__}; add it in steelyard/models")
        return self.state.clone()


def default_model(shape: Shape) -> str:
    """The small CNN made for an image size."""
    sizes = {8: "cnn8", 28: "cnn28"}
    if shape.height not in sizes:
        raise UserError(
            f"[model] name: no default network for {shape.height}x{shape.width} images; name one of {', '.join(MODELS)}"
        )
    return sizes[shape.height]
