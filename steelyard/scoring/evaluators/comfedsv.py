"""ComFedSV: the Shapley value over all clients when no round has them all, by completing what was not seen.

Fan et al. 2022 ("Improving fairness for data valuation in horizontal federated learning", ICDE). Rounds by coalitions
of the roster make a matrix of utilities U_t(S) = V(w_S) - V(w); a round shows those coalitions that all took part.
Updates change slowly, so the matrix is nearly of low rank: it is completed by U_t(S) = w_t . h_S, regularized least
squares alternating between w and h. The value is the Shapley value of the column sums. Seen utilities stay as they are
(our choice), so that with everybody in every round it is FedSV summed over rounds.

The columns are all coalitions, up to `exact_up_to` clients and where `calls` allows it; else those of antithetic pairs
of orders, drawn once in the first round: `permutations`, or as many as `calls` allows. So every round shows the same
ones as far as it can. Below one pair's worth of `calls` it shows a random part of them.

A column that no round has shown counts as 0: nothing tells what it is worth. Fan et al. have everybody in the first
round; where all never meet, values can be far off, and `converged` is False.

The standard error is that of the orders, 0 with all columns, and nan as soon as anything was completed: what completing
errs by is not known. The error over validation examples is not known either (nan). Torch-free.

Legend: N clients, M columns, T rounds so far, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from steelyard.parsing import NonNegativeFloat, Positive, Range
from steelyard.scoring.coalitions import Floats, Masks, all_masks
from steelyard.scoring.evaluators.base import EvaluatorParams, Round, Scores, State, linear_value
from steelyard.scoring.evaluators.fedsv import (
    antithetic_orders,
    pair_std_error,
    shapley_coefficients,
    walk_coalitions,
    walk_coefficients,
)
from steelyard.scoring.evaluators.running import advance, nothing_yet, unchanged


@dataclass(frozen=True, kw_only=True)
class ComFedSVParams(EvaluatorParams):
    """The completion's rank, its ridge relative to the utilities' root mean square, and its sweeps (our choice)."""

    rank: Positive = 3
    ridge: NonNegativeFloat = 0.01
    sweeps: Positive = 50
    exact_up_to: Annotated[int, Range(0, 16)] = 10
    permutations: Annotated[int, Range(2)] = 50
    calls: Annotated[int, Range(2)] = 4096


class ComFedSV:
    """Completed FedSV.

    State: `orders` [2 pairs, N] and `walks` [2 pairs, N + 1] (empty with all columns), `columns` [M, N], `utilities`
    [T, M] with nan where unseen; the running result.
    """

    def __init__(self, params: ComFedSVParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """All columns that a round can show, or the bound, and the empty coalition."""
        columns = int(2**players)
        if players > self.params.exact_up_to:
            columns = min(columns, 2 * self.params.permutations * (players - 1) + 2)
        return min(columns, self.params.calls + 1)

    def start(self, clients: int) -> State:
        """No column chosen, no round seen."""
        return {
            "orders": np.zeros((0, clients), np.int64),
            "walks": np.zeros((0, clients + 1), np.int64),
            "columns": np.zeros((0, clients), np.uint8),
            "utilities": np.zeros((0, 0)),
            **nothing_yet(clients),
        }

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:
        """What the round changed of the completed value."""
        if not len(state["columns"]):
            state = self._choose_columns(state, generator)
        if not round_.members:
            return unchanged(state)
        columns = state["columns"].astype(bool)
        row_M, calls = self._row(columns, round_, generator)
        utilities = np.vstack([state["utilities"].reshape(-1, len(columns)), row_M])
        state = {**state, "utilities": utilities}
        sums_M = complete(utilities, self.params.rank, self.params.ridge, self.params.sweeps).sum(axis=0)
        orders, walks = state["orders"], state["walks"]
        exact, unseen = not len(orders), np.isnan(utilities)
        coefficients = shapley_coefficients(round_.clients) if exact else walk_coefficients(orders, walks, len(columns))
        nothing, unknown = np.zeros(round_.clients), np.full(round_.clients, np.nan)
        judged = round_.view(self.params.utility).examples(np.zeros((1, len(round_.members)), dtype=bool)).shape[1] > 0
        std_error = nothing if exact else unknown
        if unseen.any():
            std_error = unknown
        elif len(orders) > 2:
            std_error = pair_std_error(orders, sums_M[walks])
        result = Scores(
            value=linear_value(coefficients, sums_M),
            std_error=std_error,
            validation_std_error=unknown if judged else nothing,
            calls=calls,
            converged=not unseen.all(axis=0).any(),
        )
        return advance(state, result)

    def _choose_columns(self, state: State, generator: np.random.Generator) -> State:
        clients = state["columns"].shape[1]
        if clients <= self.params.exact_up_to and 2**clients <= self.params.calls + 1:
            return {**state, "columns": all_masks(clients).astype(np.uint8)}
        affordable = (self.params.calls - 1) // max(2 * (clients - 1), 1)  # all orders share the full coalition
        orders = antithetic_orders(clients, max(min(self.params.permutations, affordable), 1), generator)
        columns, walks = walk_coalitions(orders)
        return {**state, "orders": orders, "walks": walks, "columns": columns.astype(np.uint8)}

    def _row(self, columns: Masks, round_: Round, generator: np.random.Generator) -> tuple[Floats, int]:
        """The round's utilities by column, nan where it cannot show them or the budget leaves them out, and calls."""
        members = list(round_.members)
        absent = np.ones(columns.shape[1], dtype=bool)
        absent[members] = False
        shown = np.flatnonzero(~columns[:, absent].any(axis=1) & columns.any(axis=1))
        if len(shown) > self.params.calls:
            shown = np.sort(generator.permutation(shown)[: self.params.calls])
        game = round_.view(self.params.utility)
        masks = np.vstack([np.zeros((1, len(members)), dtype=bool), columns[shown][:, members]])
        values = game.values(masks)
        row_M = np.where(columns.any(axis=1), np.nan, 0.0)  # the empty coalition adds nothing and is asked for anyway
        row_M[shown] = values[1:] - values[0]
        return row_M, game.calls


def complete(utilities_TM: Floats, rank: int, ridge: float, sweeps: int) -> Floats:
    """Fill in the nans with the best fit of a low rank; the rest stays as it is.

    Alternating ridge regressions, begun at the singular vectors of the matrix with 0 for what is unknown.
    """
    seen = ~np.isnan(utilities_TM)
    if seen.all():
        return utilities_TM
    filled = np.where(seen, utilities_TM, 0.0)
    size = float(np.sqrt((filled**2).sum() / max(int(seen.sum()), 1)))
    if size == 0:
        return filled
    left, lengths, right = np.linalg.svd(filled, full_matrices=False)
    rank = min(rank, len(lengths))
    rows = left[:, :rank] * np.sqrt(lengths[:rank])
    columns = right[:rank].T * np.sqrt(lengths[:rank])
    penalty = max(ridge, 1e-9) * size * np.eye(rank)
    for _ in range(sweeps):
        rows = _regress(filled, seen, columns, penalty)
        columns = _regress(filled.T, seen.T, rows, penalty)
    return np.where(seen, utilities_TM, rows @ columns.T)


def _regress(values: Floats, seen: Masks, other: Floats, penalty: Floats) -> Floats:
    """The factor of each row of `values` [a, b], given the others' factors [b, r]; [a, r]."""
    products = other[:, :, None] * other[:, None, :]
    normal = np.tensordot(seen.astype(np.float64), products, axes=1) + penalty
    solved = np.linalg.solve(normal, (values @ other)[:, :, None])[:, :, 0]
    return np.asarray(solved, dtype=np.float64)
