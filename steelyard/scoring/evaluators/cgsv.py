"""CGSV: how much an update points where the mean of all points.

Xu et al. 2021 ("Gradient driven rewards to guarantee fairness in collaborative machine learning", NeurIPS):

    r_k <- memory r_k + (1 - memory) cos(u_k, sum over j of (n_j / n) u_j),   u_k = D_k / |D_k|,   r_k = 0 at first

It rewards agreement and asks for no utility. The paper turns r into shares (floored, divided by their sum) and weighs
the mean by them; the federation averages by samples, so the mean here is weighted by n_k, and r is left as it is (our
choices). Whoever is absent keeps its r. Rows are the changes of r. Exact; it knows no validation data. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.parsing import Fraction
from steelyard.scoring.evaluators.base import EvaluatorParams, Round, Scores, State
from steelyard.scoring.evaluators.running import advance, nothing_yet, unchanged
from steelyard.scoring.geometry import cosines, gram


@dataclass(frozen=True, kw_only=True)
class CgsvParams(EvaluatorParams):
    """The running mean's memory, the paper's 0.95; `utility` is not used."""

    memory: Fraction = 0.95


class Cgsv:
    """Cosine gradient Shapley value. State: the running result, whose value is r [N]."""

    def __init__(self, params: CgsvParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:  # noqa: ARG002 - none, however many
        """None."""
        return 0

    def start(self, clients: int) -> State:
        """R = 0."""
        return nothing_yet(clients)

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:  # noqa: ARG002 - exact
        """What the round changed of r."""
        if not round_.members:
            return unchanged(state)
        members = list(round_.members)
        gram_nn = gram(round_.updates_nD, round_.trainable)
        length_n = np.sqrt(np.diag(gram_nn))
        weights_n = np.array([round_.samples[k] for k in members], dtype=np.float64)
        unit_n = np.divide(weights_n, length_n, out=np.zeros(len(members)), where=length_n > 0)
        r = state["value"].copy()
        r[members] = self.params.memory * r[members] + (1 - self.params.memory) * cosines(gram_nn, unit_n)
        zeros = np.zeros(round_.clients)
        return advance(state, Scores(value=r, std_error=zeros, validation_std_error=zeros, calls=0))
