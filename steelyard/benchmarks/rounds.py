"""The material that evaluation is measured on: rounds of random updates, and one of really trained ones.

Legend: D float values of a state, V validation examples, n clients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steelyard.aggregation.fedavg import fedavg
from steelyard.config import Experiment, Shape
from steelyard.data.deal import Shard, deal
from steelyard.models import FlatModel
from steelyard.scoring.evaluation import Device
from steelyard.seeding import torch_generator
from steelyard.training import train


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is timed: a network, how many images [E] of which shape, how many coalitions a turn has, and on what."""

    model: str
    shape: Shape
    examples: int
    coalitions: int
    clients: int = 10
    device: Device = "cpu"


@dataclass(frozen=True, kw_only=True)
class TrainedRound:
    """One round: its model, images [V, channels, height, width] and labels [V], global state and updates."""

    model: FlatModel
    images: torch.Tensor
    labels: torch.Tensor
    global_D: torch.Tensor
    updates: tuple[torch.Tensor, ...]
    samples: tuple[int, ...]


def random_round(case: Case) -> TrainedRound:
    """Random images, weights and updates: what evaluating them costs does not depend on what they are."""
    generator = torch_generator(0, "benchmark", case.model)
    model = FlatModel(case.model, case.shape)
    global_D = model.initial_state(generator)
    shape = case.shape
    return TrainedRound(
        model=model,
        images=torch.rand(case.examples, shape.channels, shape.height, shape.width, generator=generator),
        labels=torch.randint(0, shape.classes, (case.examples,), generator=generator),
        global_D=global_D,
        updates=tuple(0.01 * torch.randn(len(global_D), generator=generator) for _ in range(case.clients)),
        samples=tuple(range(100, 100 + case.clients)),
    )


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
