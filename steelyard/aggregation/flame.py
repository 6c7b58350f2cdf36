"""FLAME: clustering by direction admits the majority, lengths are clipped to the median, noise covers the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelyard.aggregation.base import Group, State, Stateless, Verdict
from steelyard.aggregation.rows import Vector, cosines
from steelyard.parsing import NonNegativeFloat
from steelyard.scoring.coalitions import Floats


@dataclass(frozen=True, kw_only=True)
class FlameParams:
    """`noise` is the standard deviation of each coordinate's noise over the clipping bound."""

    noise: NonNegativeFloat = 0.001


class Flame(Stateless):
    """Nguyen et al. 2022, arXiv 2101.02281; HDBSCAN is scikit-learn's.

    Clusters hold more than half of the clients, so there is one at most; if there is none, or fewer than three clients,
    all are admitted (our choice). Noise is drawn once a round: every coalition has the same, scaled by its own bound.
    Suspicion: the median cosine distance to the others.
    """

    def __init__(self, params: FlameParams) -> None:
        self.params = params

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Cluster, clip, average, add noise."""
        distances_nn = 1.0 - cosines(group.rows.gram_nn)
        np.fill_diagonal(distances_nn, 0.0)
        admitted_n = admitted(distances_nn)
        norms_n = group.rows.norms_n
        bound = float(np.median(norms_n))
        clip_n = np.divide(bound, norms_n, out=np.ones(len(group)), where=norms_n > bound)
        weights_n = admitted_n * clip_n / np.sum(admitted_n)
        return Verdict(
            weights_n=weights_n,
            suspicion_n=np.array([_median_to_others(row, k) for k, row in enumerate(distances_nn)]),
            due_n=group.equal_n,
            step_P=self._noisy(group, group.rows.combined(weights_n), bound),
        )

    def _noisy(self, group: Group, step_P: Vector, bound: float) -> Vector:
        if not self.params.noise:
            return step_P

        def draw() -> Vector:
            return group.setting.generator("flame").standard_normal(group.rows.size, dtype=np.float32)

        noise_P: Vector = group.setting.once("flame", draw)
        return step_P + np.float32(self.params.noise * bound) * noise_P


def admitted(distances_nn: Floats) -> NDArray[np.bool_]:
    """Which rows are in the cluster of the majority, [n]."""
    n = len(distances_nn)
    if n < 3:
        return np.ones(n, dtype=bool)
    from sklearn.cluster import HDBSCAN

    clustering = HDBSCAN(
        min_cluster_size=n // 2 + 1, min_samples=1, allow_single_cluster=True, metric="precomputed", copy=True
    )
    inside_n = clustering.fit(distances_nn).labels_ == 0
    return np.asarray(inside_n if inside_n.any() else np.ones(n, dtype=bool))


def _median_to_others(row_n: Floats, k: int) -> float:
    return float(np.median(np.delete(row_n, k))) if len(row_n) > 1 else 0.0
