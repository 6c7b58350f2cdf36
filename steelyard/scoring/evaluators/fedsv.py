"""FedSV: the Shapley value of the round's utility over its participants (Wang et al. 2020, arXiv 2009.06192).

Exact by all 2^n coalitions, or sampled by antithetic permutations (Mitchell et al. 2022): each drawn order is used
forwards and backwards. Either way the values are linear in the coalitions' utilities and sum to V(N) - V(empty).
Summing a client's values over rounds, with 0 where it took no part, is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from steelyard.parsing import Range
from steelyard.scoring.coalitions import Floats, Game, Masks, all_masks
from steelyard.scoring.evaluators.base import (
    NO_SCORES,
    EvaluatorParams,
    Scores,
    linear_scores,
)

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FedSVParams(EvaluatorParams):
    """How the Shapley value is computed.

    `auto` is exact up to `exact_up_to` participants and samples beyond; `permutations` is the number of antithetic
    pairs, so twice as many orders are walked.
    """

    method: Literal["auto", "exact", "permutation"] = "auto"
    exact_up_to: Annotated[int, Range(0, 16)] = 12
    permutations: Annotated[int, Range(2)] = 100


class FedSV:
    """The Shapley value of one round's game."""

    def __init__(self, params: FedSVParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """2^n where exact; otherwise at most n - 1 coalitions per order beside the empty and the full one."""
        if self._exact(players):
            return int(2**players)
        return min(int(2**players), 2 * self.params.permutations * (players - 1) + 2)

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Shapley values of the players; the generator draws the orders and is not touched where exact."""
        n = game.players
        if n == 0:
            return NO_SCORES
        if self._exact(n):
            masks, coefficients = all_masks(n), shapley_coefficients(n)
            values = game.values(masks)
            std_error = np.zeros(n)
        else:
            orders = antithetic_orders(n, self.params.permutations, generator)
            masks, walks = walk_coalitions(orders)
            coefficients = walk_coefficients(orders, walks, len(masks))
            values = game.values(masks)
            std_error = pair_std_error(orders, values[walks])
        return linear_scores(game, masks, coefficients, values, std_error)

    def pairs(self, players: int) -> int:
        """How many pairs of orders a game of so many players is sampled by; 0: it is played out in full."""
        return 0 if self._exact(players) else self.params.permutations

    def _exact(self, players: int) -> bool:
        method = self.params.method
        return method == "exact" or (method == "auto" and players <= self.params.exact_up_to)


def shapley_coefficients(players: int) -> Floats:
    """The exact Shapley value as weights on all coalitions, [n, 2^n].

    A coalition T counts 1 / (n C(n-1, |T|-1)) for its members and -1 / (n C(n-1, |T|)) for the others.
    """
    masks = all_masks(players)
    sizes = masks.sum(axis=1)
    weights = np.array([1 / (players * comb(players - 1, s)) for s in range(players)] + [0.0])
    joined, left_out = weights[sizes - 1], weights[sizes]  # size 0 has no members, size n leaves nobody out
    coefficients: Floats = np.where(masks, joined[:, None], -left_out[:, None]).T
    return coefficients


def antithetic_orders(players: int, pairs: int, generator: np.random.Generator) -> Ints:
    """Random orders of the players, [2 pairs, n]; each odd row is the row before it reversed."""
    forwards = np.array([generator.permutation(players) for _ in range(pairs)])
    return np.stack([forwards, forwards[:, ::-1]], axis=1).reshape(2 * pairs, players)


def walk_coalitions(orders: Ints) -> tuple[Masks, Ints]:
    """The distinct coalitions met while the players join in each order.

    Returns:
        masks [C, n], and for every order and step 0..n the row of its coalition there, [orders, n + 1].
    """
    count, n = orders.shape
    places = np.argsort(orders, axis=1)
    met = places[:, None, :] < np.arange(n + 1)[None, :, None]
    masks, rows = np.unique(met.reshape(-1, n), axis=0, return_inverse=True)
    return masks, rows.reshape(count, n + 1)


def walk_coefficients(orders: Ints, walks: Ints, coalitions: int) -> Floats:
    """The mean marginal over all orders as weights on the coalitions, [n, C]."""
    counts = np.zeros((orders.shape[1], coalitions))
    np.add.at(counts, (orders, walks[:, 1:]), 1.0)
    np.add.at(counts, (orders, walks[:, :-1]), -1.0)
    return counts / len(orders)


def pair_std_error(orders: Ints, utilities: Floats) -> Floats:
    """Standard error of the mean marginal, [n]: pairs are independent, the two orders within a pair are not.

    Args:
        orders: [2 pairs, n].
        utilities: each order's utilities at its steps 0..n, [2 pairs, n + 1].
    """
    marginals = np.empty(orders.shape)
    np.put_along_axis(marginals, orders, np.diff(utilities, axis=1), axis=1)
    pairs = (marginals[0::2] + marginals[1::2]) / 2
    error: Floats = pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs))
    return error
