"""What an attack is: a client's right to choose its update, and what it may choose it from.

An attack sees only what its process holds. It knows nothing of the server, the transport or the other clients, but for
the allies of a colluding attacker, which the experiment must declare. All it carries from round to round lies in its
folder (see `memory`), so that an attack made anew after a crash goes on, and a round done twice gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
class Ally:
    """A colluding client: its index and its shard, `images` [n, channels, height, width] and `labels` [n]."""

    client: int
    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a client process has.

    `images` [n, channels, height, width] float32 in [0, 1] and `labels` [n] int64 are its shard, on the device that
    its model computes on, as all other tensors are; only generators are the CPU's everywhere, so that every device sees
    the same draws. `public` is extra knowledge that the experiment declares, disjoint from every shard and from the
    validation and test sets; `seed` is the client's own; `folder` is its state folder; `decoder` is the file of a
    decoder trained beforehand, if it was handed one; `client` is its index. Only a colluding attacker has `allies`, in
    client order and without itself, and `leader_seed`, the seed of the lowest index among them and itself.
    """

    model: FlatModel
    images: torch.Tensor
    labels: torch.Tensor
    public: LabelledImages | None
    training: TrainingConfig
    seed: int
    folder: Path
    decoder: Path | None = None
    client: int = 0
    allies: tuple[Ally, ...] = ()
    leader_seed: int | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes: an attack's own tensors belong there, and what a generator drew is moved there."""
        return self.images.device

    @property
    def shape(self) -> Shape:
        """The images' shape and the number of classes."""
        channels, height, width = self.images.shape[1:]
        return Shape(channels=channels, height=height, width=width, classes=self.model.classes)

    def generator(self, purpose: str, round_: int) -> torch.Generator:
        """A fresh generator of the CPU for one purpose in one round."""
        return torch_generator(self.seed, purpose, round_)

    def train(self, round_: int, global_D: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The update [D] of the federation's own training on given data.

        Every attack trains through here: on as many samples as the shard holds it shuffles exactly like the honest
        client.
        """
        return train(self.model, global_D, images, labels, self.training, self.generator("train", round_))

    @property
    def ring(self) -> tuple[Ally, ...]:
        """All colluding clients in client order, this one among them."""
        own = Ally(client=self.client, images=self.images, labels=self.labels)
        return tuple(sorted((own, *self.allies), key=lambda ally: ally.client))

    def pooled(self, keep: torch.Tensor) -> LabelledImages:
        """The shards of the ring in client order, of its own only the samples that `keep` [n] marks.

        Without allies that is its own alone.
        """
        own = Ally(client=self.client, images=self.images[keep], labels=self.labels[keep])
        ring = [own if ally.client == self.client else ally for ally in self.ring]
        return torch.cat([ally.images for ally in ring]), torch.cat([ally.labels for ally in ring])

    def as_leader(self) -> Resources:
        """What the ring's leader trains with: under its seed, on its shard; enough to redo its update bit for bit.

        Raises:
            UserError: nobody colludes.
        """
        if self.leader_seed is None:
            raise UserError(
                "[attack] allies expected, there are none; set collude = true and name at least two clients"
            )
        leader = self.ring[0]
        return replace(
            self,
            client=leader.client,
            images=leader.images,
            labels=leader.labels,
            seed=self.leader_seed,
            allies=(),
            leader_seed=None,
        )

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
