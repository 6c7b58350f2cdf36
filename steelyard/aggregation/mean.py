"""The sample-weighted mean: federated averaging as a rule among others, and nothing is held against anybody."""

from __future__ import annotations

from dataclasses import dataclass

from steelyard.aggregation.base import Group, State, Stateless, Verdict, relative
from steelyard.aggregation.rows import distances_to_sum


@dataclass(frozen=True, kw_only=True)
class MeanParams:
    """None."""


class Mean(Stateless):
    """McMahan et al. 2017, arXiv 1602.05629. Suspicion: distance to the mean over the median distance (our choice)."""

    def __init__(self, params: MeanParams) -> None:
        self.params = params

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Weigh each client by its samples."""
        shares_n = group.shares_n
        far_n = distances_to_sum(group.rows.gram_nn, shares_n)
        return Verdict(weights_n=shares_n, suspicion_n=relative(far_n), due_n=shares_n)
