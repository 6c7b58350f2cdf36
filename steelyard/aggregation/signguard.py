"""SignGuard: an update counts if its length is usual and its signs are like those of the many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelyard.aggregation.base import Group, State, Stateless, Verdict
from steelyard.aggregation.rows import squared_distances
from steelyard.errors import UserError
from steelyard.parsing import Fraction, PositiveFloat
from steelyard.scoring.coalitions import Floats


@dataclass(frozen=True, kw_only=True)
class SignGuardParams:
    """Norms count from `low` to `high` times the median; signs are looked at on a `part` of the coordinates."""

    low: PositiveFloat = 0.1
    high: PositiveFloat = 3.0
    part: Fraction = 0.1


class SignGuard(Stateless):
    """Xu et al. 2022, arXiv 2109.05872, the plain variant: fractions of positive, zero and negative signs, mean shift.

    What passes is clipped to the median norm and averaged. The coordinates are drawn once a round. The bandwidth is the
    median distance of the sign features, or their mean where that is 0 (our choice); a tie between clusters goes to
    that of the first client; if nobody passes both, the norms decide, and all pass where no norm is usual. Suspicion:
    the larger of the norm's deviation over its limit, in logarithms, and the distance to the trusted cluster's centre
    over the bandwidth (our choice).
    """

    def __init__(self, params: SignGuardParams) -> None:
        self.params = params

    def check(self, rows: int) -> None:  # noqa: ARG002 - any number will do
        """The median norm itself is usual."""
        if not self.params.low <= 1 <= self.params.high:
            raise UserError(
                f"[defence] signguard: low <= 1 <= high expected (the median norm must pass), got low = "
                f"{self.params.low:g}, high = {self.params.high:g}"
            )

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Filter, clip, average."""
        n, norms_n = len(group), group.rows.norms_n
        median = float(np.median(norms_n))
        ratio_n = np.divide(norms_n, median, out=np.ones(n), where=median > 0)
        usual_n = (ratio_n >= self.params.low) & (ratio_n <= self.params.high)
        like_n, far_n = trusted(self._signs(group))
        good_n = next((each_n for each_n in (usual_n & like_n, usual_n) if np.any(each_n)), np.ones(n, dtype=bool))
        clip_n = np.divide(1.0, ratio_n, out=np.ones(n), where=ratio_n > 1)
        return Verdict(
            weights_n=good_n * clip_n / np.sum(good_n),
            suspicion_n=np.maximum(self._deviation(ratio_n), far_n),
            due_n=group.equal_n,
        )

    def _deviation(self, ratio_n: Floats) -> Floats:
        log_n = np.log(np.maximum(ratio_n, 1e-12))
        limits_n = np.where(log_n < 0, -np.log(min(self.params.low, 0.999)), np.log(max(self.params.high, 1.001)))
        return np.asarray(np.abs(log_n) / limits_n)

    def _signs(self, group: Group) -> Floats:
        """Fractions of positive, zero and negative values, [n, 3]."""
        size = group.rows.size
        count = max(1, int(size * self.params.part))

        def draw() -> NDArray[np.int64]:
            return np.sort(group.setting.generator("signguard").choice(size, count, replace=False))

        columns_nb = group.rows.columns(group.setting.once("signguard", draw))
        return np.stack([np.mean(np.sign(columns_nb) == sign, axis=1) for sign in (1, 0, -1)], axis=1)


def trusted(features_nF: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Which rows are in the largest cluster, [n], and each one's distance to its centre in bandwidths, [n]."""
    n = len(features_nF)
    distances = np.sqrt(squared_distances(features_nF @ features_nF.T))[np.triu_indices(n, 1)]
    bandwidth = (float(np.median(distances)) or float(np.mean(distances))) if n > 2 else 0.0
    if bandwidth < 1e-6:
        return np.ones(n, dtype=bool), np.zeros(n)
    from sklearn.cluster import MeanShift

    labels_n = MeanShift(bandwidth=bandwidth).fit(features_nF).labels_
    largest = labels_n[np.argmax(np.sum(labels_n[:, None] == labels_n, axis=1))]
    inside_n = labels_n == largest
    centre_F = np.mean(features_nF[inside_n], axis=0)
    return inside_n, np.sqrt(np.sum((features_nF - centre_F) ** 2, axis=1)) / bandwidth
