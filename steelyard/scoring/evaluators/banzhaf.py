"""Data Banzhaf: the mean marginal over all coalitions alike (Wang & Jia 2023, arXiv 2205.15466). Torch-free.

    value of k = 2^-(n-1) sum over S without k of V(S + k) - V(S)

Its ranks stand noise in V better than those of any other semivalue. It does not add up to V(N) - V(empty). `msr` reuses
every coalition for every player (the paper's maximum sample reuse); `regression` fits paired coalitions, since the
Banzhaf value is also the slope of the best linear fit to the game.

Legend: n players, C distinct coalitions, m draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from steelyard.scoring.coalitions import Floats, Game, all_masks
from steelyard.scoring.evaluators.base import Scores
from steelyard.scoring.evaluators.budget import DrawnPlan, Estimate, Plan, RacingParams, spend
from steelyard.scoring.evaluators.regression import PairedBanzhaf


@dataclass(frozen=True, kw_only=True)
class BanzhafParams(RacingParams):
    """How coalitions are sampled."""

    method: Literal["regression", "msr"] = "regression"


class Banzhaf:
    """The Banzhaf value of one round's game."""

    def __init__(self, params: BanzhafParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The budget, and one draw more."""
        return self.params.most_calls(players)

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Banzhaf values of the players; the generator is not touched where exact."""

        def plan() -> Plan:
            return (PairedBanzhaf if self.params.method == "regression" else Msr)(game.players, generator)

        return spend(game, self.params, plan, banzhaf_coefficients)


def banzhaf_coefficients(players: int) -> Floats:
    """The exact Banzhaf value as weights on all coalitions, [n, 2^n]: 2^-(n-1) for members, its negative for others."""
    coefficients: Floats = np.where(all_masks(players).T, 1.0, -1.0) / 2 ** (players - 1)
    return coefficients


class Msr(DrawnPlan):
    """Coalitions by fair coins, with replacement: mean utility with a player less mean utility without it.

    Unbiased given how many draws hold the player. The error is that of a difference of two means.
    """

    def __init__(self, players: int, generator: np.random.Generator) -> None:
        super().__init__(players, generator)
        self._rows: list[int] = []

    def draw(self) -> None:
        """One coalition more, perhaps one drawn before."""
        self._rows.append(self._drawn.row(self._generator.random(self._drawn.players) < 0.5))

    def estimate(self, values_C: Floats) -> Estimate:
        """Differences of means, 0 for a player that all draws or none hold; its error is nan then."""
        times_C = np.bincount(self._rows, minlength=len(values_C))
        member_nC = self.masks().T
        coefficients, variance_n = np.zeros(member_nC.shape), np.zeros(len(member_nC))
        parts_nC = np.zeros(member_nC.shape)
        for side_nC, sign in ((member_nC, 1), (~member_nC, -1)):
            weight_nC = side_nC * times_C
            draws_n = weight_nC.sum(axis=1)
            mean_n = weight_nC @ values_C / np.maximum(draws_n, 1)
            squares_n = (weight_nC * (values_C - mean_n[:, None]) ** 2).sum(axis=1)
            coefficients += sign * weight_nC / np.maximum(draws_n, 1)[:, None]
            variance_n += np.where(draws_n > 1, squares_n / np.maximum(draws_n * (draws_n - 1), 1), np.nan)
            scale_n = np.where(draws_n > 1, sign / np.sqrt(np.maximum(draws_n * (draws_n - 1), 1)), np.nan)
            parts_nC += np.sqrt(weight_nC) * (values_C - mean_n[:, None]) * scale_n[:, None]
        coefficients[np.abs(coefficients.sum(axis=1)) > 0.5] = 0.0
        return Estimate(coefficients_nC=coefficients, std_error=np.sqrt(variance_n), parts_nm=parts_nC)
