"""DnC: what sticks out along the direction of most variance is left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.aggregation.base import Group, State, Stateless, Verdict, check_limit, relative
from steelyard.aggregation.krum import among
from steelyard.parsing import NonNegative, Positive, PositiveFloat
from steelyard.scoring.coalitions import Floats


@dataclass(frozen=True, kw_only=True)
class DncParams:
    """`f` attackers are to be stood; each of `iterations` drops `factor` f outliers along `coordinates` coordinates."""

    f: NonNegative = 1
    factor: PositiveFloat = 1.0
    iterations: Positive = 1
    coordinates: Positive = 10_000


class Dnc(Stateless):
    """Shejwalkar and Houmansadr 2021, NDSS, "Manipulating the Byzantine".

    The coordinates of an iteration are drawn once a round, the same for every coalition; all are taken where there are
    no more. A group of n <= 2f stands (n - 1) // 2 attackers; if the iterations leave nobody, the first decides (our
    choices). Suspicion: the mean outlier score over the median one.
    """

    def __init__(self, params: DncParams) -> None:
        self.params = params

    def check(self, rows: int) -> None:
        """N > 2f."""
        check_limit(rows, self.params.f, 2 * self.params.f + 1, "N >= 2f + 1", "dnc")

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Score, drop, average."""
        n = len(group)
        drop = min(int(np.ceil(self.params.factor * min(self.params.f, (n - 1) // 2))), n - 1)
        scores_In = [outlier_scores(self._gram(group, i)) for i in range(self.params.iterations)]
        kept = [set(np.argsort(scores_n, kind="stable")[: n - drop].tolist()) for scores_n in scores_In]
        good = np.array(sorted(set.intersection(*kept) or kept[0]), dtype=np.int64)
        return Verdict(
            weights_n=among(n, good),
            suspicion_n=relative(np.mean(np.array(scores_In), axis=0)),
            due_n=group.equal_n,
        )

    def _gram(self, group: Group, iteration: int) -> Floats:
        """Inner products of the rows over the coordinates of an iteration."""
        size, wanted = group.rows.size, self.params.coordinates
        if wanted >= size:
            return group.rows.gram_nn
        purpose = f"dnc-{iteration}"
        chosen = group.setting.once(
            purpose, lambda: np.sort(group.setting.generator(purpose).choice(size, wanted, replace=False))
        )
        columns_nb = group.rows.columns(chosen)
        return np.asarray(columns_nb @ columns_nb.T)


def outlier_scores(gram_nn: Floats) -> Floats:
    """Each row's squared projection on the first right singular vector of the centred rows, [n]."""
    n = len(gram_nn)
    centring_nn = np.eye(n) - 1 / n
    values_n, vectors_nn = np.linalg.eigh(centring_nn @ gram_nn @ centring_nn)
    return np.asarray(max(float(values_n[-1]), 0.0) * vectors_nn[:, -1] ** 2)
