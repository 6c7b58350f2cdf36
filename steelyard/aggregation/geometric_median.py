"""The geometric median: the point whose weighted sum of distances to the updates is least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.aggregation.base import Group, State, Stateless, Verdict, relative
from steelyard.aggregation.rows import distances_to_sum
from steelyard.parsing import Positive, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class GeometricMedianParams:
    """`smoothing` is the distance below which an update pulls no harder; `iterations` of Weiszfeld's method."""

    smoothing: PositiveFloat = 1e-6
    iterations: Positive = 10


class GeometricMedian(Stateless):
    """RFA: Pillutla, Kakade and Harchaoui 2022, arXiv 1912.13445. Smoothed Weiszfeld from the mean, by samples.

    Suspicion: distance to the result over the median such distance (our choice).
    """

    def __init__(self, params: GeometricMedianParams) -> None:
        self.params = params

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Reweigh by the inverse distance, again and again."""
        shares_n, gram_nn = group.shares_n, group.rows.gram_nn
        weights_n = shares_n
        for _ in range(self.params.iterations):
            pull_n = shares_n / np.maximum(distances_to_sum(gram_nn, weights_n), self.params.smoothing)
            weights_n = pull_n / np.sum(pull_n)
        far_n = distances_to_sum(gram_nn, weights_n)
        return Verdict(weights_n=weights_n, suspicion_n=relative(far_n), due_n=shares_n)
