"""CHG-Shapley: the Shapley value, in closed form, of a game on the updates' geometry alone.

Cai 2024 (arXiv 2406.11730): U(S) = |a|^2 - |a - mean of x_k over S|^2, U({}) = 0, with x_k the clients' updates and a
their mean (unweighted, as the closed form needs; samples do not count). A coalition is worth what its mean step shares
with everybody's. Values add up to |a|^2. Exact, no utility, no validation data; a run's total is the sum over rounds.

With G the inner products x_i . x_j, b_i = a . x_i and H = 1 + 1/2 + ... + 1/n, the value splits into that of twice the
mean of b over S, and minus that of the mean of G over S x S. Averaged over the coalitions of each size s of the others,

    first part    2/n (b_i + (b_i - mean of the others' b) (H - 1))
    second part   1/n (G_ii + sum over s = 1..n-1 of (s d + s (s-1) o + 2 s c + G_ii) / (s+1)^2 - (d + (s-1) o) / s)

where d, o and c are the means of the others' G_jj, of their G_jl with j != l, and of G_ij. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators.base import EvaluatorParams, Round, Scores, State, Stateless
from steelyard.scoring.geometry import gram


@dataclass(frozen=True, kw_only=True)
class ChgShapleyParams(EvaluatorParams):
    """Nothing to set; `utility` is not used."""


class ChgShapley(Stateless):
    """The closed form on the round's updates."""

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:  # noqa: ARG002 - exact
        """The round's Shapley values of that game."""
        zeros = np.zeros(len(round_.members))
        value = closed_form(gram(round_.updates_nD, round_.trainable)) if round_.members else zeros
        scores = Scores(value=value, std_error=zeros, validation_std_error=zeros, calls=0)
        return state, scores.spread(round_.members, round_.clients)


def closed_form(gram_nn: Floats) -> Floats:
    """The Shapley values [n] from the inner products [n, n] of the updates."""
    n = len(gram_nn)
    own, with_all = np.diag(gram_nn), gram_nn.sum(axis=1)
    if n == 1:
        return own.copy()
    shared = with_all / n  # b
    others_shared = (shared.sum() - shared) / (n - 1)
    harmonic = sum(1 / s for s in range(1, n + 1))
    first = 2 / n * (shared + (shared - others_shared) * (harmonic - 1))
    squares = (own.sum() - own) / (n - 1)  # d
    crossed = (with_all - own) / (n - 1)  # c
    rest = gram_nn.sum() - 2 * with_all + own - (own.sum() - own)
    pairs = rest / ((n - 1) * (n - 2)) if n > 2 else np.zeros(n)  # o
    second = own.copy()
    for s in range(1, n):
        joined = (s * squares + s * (s - 1) * pairs + 2 * s * crossed + own) / (s + 1) ** 2
        second += joined - (squares + (s - 1) * pairs) / s
    value: Floats = first - second / n
    return value
