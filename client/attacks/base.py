"""What an attack is: a client's right to choose its update, and what it may choose it from.

An attack sees only what its process holds. It knows nothing of the server, the transport or the other clients. All it
carries from round to round lies in its folder (see `memory`), so that an attack made anew after a crash goes on, and
a round done twice gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from steelyard.config import Shape, TrainingConfig
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.seeding import torch_generator
from steelyard.training import train

Note = float | int | str
LabelledImages = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a client process has.

    `images` [n, channels, height, width] float32 in [0, 1] and `labels` [n] int64 are its shard; `public` is extra
    knowledge that the experiment declares, disjoint from every shard and from the validation and test sets; `seed` is
    the client's own; `folder` is its state folder; `decoder` is the file of a decoder trained beforehand, if it
    was handed one.
    """

    model: FlatModel
    images: torch.Tensor
    labels: torch.Tensor
    public: LabelledImages | None
    training: TrainingConfig
    seed: int
    folder: Path
    decoder: Path | None = None

    @property
    def shape(self) -> Shape:
        """The images' shape and the number of classes."""
        channels, height, width = self.images.shape[1:]
        return Shape(channels=channels, height=height, width=width, classes=self.model.classes)

    def generator(self, purpose: str, round_: int) -> torch.Generator:
        """A fresh generator for one purpose in one round."""
        return torch_generator(self.seed, purpose, round_)

    def train(self, round_: int, global_D: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The update [D] of the federation's own training on given data.

        Every attack trains through here: on as many samples as the shard holds it shuffles exactly like the honest
        client.
        """
        return train(self.model, global_D, images, labels, self.training, self.generator("train", round_))

    def public_set(self, why: str) -> LabelledImages:
        """The public set.

        Raises:
            UserError: there is none; `why` names the setting that asked for it.
        """
        if self.public is None or not len(self.public[1]):
            raise UserError(f"[attack] {why} needs a public set, there is none; set [data] public to its size")
        return self.public


@dataclass(frozen=True, kw_only=True)
class Result:
    """One round's answer: the update [D] to send, and notes for the client's own log."""

    update_D: torch.Tensor
    notes: Mapping[str, Note] = field(default_factory=dict)


class Attack(Protocol):
    """A client's behaviour."""

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """The update of a round, counted from 1, for its global state [D]; the same bits however often it is asked."""
