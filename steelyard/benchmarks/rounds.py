"""A round with really trained updates, made in one process: the material that evaluation is measured on.

Legend: D float values of a state, V validation examples, n clients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steelyard.aggregation.fedavg import fedavg
from steelyard.config import Experiment
from steelyard.data.deal import Shard, deal
from steelyard.models import FlatModel
from steelyard.seeding import torch_generator
from steelyard.training import train


@dataclass(frozen=True, kw_only=True)
class TrainedRound:
    """One round: its model, images [V, channels, height, width] and labels [V], global state and updates."""

    model: FlatModel
    images: torch.Tensor
    labels: torch.Tensor
    global_D: torch.Tensor
    updates: tuple[torch.Tensor, ...]
    samples: tuple[int, ...]


def trained_round(experiment: Experiment) -> TrainedRound:
    """The last round of an experiment with honest clients, without recordings and without scores.

    Raises:
        UserError: the data set is not to be had, or the model does not fit it.
    """
    dealt = deal(experiment)
    model = FlatModel(experiment.model.name, dealt.shape)
    global_D = model.initial_state(torch_generator(experiment.seed, "model"))
    samples = tuple(len(shard) for shard in dealt.shards)
    updates: tuple[torch.Tensor, ...] = ()
    for number in range(1, experiment.rounds + 1):
        global_D = fedavg(global_D, updates, samples) if updates else global_D
        updates = tuple(
            train(
                model,
                global_D,
                *_tensors(shard),
                experiment.training,
                torch_generator(experiment.seed, "benchmark", client, number),
            )
            for client, shard in enumerate(dealt.shards)
        )
    images, labels = _tensors(dealt.validation)
    return TrainedRound(model=model, images=images, labels=labels, global_D=global_D, updates=updates, samples=samples)


def _tensors(shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(shard.images), torch.from_numpy(shard.labels)
