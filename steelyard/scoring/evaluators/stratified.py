"""A plan of marginals by player and size of the coalition joined. Torch-free.

Legend: n players, C distinct coalitions, U marginals drawn.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats, Masks
from steelyard.scoring.evaluators.budget import DrawnPlan, Estimate

Ints = NDArray[np.int64]


class Stratified(DrawnPlan):
    """Marginals by player and size of the coalition joined, each stratum sampled without replacement.

    Strata are those of Maleki et al. 2013 (arXiv 1306.4265) and Castro et al. 2017. A unit is one marginal. Joining
    nobody and joining everybody are settled first; then every player joins a coalition of every other size once, in a
    new random order each time. A player's value is the mean over sizes of its mean marginals, all players shifted alike
    so that the values add up to V(N) - V(empty) (our choice). A size that was never drawn for a player is left out of
    its mean: a bias until each of the n (n - 2) inner strata has one.
    """

    def __init__(self, players: int, generator: np.random.Generator) -> None:
        super().__init__(players, generator, ends=True)
        self._seen: list[list[set[bytes]]] = [[set() for _ in range(players)] for _ in range(players)]
        self._units: list[tuple[int, int, int, int]] = []
        self._queue = [(k, size) for size in (0, players - 1) for k in range(players)]

    def draw(self) -> None:
        """One marginal more; none where its stratum is whole."""
        n = self._drawn.players
        if not self._queue:
            inner = [(k, size) for k in range(n) for size in range(1, n - 1)]
            self._queue = [inner[i] for i in self._generator.permutation(len(inner))]
        k, size = self._queue.pop(0)
        seen = self._seen[k][size]
        if len(seen) == comb(n - 1, size):
            return
        mask = self._unseen(k, size, seen)
        joined = mask.copy()
        joined[k] = True
        self._units.append((k, size, self._drawn.row(mask), self._drawn.row(joined)))

    def _unseen(self, k: int, size: int, seen: set[bytes]) -> Masks:
        others = np.delete(np.arange(self._drawn.players), k)
        while True:
            mask = np.zeros(self._drawn.players, dtype=bool)
            mask[self._generator.permutation(others)[:size]] = True
            if (key := mask.tobytes()) not in seen:
                seen.add(key)
                return mask

    def estimate(self, values_C: Floats) -> Estimate:
        """Means of stratum means; the error is each stratum's spread, its unseen part alone.

        A stratum with a single marginal borrows the mean variance of the player's others; the error is nan while one
        is empty.
        """
        n = self._drawn.players
        player, size, before, after = np.array(self._units, dtype=np.int64).reshape(-1, 4).T
        count_nn = np.zeros((n, n))
        np.add.at(count_nn, (player, size), 1)
        strata_n = np.maximum((count_nn > 0).sum(axis=1), 1)
        weight_U = 1 / (count_nn[player, size] * strata_n[player])
        coefficients = np.zeros((n, len(values_C)))
        np.add.at(coefficients, (player, after), weight_U)
        np.add.at(coefficients, (player, before), -weight_U)
        shift_C = -coefficients.mean(axis=0)
        shift_C[0] -= 1 / n
        shift_C[1] += 1 / n
        variance_n = self._variance(count_nn, player, size, values_C[after] - values_C[before]) / strata_n**2
        others_n = (variance_n.sum() - variance_n) / n**2
        return Estimate(
            coefficients_nC=coefficients + shift_C, std_error=np.sqrt(variance_n * (1 - 1 / n) ** 2 + others_n)
        )

    @staticmethod
    def _variance(count_nn: Floats, player: Ints, size: Ints, marginal_U: Floats) -> Floats:
        """The variance of the sum of each player's stratum means, [n]; nan where no stratum has two marginals."""
        n = len(count_nn)
        total, squares = np.zeros((n, n)), np.zeros((n, n))
        np.add.at(total, (player, size), marginal_U)
        mean_nn = total / np.maximum(count_nn, 1)
        np.add.at(squares, (player, size), (marginal_U - mean_nn[player, size]) ** 2)
        whole_n = np.array([float(comb(n - 1, s)) for s in range(n)])
        sampled, several = (count_nn > 0) & (whole_n > count_nn), count_nn > 1
        spread_nn = squares / np.maximum(count_nn - 1, 1)
        known = several.sum(axis=1)
        borrowed_n = np.where(known > 0, (spread_nn * several).sum(axis=1) / np.maximum(known, 1), np.nan)
        spread_nn = np.where(several, spread_nn, borrowed_n[:, None])
        parts_nn = np.where(sampled, spread_nn * (1 - count_nn / whole_n) / np.maximum(count_nn, 1), 0.0)
        variance_n: Floats = parts_nn.sum(axis=1)
        return np.where((count_nn[:, 1 : n - 1] == 0).any(axis=1), np.nan, variance_n)
