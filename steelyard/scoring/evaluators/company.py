"""A Shapley value in company, which takes the losses of a client's labels less seriously than its gains. Torch-free.

Our own, against attacks that buy value with label coverage (Gao et al. 2026, arXiv 2605.15520, and our study of it).
Two levers made them pay, and each is shortened here:

- Much of a Shapley value is earned alone or nearly so, where any balanced update beats the round's model by far. Here
  only marginals to coalitions of at least `least` others count, all those sizes alike.
- A client that holds few labels loses value on those that it makes the model forget, and synthetic samples of them buy
  those losses back. Here a client's total is taken apart by the labels of the validation examples; labels on which
  it gained count whole, labels on which it lost count `losses` times.

    a(k, c, t) = label c's part of sum over s = least..n-1 of  mean over |S| = s of V(S + k) - V(S),  over (n - least)
    A(k, c)    = sum over rounds t of a(k, c, t)
    total of k = sum over c of A(k, c) where above 0, losses times A(k, c) elsewhere

With least = 0 and losses = 1 it is FedSV. Values do not add up to the utility otherwise.

Legend: N clients, n players, E validation examples, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from steelyard.parsing import NonNegative, Range
from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators.base import Round, Scores, State
from steelyard.scoring.evaluators.contributions import contributions
from steelyard.scoring.evaluators.fedsv import FedSV, FedSVParams
from steelyard.scoring.evaluators.running import advance, nothing_yet, unchanged


@dataclass(frozen=True, kw_only=True)
class CompanyParams(FedSVParams):
    """`least` others that a coalition must hold to be joined (all others, where there are fewer); see above."""

    least: NonNegative = 1
    losses: Annotated[float, Range(0, 1)] = 0.75


class Company:
    """State: `examples` [N, E], every client's contribution to every validation example so far; the running result.

    The error of sampled coalitions takes every label for a gain.
    """

    def __init__(self, params: CompanyParams) -> None:
        self.params = params
        self._fedsv = FedSV(params)

    def most_calls(self, players: int) -> int:
        """FedSV's."""
        return self._fedsv.most_calls(players)

    def start(self, clients: int) -> State:
        """Nothing contributed; E is not known yet."""
        return {"examples": np.zeros((clients, 0)), **nothing_yet(clients)}

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:
        """What the round changed of the totals."""
        if not round_.members:
            return unchanged(state)
        members, game = list(round_.members), round_.view(self.params.utility)
        weights_n, pairs = size_weights(len(members), self.params.least), self._fedsv.pairs(len(members))
        new = contributions(game, weights_n, generator, pairs=pairs)
        examples_NE = state["examples"].copy()
        if not examples_NE.shape[1]:
            examples_NE = np.zeros((round_.clients, len(round_.labels_E)))
        examples_NE[members] += new.examples_nE
        counted_NE = examples_NE * self._factors(examples_NE, round_.labels_E)
        examples, error_N = counted_NE.shape[1], state["std_error"].copy()
        error_N[members] = np.sqrt(error_N[members] ** 2 + new.std_error**2)
        spread_N = counted_NE.std(axis=1, ddof=1) if examples > 1 else np.full(round_.clients, np.nan)
        result = Scores(
            value=counted_NE.mean(axis=1),
            std_error=error_N,
            validation_std_error=spread_N / sqrt(examples),
            calls=game.calls,
            examples=counted_NE,
        )
        return advance({**state, "examples": examples_NE}, result)

    def _factors(self, examples_NE: Floats, labels_E: NDArray[np.int64]) -> Floats:
        """What each client's contribution to each example counts for, by the sign of its total on the label."""
        labels_KE = np.unique(labels_E)[:, None] == labels_E
        totals_NK = examples_NE @ labels_KE.T
        factors: Floats = np.where(totals_NK > 0, 1.0, self.params.losses) @ labels_KE
        return factors


def size_weights(players: int, least: int) -> Floats:
    """Coalitions of every size from `least` on, at most players - 1, count alike, [n]; the weights add up to 1."""
    least = min(least, players - 1)
    weights_n: Floats = (np.arange(players) >= least) / (players - least)
    return weights_n
