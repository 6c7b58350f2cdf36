"""A plan of single coalitions, most of them small: for games that saturate long before everybody is in. Torch-free.

A coalition of size s is drawn with probability q_s / C(n, s), q_s in proportion to 1 / s for s = 1..n-1, and

    value of k = (V(N) - V(empty)) / n + mean over draws of (V(S) - f(s)) x weight of k,
    weight of k = 1 / (s q_s) where k is in S, else -1 / ((n - s) q_s)

which is unbiased for any f that does not depend on the draw: the weights of all coalitions of one size add up to 0 for
every player. f(s) is the game's mean by size, interpolated through the draws of the other half of the sample and the
two ends (a control variate by cross-fitting, so unbiased too), and what is left of V is its spread within a size. Our
choice throughout; the weights are those of Shapley's value written as a sum over coalitions.

Where a game saturates at some size however many players there are, its spread beyond that size is nothing, each draw
tells of all its members at once, and the calls for a relative error grow as n log n. In games that do not, and below
some 30 players, `regression` and `adjusted` need fewer.

Legend: n players, m draws, s sizes 1..n-1, C distinct coalitions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats, Masks
from steelyard.scoring.evaluators.budget import Drawn, Estimate

Ints = NDArray[np.int64]


class Layers:
    """Coalitions by size and then at random, with replacement; values add up to V(N) - V(empty) however few.

    Args:
        players: n, at least 2.
        generator: draws the coalitions.
    """

    def __init__(self, players: int, generator: np.random.Generator) -> None:
        self._generator = generator
        self._drawn = Drawn(players)
        self._drawn.row(np.zeros(players, dtype=bool))
        self._drawn.row(np.ones(players, dtype=bool))
        share = 1 / np.arange(1, players)
        self._chance = share / share.sum()  # q_s of s = 1..n-1
        self._rows: list[int] = []

    def __len__(self) -> int:
        return len(self._drawn)

    def masks(self, start: int = 0) -> Masks:
        """The coalitions from the `start`-th on, the empty and the full one first, [C - start, n]."""
        return self._drawn.masks(start)

    def draw(self) -> None:
        """One coalition more, perhaps one drawn before."""
        n = self._drawn.players
        size = 1 + self._generator.choice(n - 1, p=self._chance)
        mask = np.zeros(n, dtype=bool)
        mask[self._generator.permutation(n)[:size]] = True
        self._rows.append(self._drawn.row(mask))

    def estimate(self, values_C: Floats) -> Estimate:
        """Means over draws; the error is their spread, nan for fewer than two draws."""
        n, rows = self._drawn.players, np.array(self._rows, dtype=np.int64)
        member_Cn = self.masks()
        sizes_C = member_Cn.sum(axis=1)
        coefficients = np.zeros((n, len(values_C)))
        coefficients[:, 0], coefficients[:, 1] = -1 / n, 1 / n
        if len(rows) == 0:
            return Estimate(coefficients_nC=coefficients, std_error=np.full(n, np.nan))
        size_m = sizes_C[rows]
        joined_m, left_out_m = (1 / (s * self._chance[size_m - 1]) for s in (size_m, n - size_m))
        weight_nm = np.where(member_Cn[rows].T, joined_m, -left_out_m)
        residual_m = values_C[rows]  # V(S) - f(s) of each draw
        for half in (0, 1):
            mine = slice(half, None, 2)
            level_sC = _level(np.arange(1, n), rows[1 - half :: 2], sizes_C, n)
            residual_m[mine] -= (level_sC @ values_C)[size_m[mine] - 1]
            by_size_ns = np.zeros((n, n - 1))
            np.add.at(by_size_ns.T, size_m[mine] - 1, weight_nm[:, mine].T)
            coefficients -= by_size_ns @ level_sC / len(rows)
        np.add.at(coefficients.T, rows, weight_nm.T / len(rows))
        parts_nm = weight_nm * residual_m
        if len(rows) < 2:
            return Estimate(coefficients_nC=coefficients, std_error=np.full(n, np.nan))
        error_n = parts_nm.std(axis=1, ddof=1) / np.sqrt(len(rows))
        parts_nm = (parts_nm - parts_nm.mean(axis=1, keepdims=True)) / np.sqrt(len(rows) * (len(rows) - 1))
        return Estimate(coefficients_nC=coefficients, std_error=error_n, parts_nm=parts_nm)


def _level(sizes_s: Ints, others: Ints, sizes_C: Ints, n: int) -> Floats:
    """The mean utility at given sizes as weights on all utilities, [s, C], from other draws (rows, with repetitions).

    Straight lines between the means of the sizes that those draws have, the empty and the full coalition among them.
    """
    known = np.concatenate([np.array([0, 1]), others])
    at = np.unique(sizes_C[known])
    mean_aC = np.zeros((len(at), len(sizes_C)))
    np.add.at(mean_aC, (np.searchsorted(at, sizes_C[known]), known), 1.0)
    mean_aC /= mean_aC.sum(axis=1, keepdims=True)
    right = np.clip(np.searchsorted(at, sizes_s), 1, len(at) - 1)
    part_s = (sizes_s - at[right - 1]) / (at[right] - at[right - 1])
    level: Floats = mean_aC[right - 1] * (1 - part_s)[:, None] + mean_aC[right] * part_s[:, None]
    assert n == at[-1], "the full coalition is always known"
    return level
