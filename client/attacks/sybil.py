"""The replication attack: one participant under several identities, each of which is paid as a client of its own.

After Han et al. 2020 (arXiv 2006.14583), where a player replicates its data and acts as several players. There the game
is on data; taken over to updates, who sends what is our choice. So is that the identities are clients that the
federation dealt shards of their own, which they then do not use: the roster's n_k, and so the weights, remain those of
these shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from client.attacks.base import Resources, Result
from steelyard.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SybilParams:
    """What each identity sends.

    `copy`: the leader's honest update, the same bits from all of them. `split`: the leader's shard is dealt to them
    evenly, every m-th sample to one of m, and each trains honestly on its part under its own seed.
    """

    NEEDS_ALLIES: ClassVar[bool] = True

    send: Literal["copy", "split"] = "copy"


class Sybil:
    """One of the identities; each makes its update by itself, from what all of them hold."""

    def __init__(self, params: SybilParams, resources: Resources) -> None:
        self.resources = resources
        self.leader = resources.as_leader()
        identities = [ally.client for ally in resources.ring]
        samples = len(self.leader.labels)
        if params.send == "split" and samples < len(identities):
            raise UserError(
                f'[attack] sybil send = "split": a sample of client {self.leader.client} for each of '
                f"{len(identities)} identities expected, it has {samples}; name fewer clients"
            )
        self.part = slice(identities.index(resources.client), None, len(identities)) if params.send == "split" else None

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """The leader's update, or that of this identity's part of the leader's shard."""
        leader, part = self.leader, self.part
        if part is None:
            return Result(update_D=leader.train(round_, global_D, leader.images, leader.labels))
        update_D = self.resources.train(round_, global_D, leader.images[part], leader.labels[part])
        return Result(update_D=update_D, notes={"samples": len(leader.labels[part])})
