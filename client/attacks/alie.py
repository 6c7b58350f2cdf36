"""A little is enough (Baruch et al. 2019, arXiv 1902.06156): the mean of the updates minus z of their deviations.

The published attackers collude and know several updates. This one is alone (our choice): mean and deviation are those
of updates that it trains on resamples of its own shard, so the deviation is the sampling error of its own update and
leaves out what sets other clients apart. Legend: M resamples, P trainable parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Literal

import torch

from client.attacks.base import Resources, Result
from client.attacks.simulation import resampled
from steelyard.errors import UserError
from steelyard.parsing import NonNegativeFloat, Positive, Range


@dataclass(frozen=True, kw_only=True)
class AlieParams:
    """How far from the mean it goes, and from how many resamples mean and deviation are estimated.

    `rule = "fixed"` takes `z`; "quantile" takes the published rule for `assumed_clients` of which `assumed_attackers`
    are malicious, which the client can only assume.
    """

    rule: Literal["fixed", "quantile"] = "fixed"
    z: NonNegativeFloat = 1.5
    assumed_clients: Positive = 10
    assumed_attackers: Positive = 4
    resamples: Annotated[int, Range(2)] = 5

    def __post_init__(self) -> None:
        if self.rule == "quantile":
            quantile_z(self.assumed_clients, self.assumed_attackers)


def quantile_z(clients: int, attackers: int) -> float:
    """The z beyond which, of n clients with m malicious, too few honest ones lie to make up a majority with them.

    s = floor(n/2 + 1) - m honest clients are needed; z is the standard normal's quantile of (n - m - s) / (n - m).

    Raises:
        UserError: the numbers give no z of 0 or more.
    """
    honest = clients - attackers
    needed = clients // 2 + 1 - attackers
    if honest < 1 or needed < 1 or 2 * needed > honest:
        raise UserError(
            f"[attack] alie: the quantile rule has no z >= 0 for {attackers} attackers of {clients} clients; "
            'set assumed_attackers higher (but below half), or rule = "fixed" and z'
        )
    return NormalDist().inv_cdf((honest - needed) / honest)


class Alie:
    """Sends the mean of its resampled updates minus z of their deviations, parameter by parameter; buffers honest."""

    def __init__(self, params: AlieParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources
        fixed = params.rule == "fixed"
        self.z = params.z if fixed else quantile_z(params.assumed_clients, params.assumed_attackers)

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """The shifted mean of M updates (deviation with M - 1 in the denominator)."""
        own, trainable = self.resources, self.resources.model.layout.trainable
        update_D = own.train(round_, global_D, own.images, own.labels)
        updates_MP = resampled(own, round_, global_D, self.params.resamples)
        update_D[:trainable] = updates_MP.mean(0) - self.z * updates_MP.std(0)
        return Result(update_D=update_D, notes={"z": self.z})
