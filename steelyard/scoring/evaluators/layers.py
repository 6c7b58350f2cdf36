"""A plan of single coalitions, most of them small: for many players, in games that saturate long before all are in.

Torch-free. The players alone come first, and z_k is by how much V({k}) is above their mean. Then coalitions of s >= 2
are drawn with probability q_s / C(n, s), q_s in proportion to 1 / s, and

    value of k = (V(N) - V(empty)) / n  +  z_k (sum over s of b(s)) / (n - 1)
                 +  L x mean over draws of (V(S) - f(s) - b(s) z(S)) x weight of k,
    weight of k = 1 / (s q_s) where k is in S, else -1 / ((n - s) q_s),  z(S) the sum over members.

These are equal parts; what coalitions tell by the worth of their members alone; and a correction, which makes the sum
unbiased for any f and b that do not depend on the draw, if L = 1. f(s), the game's mean by size, and b(s), the slope
of V(S) in z(S), are fitted to the other half of the draws (control variates by cross-fitting); b(1) = 1. The weights
are those of Shapley's value written as a sum over coalitions.

The correction is as noisy as it is needed, so L < 1 shrinks it towards 0 as James and Stein do (1961): by the share of
its mean square over players that is not sampling error. That saves error over all players together, at the cost of a
bias towards what single players are worth, which falls on whoever differs most from the others and vanishes with more
draws. The standard error holds what is left out, (1 - L) times the correction, beside what is kept; no parts of it are
told, so no race is settled (`steelyard.scoring.evaluators.racing`). All of it is our choice.

Where a game saturates at some size however many players there are, its spread beyond that size is nothing, each draw
tells of all its members at once, and few draws tell how the slopes fall. For small errors `regression` needs fewer.

Legend: n players, m draws, s sizes 1..n-1, C distinct coalitions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats, Masks
from steelyard.scoring.evaluators.budget import DrawnPlan, Estimate

Ints = NDArray[np.int64]

ENOUGH = 4  # draws that two halves, each with a spread, are made of
ALIKE = 1e-12  # of the largest utility: single players that differ by less are alike, but for rounding
TIE = 2.0  # draws that a slope's tie to its neighbour counts for
CAUTION = 1.25  # by how much the correction's sampling error is overstated where it decides what is kept of it


class Layers(DrawnPlan):
    """Single players, then coalitions by size and at random, with replacement; values add up to V(N) - V(empty).

    Args:
        players: n, at least 2.
        generator: draws the coalitions.
    """

    def __init__(self, players: int, generator: np.random.Generator) -> None:
        super().__init__(players, generator, ends=True)
        share = 1 / np.arange(1, players)
        share[0] = 0.0  # the single players are all there
        self._chance = share / max(share.sum(), 1e-300)  # q_s of s = 1..n-1; two players have nothing to draw
        self._rows: list[int] = []

    def draw(self) -> None:
        """The next single player, or one coalition more, perhaps one drawn before."""
        n = self._drawn.players
        mask = np.zeros(n, dtype=bool)
        if len(self) < n + 2:
            mask[len(self) - 2] = True
            self._drawn.row(mask)
            return
        size = 1 + self._generator.choice(n - 1, p=self._chance)
        mask[self._generator.permutation(n)[:size]] = True
        self._rows.append(self._drawn.row(mask))

    def estimate(self, values_C: Floats) -> Estimate:
        """The value and its error: that of the correction, by L and L's own uncertainty, and what was left out of it.

        The error is nan below `ENOUGH` draws, which then count for nothing.
        """
        n, rows = self._drawn.players, np.array(self._rows, dtype=np.int64)
        equal_nC = np.zeros((n, len(values_C)))
        equal_nC[:, 0], equal_nC[:, 1] = -1 / n, 1 / n
        if len(values_C) < n + 2:
            return Estimate(coefficients_nC=equal_nC, std_error=np.full(n, np.nan))
        alone_nC = np.zeros((n, len(values_C)))  # z_k
        alone_nC[:, 2 : n + 2] = np.eye(n) - 1 / n
        if len(rows) < ENOUGH:
            return Estimate(coefficients_nC=equal_nC + alone_nC / (n - 1), std_error=np.full(n, np.nan))
        member_Cn = self.masks()
        member_mn, size_m = member_Cn[rows], member_Cn.sum(axis=1)[rows]
        joined_m, left_out_m = (1 / (s * self._chance[size_m - 1]) for s in (size_m, n - size_m))
        weight_nm = np.where(member_mn.T, joined_m, -left_out_m)
        alone_n = alone_nC @ values_C
        if np.abs(alone_n).max() <= ALIKE * np.abs(values_C).max():  # then nothing can be told by them
            alone_nC, alone_n = np.zeros_like(alone_nC), np.zeros(n)
        z_m = member_mn @ alone_n
        fitted_nC, correction_nC, rest_m = np.zeros_like(equal_nC), np.zeros_like(equal_nC), values_C[rows]
        np.add.at(correction_nC.T, rows, weight_nm.T)
        for half in (0, 1):
            mine, others = slice(half, None, 2), slice(1 - half, None, 2)
            level_sC = _level(rows[others], member_Cn, n)
            level_s = level_sC @ values_C
            above_m = values_C[rows[others]] - level_s[size_m[others] - 1]
            slope_s = _slopes(size_m[others], z_m[others], above_m, n)
            fitted_nC += len(rows[mine]) / len(rows) * slope_s.sum() / (n - 1) * alone_nC
            slope_m = slope_s[size_m[mine] - 1]
            rest_m[mine] -= level_s[size_m[mine] - 1] + slope_m * z_m[mine]
            by_size_ns = np.zeros((n, n - 1))
            np.add.at(by_size_ns.T, size_m[mine] - 1, weight_nm[:, mine].T)
            correction_nC -= by_size_ns @ level_sC + (weight_nm[:, mine] * slope_m) @ member_mn[mine] @ alone_nC
        parts_nm = weight_nm * rest_m
        correction_n, error_n = parts_nm.mean(axis=1), parts_nm.std(axis=1, ddof=1) / np.sqrt(len(rows))
        kept = _kept(correction_n, error_n)
        return Estimate(
            coefficients_nC=equal_nC + fitted_nC + kept * correction_nC / len(rows),
            std_error=np.hypot(np.sqrt(min(1.0, kept + np.sqrt(2 / (n - 1)))) * error_n, (1 - kept) * correction_n),
        )


def _kept(correction_n: Floats, error_n: Floats) -> float:
    """L: the part of a correction that is kept; its n values add up to 0, so they have n - 1 dimensions.

    Few draws have heavy tails, hence the caution: where errors are known, any factor below 2 is better, over all
    players, than to keep everything.
    """
    n, square = len(correction_n), float((correction_n**2).sum())
    return max(0.0, 1 - CAUTION * (n - 3) / (n - 1) * float((error_n**2).sum()) / square) if square else 0.0


def _level(others: Ints, member_Cn: Masks, n: int) -> Floats:
    """The mean utility at sizes 1..n-1 as weights on all utilities, [s, C], from other draws (rows, with repetitions).

    Straight lines between the means of the sizes that those draws have, the whole sizes among them.
    """
    sizes_C, sizes_s = member_Cn.sum(axis=1), np.arange(1, n)
    known = np.concatenate([np.arange(n + 2), others])
    at = np.unique(sizes_C[known])
    mean_aC = np.zeros((len(at), len(sizes_C)))
    np.add.at(mean_aC, (np.searchsorted(at, sizes_C[known]), known), 1.0)
    mean_aC /= mean_aC.sum(axis=1, keepdims=True)
    right = np.clip(np.searchsorted(at, sizes_s), 1, len(at) - 1)
    part_s = (sizes_s - at[right - 1]) / (at[right] - at[right - 1])
    level: Floats = mean_aC[right - 1] * (1 - part_s)[:, None] + mean_aC[right] * part_s[:, None]
    return level


def _slopes(size_m: Ints, z_m: Floats, above_m: Floats, n: int) -> Floats:
    """b(s) of sizes 1..n-1, from other draws: straight lines in log s between its values at 1, 2, 4, 8, ...

    That at 1 is 1. Least squares, in which each of the others is tied to the one before it as by `TIE` draws.

    Args:
        size_m: the draws' sizes.
        z_m: what their members are worth alone, above the mean.
        above_m: what they are worth above their size.
        n: players.
    """
    place_s = np.log2(np.arange(1, n))
    octaves = np.arange(int(np.ceil(place_s[-1])) + 1)
    lines_so = np.maximum(0.0, 1 - np.abs(place_s[:, None] - octaves))
    tied_oo = np.sqrt(TIE * np.mean(z_m**2)) * np.diff(np.eye(len(octaves)), axis=0)
    design = np.vstack([z_m[:, None] * lines_so[size_m - 1], tied_oo])
    wanted = np.concatenate([above_m, np.zeros(len(tied_oo))]) - design[:, 0]
    found = np.linalg.lstsq(design[:, 1:], wanted, rcond=None)[0]
    slope_s: Floats = lines_so @ np.concatenate([[1.0], found])
    return slope_s
