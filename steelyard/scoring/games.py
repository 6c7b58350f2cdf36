"""Games without a model: from a function or a table, and classic ones whose Shapley values are known in closed form.

They judge the evaluators. Each `*_game` returns the game and its Shapley values [n].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import CallCounter, Floats, Masks


class FunctionGame:
    """A game given by a function from one mask, bool [n], to its utility. It has no validation examples."""

    def __init__(self, players: int, function: Callable[[Masks], float]) -> None:
        self.players = players
        self._function = function
        self._counter = CallCounter(players)

    @property
    def calls(self) -> int:
        """Distinct coalitions asked for."""
        return len(self._counter)

    def values(self, masks_Cn: Masks) -> Floats:
        """Utility of each coalition, [C]."""
        self._counter.keys(masks_Cn)
        return np.array([self._function(mask) for mask in masks_Cn], dtype=np.float64)

    def examples(self, masks_Cn: Masks) -> Floats:
        """No validation sample stands behind a function: [C, 0]."""
        self._counter.keys(masks_Cn)
        return np.zeros((len(masks_Cn), 0))


class TableGame:
    """A game given by a table [2^n], or [2^n, E] with a column per validation example; row i as in `all_masks`."""

    def __init__(self, table: NDArray[np.float64]) -> None:
        self.players = len(table).bit_length() - 1
        if len(table) != 2**self.players:
            raise ValueError(f"a table of 2^n rows expected, got {len(table)}")
        self._examples = table if table.ndim == 2 else np.zeros((len(table), 0))
        self._values = table.mean(axis=1) if table.ndim == 2 else table
        self._counter = CallCounter(self.players)

    @property
    def calls(self) -> int:
        """Distinct coalitions asked for."""
        return len(self._counter)

    def values(self, masks_Cn: Masks) -> Floats:
        """Utility of each coalition, [C]."""
        return self._values[self._rows(masks_Cn)]

    def examples(self, masks_Cn: Masks) -> Floats:
        """Per-example utilities, [C, E]."""
        return self._examples[self._rows(masks_Cn)]

    def _rows(self, masks_Cn: Masks) -> NDArray[np.int64]:
        self._counter.keys(masks_Cn)
        return masks_Cn.astype(np.int64) @ (1 << np.arange(self.players, dtype=np.int64))


def additive_game(worth: Sequence[float], empty: float = 0.0) -> tuple[FunctionGame, Floats]:
    """V(S) = V(empty) + the sum of the members' worth; each player's value is its worth."""
    worth_n = np.array(worth, dtype=np.float64)
    return FunctionGame(len(worth), lambda mask: empty + float(worth_n[mask].sum())), worth_n


def symmetric_voting_game(players: int, quota: int) -> tuple[FunctionGame, Floats]:
    """1 once `quota` players are together, else 0; everybody's value is 1/n."""
    return FunctionGame(players, lambda mask: float(mask.sum() >= quota)), np.full(players, 1 / players)


def weighted_majority_game(weight: int, small: int, quota: int) -> tuple[FunctionGame, Floats]:
    """Player 0 holds `weight` votes, `small` others one each; 1 once `quota` votes are together, else 0.

    Player 0 is pivotal at each place of the order that 0..small others precede, all equally likely, where their votes
    alone fall short and with its own suffice; the others share the rest alike.
    """
    if not 1 <= quota <= weight + small:
        raise ValueError(f"a quota within the {weight + small} votes expected, got {quota}")
    votes_n = np.array([weight] + [1] * small)
    pivotal = sum(s < quota <= s + weight for s in range(small + 1))
    large = pivotal / (small + 1)
    shapley_n = np.array([large] + [(1 - large) / max(small, 1)] * small)
    return FunctionGame(1 + small, lambda mask: float(votes_n[mask].sum() >= quota)), shapley_n


def glove_game(left: int, right: int) -> tuple[FunctionGame, Floats]:
    """The first `left` players own a left glove each, the others a right one; V(S) is the number of pairs.

    A left glove adds a pair where more right gloves than left ones came before it: averaged over the place in the
    order, and over who came before (hypergeometric).
    """
    n = left + right
    pairs = sum(
        comb(left - 1, a) * comb(right, s - a) / comb(n - 1, s)
        for s in range(n)
        for a in range(min(left - 1, s) + 1)
        if a < s - a
    )
    shapley_left = pairs / n
    shapley_right = (min(left, right) - left * shapley_left) / right
    shapley_n = np.array([shapley_left] * left + [shapley_right] * right)
    return FunctionGame(n, lambda mask: float(min(mask[:left].sum(), mask[left:].sum()))), shapley_n


def airport_game(costs: Sequence[float]) -> tuple[FunctionGame, Floats]:
    """V(S) is the largest cost in S; everyone who needs a stretch of the runway shares it (Littlechild & Owen 1973)."""
    costs_n = np.array(costs, dtype=np.float64)
    order = np.argsort(costs_n, kind="stable")
    stretches = np.diff(costs_n[order], prepend=0.0)
    shapley_n = np.empty(len(costs_n))
    shapley_n[order] = np.cumsum(stretches / np.arange(len(costs_n), 0, -1))
    return FunctionGame(len(costs_n), lambda mask: float(costs_n[mask].max(initial=0.0))), shapley_n


def coverage_game(covers_Mn: Masks, worth_M: Sequence[float]) -> tuple[FunctionGame, Floats]:
    """V(S) is the worth of the items that somebody in S covers; those who cover an item share its worth.

    It saturates: who comes late finds most of its items covered.

    Args:
        covers_Mn: which player covers which of M items, bool [M, n]; each is covered by somebody.
        worth_M: what each item is worth.
    """
    items_M = np.array(worth_M, dtype=np.float64)
    shapley_n: Floats = (covers_Mn / covers_Mn.sum(axis=1, keepdims=True)).T @ items_M

    def worth(mask: Masks) -> float:
        return float(items_M[(covers_Mn & mask).any(axis=1)].sum())

    return FunctionGame(covers_Mn.shape[1], worth), shapley_n
