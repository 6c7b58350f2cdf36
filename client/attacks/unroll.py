"""Local training as a differentiable function of the synthetic images that it is fed beside the client's own.

It repeats `steelyard.training.train` step by step (the same mini-batches, since the client knows its own generator; SGD
with momentum and weight decay as torch has it), but keeps the graph, so that the update can be differentiated in the
images: gradients through gradients, one level for each local step.

Legend: P trainable parameters, n own samples, B synthetic samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.func import functional_call
from torch.nn import functional

from client.attacks.base import Resources
from steelyard.models import FlatModel


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """A round's training on the shard and B samples more, from a global state, as `Resources.train` would do it.

    `last` is the number of final steps that are differentiated (0: all); what went before counts as a constant.
    """

    resources: Resources
    round: int
    global_D: torch.Tensor
    last: int = 0

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The update's trainable part [P], differentiable in `images` [B, channels, height, width]."""
        own = self.resources
        every_image = torch.cat([own.images, images])
        every_label = torch.cat([own.labels, labels])
        batches = self._batches(len(every_label))
        model, start_P = own.model, self.global_D[: own.model.layout.trainable]
        model.load(self.global_D)  # buffers start as the round's; training moves them as it goes
        model.module.train()
        state_P, velocity_P = start_P.clone().requires_grad_(), None
        for step, batch in enumerate(batches):
            graph = self.last == 0 or step >= len(batches) - self.last
            x, y = (every_image if graph else every_image.detach())[batch], every_label[batch]
            loss = functional.cross_entropy(call(model, state_P, x), y)
            (slope_P,) = torch.autograd.grad(loss, [state_P], create_graph=graph)
            slope_P = slope_P + own.training.weight_decay * state_P
            velocity_P = slope_P if velocity_P is None else own.training.momentum * velocity_P + slope_P
            state_P = state_P - own.training.learning_rate * velocity_P
            if not graph:
                state_P, velocity_P = state_P.detach().requires_grad_(), velocity_P.detach()
        return state_P - start_P

    def _batches(self, samples: int) -> list[torch.Tensor]:
        generator = self.resources.generator("train", self.round)
        config = self.resources.training
        orders = [torch.randperm(samples, generator=generator) for _ in range(config.epochs)]
        return [batch for order in orders for batch in torch.split(order, config.batch_size)]


def call(model: FlatModel, state_P: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Logits [B, classes] of the model with other parameters [P], differentiable in them; buffers are its own."""
    names = [name for name, _ in model.module.named_parameters()]
    parts = torch.split(state_P, [parameter.numel() for parameter in model.parameters])
    weights = {
        name: part.view(parameter.shape) for name, part, parameter in zip(names, parts, model.parameters, strict=True)
    }
    logits: torch.Tensor = functional_call(model.module, weights, (images,))
    return logits
