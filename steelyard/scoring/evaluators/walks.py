"""A plan that walks random orders of the players. Torch-free.

Legend: n players, m orders, C distinct coalitions.
"""

from __future__ import annotations

import numpy as np

from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators.budget import DrawnPlan, Estimate

SWEEPS = 4


class Walks(DrawnPlan):
    """Orders of the players, each walked from the empty coalition to the full one; values are mean marginals.

    Utilities saturate, so a marginal depends first of all on its place in the order, and a player that came early by
    chance looks good. `adjusted` fits marginal = player + place by least squares (alternating, SWEEPS times), so that
    a player's value is the mean of its marginals less what their places gave (a control variate; our choice). Values
    still add up to V(N) - V(empty), and additive games stay exact; the bias is of the order of 1/m, since a player has
    its part in the places' means.

    Args:
        players: n.
        generator: draws the orders.
        antithetic: each order is also walked backwards (Mitchell et al. 2022, arXiv 2104.12199).
        adjusted: see above.
        place_weight_n: what the marginal at each place of an order counts for; None: 1 everywhere, the Shapley value.
    """

    def __init__(
        self,
        players: int,
        generator: np.random.Generator,
        *,
        antithetic: bool,
        adjusted: bool = False,
        place_weight_n: Floats | None = None,
    ) -> None:
        super().__init__(players, generator)
        self._antithetic = antithetic
        self._adjusted = adjusted
        self._weight_n = np.ones(players) if place_weight_n is None else place_weight_n
        self._orders: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        self._rows: list[list[int]] = []

    def draw(self) -> None:
        """One order more, or one and its reverse."""
        order = self._generator.permutation(self._drawn.players)
        self._walk(order)
        if self._antithetic:
            self._walk(order[::-1])

    def _walk(self, order: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        n = self._drawn.players
        place = np.empty(n, dtype=np.int64)
        place[order] = np.arange(n)
        self._orders.append(order)
        self._rows.append([self._drawn.row(mask) for mask in place < np.arange(n + 1)[:, None]])

    def estimate(self, values_C: Floats) -> Estimate:
        """Weighted mean marginals; the error is the spread over orders, or over pairs of them."""
        orders, rows = np.array(self._orders), np.array(self._rows)
        count, n = orders.shape
        joined = np.zeros((n, len(values_C)))  # the mean marginal at each place of an order, whoever stands there
        coefficients, marginals = np.zeros((n, len(values_C))), np.empty((count, n))
        places = np.broadcast_to(np.arange(n), (count, n))
        for weights, index in ((coefficients, orders), (joined, places)):
            np.add.at(weights, (index, rows[:, 1:]), self._weight_n / count)
            np.add.at(weights, (index, rows[:, :-1]), -self._weight_n / count)
        steps = np.diff(values_C[rows], axis=1) * self._weight_n
        if self._adjusted:
            often = np.zeros((n, n))  # how often, of all orders, a player stood at a place
            np.add.at(often, (orders, places), 1 / count)
            by_player, place = coefficients, joined - often.T @ coefficients
            for _ in range(SWEEPS):
                coefficients = by_player - often @ place
                place = joined - often.T @ coefficients
            coefficients = by_player - often @ place
            steps = steps - place @ values_C
        np.put_along_axis(marginals, orders, steps, axis=1)
        draws = (marginals[0::2] + marginals[1::2]) / 2 if self._antithetic else marginals
        if len(draws) < 2:
            return Estimate(coefficients_nC=coefficients, std_error=np.full(n, np.nan))
        error_n = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
        parts_nm = (draws - draws.mean(axis=0)).T / np.sqrt(len(draws) * (len(draws) - 1))
        if self._adjusted:  # the means come from the same orders
            error_n, parts_nm = (each * np.sqrt(count / (count - 1)) for each in (error_n, parts_nm))
        return Estimate(coefficients_nC=coefficients, std_error=error_n, parts_nm=parts_nm)
