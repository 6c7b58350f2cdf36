"""Paired least squares on coalitions drawn without replacement: Shapley and Banzhaf values from few calls. Torch-free.

A coalition S and its complement are drawn together (Covert & Lee 2021, arXiv 2012.01536): half their difference,
y = (V(S) - V(N without S)) / 2, does not know the part of the game that is alike on both, and a player's value is its
slope in y on x = S - 1/2 in {-1/2, 1/2}^n. For the Shapley value pairs weigh as the Shapley kernel says,
(n - 1) / (C(n, s) s (n - s)), and the slopes add up to V(N) - V(empty); for the Banzhaf value all pairs weigh alike.

Sizes are strata. The outermost one (single players and their complements) is taken whole; each further pair goes to
the stratum that is furthest behind its share, until that one is whole too, and stands for its stratum's unseen pairs.
Shares are the kernel's mass on a size, or alike for all sizes, as leverage scores are (Musco & Witter 2024, arXiv
2410.01917). Strata that are whole add nothing to the standard error.

y differs between sizes whoever is in S, since utilities saturate. Over all coalitions of a size that cancels, in a
sample it is noise: so each stratum has a level of its own in the fit (our choice; it divides the error on a smooth game
of ten by 2.5, on a saturating one of eighty by 15). On sizes s and n - s alone the fit has slopes of its own, and the
Shapley value is the mean of those slopes over s = 1..n-1, since all sizes have the same Gram matrix under the kernel.
So whole strata and the others are fitted apart and their slopes averaged (our choice; it halves the error on a trained
round's loss). With less than ENOUGH pairs a slope in the others, all are fitted together.

The standard error is nan with fewer sampled pairs than slopes, n - 1: residuals of so few tell nothing of the rest.

Bias: a regression is a ratio of sums, so it is biased by the order of 1/C; the full budget is exact. Pairs never
cancel what is odd in three players or more, so the residual does not vanish before the budget is full.

Legend: n players, P pairs, C = 2 P + 2 coalitions.
"""

from __future__ import annotations

from math import comb
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats, Masks
from steelyard.scoring.evaluators.budget import DrawnPlan, Estimate

Allocation = Literal["kernel", "leverage"]
ENOUGH = 3


class Strata:
    """Pairs of complementary coalitions by size s = 1..n/2 of the smaller one, and which stratum is next.

    Args:
        players: n.
        shares: what each stratum's part of the pairs is proportional to.
    """

    def __init__(self, players: int, shares: Floats) -> None:
        self.sizes = range(1, players // 2 + 1)
        self.pairs = [comb(players, s) // (2 if 2 * s == players else 1) for s in self.sizes]
        self.taken = [0] * len(self.sizes)
        self._shares = shares.tolist()
        self._quotients = list(self._shares)

    def next(self) -> int:
        """Take a pair of the outermost stratum until it is whole, then of the one furthest behind its share.

        That is the highest quotient of share and pairs taken (Sainte-Lague's rule): a larger budget takes no pair back.
        """
        i = 0
        if self.taken[0] == self.pairs[0]:
            i = max(range(len(self.taken)), key=self._quotients.__getitem__)
        self.taken[i] += 1
        self._quotients[i] = -1.0 if self.taken[i] == self.pairs[i] else self._shares[i] / (2 * self.taken[i] + 1)
        return i


class PairedRegression(DrawnPlan):
    """A plan of complementary pairs for the Shapley value."""

    def __init__(self, players: int, generator: np.random.Generator, allocation: Allocation = "kernel") -> None:
        assert players >= 2
        super().__init__(players, generator, ends=True)
        sizes = np.arange(1, players // 2 + 1)
        mass = np.where(2 * sizes == players, 1.0, 2.0) / (sizes * (players - sizes))
        shares = {"kernel": mass, "leverage": np.where(2 * sizes == players, 0.5, 1.0)}
        self._mass = mass
        self._strata = Strata(players, shares[allocation])
        self._stratum: list[int] = []

    def draw(self) -> None:
        """One pair more, not drawn before; the single players' in client order."""
        n, i = self._drawn.players, self._strata.next()
        members = np.zeros(n, dtype=bool)
        if i == 0:
            members[self._strata.taken[0] - 1] = True
        else:
            members = self._unseen(self._strata.sizes[i])
        self._stratum.append(i)
        self._drawn.row(members)
        self._drawn.row(~members)

    def _unseen(self, size: int) -> Masks:
        n = self._drawn.players
        while True:
            members = np.zeros(n, dtype=bool)
            members[self._generator.permutation(n)[:size]] = True
            if members not in self._drawn:
                return members

    def estimate(self, values_C: Floats) -> Estimate:
        """The constrained weighted least-squares fit and its standard error; nan while few pairs were sampled."""
        n = self._drawn.players
        fair = np.full(n, 1 / n)
        if not self._stratum:
            return Estimate(coefficients_nC=np.outer(fair, [-1.0, 1.0]), std_error=np.full(n, np.nan))
        x_Pn = self.masks(2)[0::2].astype(np.float64) - 0.5
        y_P = (values_C[2::2] - values_C[3::2]) / 2 - x_Pn @ fair * (values_C[1] - values_C[0])
        weight_P, unseen_P = self._weights()
        partial_P = unseen_P > 0
        slopes_nP, error_n = np.zeros((n, len(y_P))), np.zeros(n)
        if partial_P.sum() < n - 1:
            error_n = np.full(n, np.nan)
        parts_nm: Floats | None = None
        for group_P, share in self._groups(partial_P):
            levels = self._levels(np.array(self._stratum)[group_P])
            slopes, error, parts = fit(x_Pn[group_P], y_P[group_P], weight_P[group_P], unseen_P[group_P], levels)
            slopes_nP[:, group_P] = share * slopes
            error_n += share * error
            parts_nm = parts_nm if parts is None else share * parts
        coefficients = np.empty((n, len(values_C)))
        coefficients[:, 2::2], coefficients[:, 3::2] = slopes_nP / 2, -slopes_nP / 2
        coefficients[:, 1] = fair - slopes_nP @ (x_Pn @ fair)
        coefficients[:, 0] = -coefficients[:, 1]
        return Estimate(coefficients_nC=coefficients, std_error=error_n, parts_nm=parts_nm)

    def _groups(self, partial_P: Masks) -> list[tuple[Masks, float]]:
        """Which pairs are fitted together, and what their slopes count for: whole strata, and the others."""
        n, count = self._drawn.players, int(partial_P.sum())
        everything = np.ones(len(partial_P), dtype=bool)
        if count in (0, len(partial_P)) or count < ENOUGH * (n - 1):
            return [(everything, 1.0)]
        taken, pairs = self._strata.taken, self._strata.pairs
        whole = sum((1 if 2 * s == n else 2) for s in self._strata.sizes if taken[s - 1] == pairs[s - 1]) / (n - 1)
        return [(~partial_P, whole), (partial_P, 1 - whole)]

    def _levels(self, stratum_P: NDArray[np.int64]) -> Floats:
        """An indicator per stratum, [P, L]; strata of a single pair share their neighbour's.

        The middle one of an even n has none: there a pair may be turned round, so its level is 0.
        """
        n, size_P = self._drawn.players, stratum_P + 1
        counts = np.bincount(stratum_P, minlength=len(self._strata.sizes))[: (n - 1) // 2]
        level, levels, count = 0, np.zeros(len(self._strata.sizes), dtype=np.int64), 0
        for i, pairs in enumerate(counts.tolist()):
            if count >= 2 and counts[i:].sum() >= 2:
                level, count = level + 1, 0
            levels[i] = level
            count += pairs
        return np.where((2 * size_P == n)[:, None], 0.0, np.eye(level + 1)[levels[stratum_P]])

    def _weights(self) -> tuple[Floats, Floats]:
        """Each pair's weight, and the fraction of its stratum that was not drawn, both [P].

        A stratum that the budget has not reached lends its weight to the nearest one that it has.
        """
        taken, pairs = np.array(self._strata.taken), np.array([float(pairs) for pairs in self._strata.pairs])
        mass, reached = np.zeros(len(taken)), np.flatnonzero(taken)
        partial = reached[taken[reached] < pairs[reached]]
        for i, share in enumerate(self._mass.tolist()):
            among = reached if taken[i] or not len(partial) else partial
            mass[among[np.argmin(np.abs(among - i))]] += share
        stratum = np.array(self._stratum, dtype=np.int64)
        return mass[stratum] / taken[stratum], 1 - taken[stratum] / pairs[stratum]


class PairedBanzhaf(DrawnPlan):
    """A plan of complementary pairs for the Banzhaf value; all pairs are alike, the empty and full coalition too."""

    def draw(self) -> None:
        """One pair more, not drawn before."""
        while True:
            members = self._generator.random(self._drawn.players) < 0.5
            if members not in self._drawn:
                break
        self._drawn.row(members)
        self._drawn.row(~members)

    def estimate(self, values_C: Floats) -> Estimate:
        """The least-squares fit and its standard error."""
        n = self._drawn.players
        x_Pn = self.masks()[0::2].astype(np.float64) - 0.5
        pairs = len(x_Pn)
        unseen_P = np.full(pairs, 1 - pairs / 2 ** (n - 1))
        slopes_nP, error_n, parts_nm = fit(x_Pn, (values_C[0::2] - values_C[1::2]) / 2, np.ones(pairs), unseen_P)
        coefficients = np.empty((n, len(values_C)))
        coefficients[:, 0::2], coefficients[:, 1::2] = slopes_nP / 2, -slopes_nP / 2
        return Estimate(coefficients_nC=coefficients, std_error=error_n, parts_nm=parts_nm)


def fit(
    x_Pn: Floats, y_P: Floats, weight_P: Floats, unseen_P: Floats, levels_PL: Floats | None = None
) -> tuple[Floats, Floats, Floats | None]:
    """Weighted least squares as weights on y, [n, P], the slopes' standard errors, [n], and what pairs add to them.

    With `levels_PL`, further regressors, the slopes add up to 0. Where pairs are too few to tell the players apart,
    those of least norm are taken. The error is the sandwich of the sampling design: each pair's influence, its residual
    divided by 1 - leverage (MacKinnon & White 1985, "HC3") as it took part in its own fit, squared and multiplied by
    the unseen fraction of its stratum. It is nan where there are no more pairs than regressors. The errors' squares are
    sums of squares over sampled pairs, [n, m], which are None where they are 0 or unknown.
    """
    n = x_Pn.shape[1]
    root_P = np.sqrt(weight_P)
    basis_nq = np.eye(n) if levels_PL is None else sum_zero_basis(n)
    regressors = x_Pn @ basis_nq if levels_PL is None else np.hstack([x_Pn @ basis_nq, levels_PL])
    design_Pr = regressors * root_P[:, None]
    inverse_rP = np.linalg.pinv(design_Pr)
    slopes_nP = basis_nq @ inverse_rP[: basis_nq.shape[1]] * root_P
    sampled_P = unseen_P > 0
    if not sampled_P.any():
        return slopes_nP, np.zeros(n), None
    leverage_P = np.einsum("pr,rp->p", design_Pr, inverse_rP)
    if len(x_Pn) <= regressors.shape[1] or (leverage_P[sampled_P] > 1 - 1e-9).any():
        return slopes_nP, np.full(n, np.nan), None
    residual_P = y_P - regressors @ (inverse_rP * root_P @ y_P)
    influence_nP = slopes_nP[:, sampled_P] * (residual_P[sampled_P] / (1 - leverage_P[sampled_P]))
    error_n = np.sqrt(influence_nP**2 @ unseen_P[sampled_P])
    return slopes_nP, error_n, influence_nP * np.sqrt(unseen_P[sampled_P])


def sum_zero_basis(players: int) -> Floats:
    """An orthonormal basis of the vectors that add up to 0, [n, n - 1] (Helmert's)."""
    basis = np.zeros((players, players - 1))
    for j in range(1, players):
        basis[:j, j - 1] = 1.0
        basis[j, j - 1] = -float(j)
        basis[:, j - 1] /= np.sqrt(j * (j + 1))
    return basis
