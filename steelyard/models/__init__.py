"""Networks, their initialization without a global generator, and the flat vector that the federation moves.

Legend: D is the number of float values of a model. A model's *state* is one float32 vector [D]: all trainable
parameters in declaration order, then all float buffers (BatchNorm's running statistics). Updates are differences of
states; geometry looks at the trainable part alone (`Layout.trainable`). Integer counters do not travel: loading a state
sets them to 0, so that nothing of what the network ran before is left in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from steelyard.bundle import TensorSpec
from steelyard.config import Shape
from steelyard.errors import UserError, described
from steelyard.models.large import large_cnn_28
from steelyard.models.layout import Layout, places, variances
from steelyard.models.resnet import resnet18
from steelyard.models.small import small_cnn_8, small_cnn_28, small_cnn_32, small_cnn_32_normalized
from steelyard.models.vgg import vgg16_bn
from steelyard.models.wide_resnet import wrn28_10
from steelyard.parsing import choose

__all__ = ["MODELS", "FlatModel", "Layout", "default_model"]

MODELS: dict[str, Callable[[Shape], nn.Module]] = {
    "cnn8": small_cnn_8,
    "cnn28": small_cnn_28,
    "cnn28_large": large_cnn_28,
    "cnn32": small_cnn_32,
    "cnn32_bn": small_cnn_32_normalized,
    "resnet18": resnet18,
    "vgg16_bn": vgg16_bn,
    "wrn28_10": wrn28_10,
}


class FlatModel:
    """A network whose parameters and float buffers are views of one state vector [D].

    Loading a state is one copy of D floats; the module is then ready to run. `parameters` are the leaves to
    differentiate. Nothing here draws a random number except `initial_state`, from the generator it is given.
    """

    def __init__(self, name: str, shape: Shape, device: str = "cpu") -> None:
        self.name = name or default_model(shape)
        self.shape = shape
        with torch.device("meta"):
            module = choose(self.name, MODELS, "model")(shape)
        if not isinstance(module, nn.Module):
            raise UserError(f"[model] {self.name}: an nn.Module expected, got {described(module)}")
        self.module = module.to_empty(device=device)
        self.parameters = list(self.module.parameters())
        if not self.parameters:
            raise UserError(f"[model] {self.name}: a network with parameters expected, got {described(module)}")
        self.classes = shape.classes
        trainable = dict(self.module.named_parameters())
        floats = {n: b for n, b in self.module.named_buffers() if b.is_floating_point()}
        named = {**trainable, **floats}
        self.layout = Layout(
            specs=tuple(TensorSpec(n, "F32", tuple(t.shape)) for n, t in named.items()),
            size=sum(t.numel() for t in named.values()),
            trainable=sum(t.numel() for t in trainable.values()),
        )
        self.state = torch.zeros(self.layout.size, device=device)
        for tensor, (_, place) in zip(named.values(), places(self.layout.specs), strict=True):
            tensor.data = self.state[place].view(tensor.shape)
        self._counters = [b for b in self.module.buffers() if not b.is_floating_point()]
        self._variances = [self.state[place] for _, place in variances(self.layout.specs)]

    def load(self, state_D: torch.Tensor) -> None:
        """Copy a state [D] in and set integer counters to 0.

        A running variance below 0 counts as 0. No update makes one: the server refuses it. But a weighted sum of
        updates that shrink a variance to nothing is rounded, and may miss 0 by its last bit.
        """
        assert state_D.shape == self.state.shape, "a whole state: a single value would fill the model unnoticed"
        with torch.no_grad():
            self.state.copy_(state_D)
            for variance in self._variances:
                variance.clamp_(min=0)
            for counter in self._counters:
                counter.zero_()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] for images [B, channels, height, width]."""
        logits: torch.Tensor = self.module(images)
        if getattr(logits, "shape", None) != (len(images), self.classes):  # other sizes could be trained on, unnoticed
            raise UserError(
                f"[model] {self.name}: logits of shape {(len(images), self.classes)} expected, got {described(logits)}"
            )
        return logits

    def try_out(self) -> None:
        """Raise UserError unless images of the experiment's size go through; torch's own words name no network."""
        size = (2, self.shape.channels, self.shape.height, self.shape.width)
        self.module.eval()
        try:
            with torch.inference_mode():
                self(torch.zeros(size, device=self.state.device))
        except RuntimeError as error:
            raise UserError(f"[model] {self.name}: images {size} expected to go through, torch says: {error}") from None

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
            elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                raise UserError(
                    f"[model] {self.name}: no initialization is known for {type(module).__name__}; add it to "
                    "FlatModel.initial_state, or write constants into forward"
                )
            elif isinstance(module, _DropoutNd):
                raise UserError(f"[model] {self.name}: no dropout expected, its draws follow no seed; leave it out")
        return self.state.clone()


def default_model(shape: Shape) -> str:
    """The small CNN made for an image size."""
    sizes = {8: "cnn8", 28: "cnn28", 32: "cnn32"}
    if shape.height != shape.width or shape.height not in sizes:
        raise UserError(
            f"[model] name: no default network for {shape.height}x{shape.width} images; name one of {', '.join(MODELS)}"
        )
    return sizes[shape.height]
