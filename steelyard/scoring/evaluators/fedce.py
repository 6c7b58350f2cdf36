"""FedCE: a client counts for pointing elsewhere than the others, and for what goes wrong without it.

Jiang et al. 2023 (arXiv 2303.16520): the product of its novelty, 1 - cos(D_k, sum of the others' updates) as a running
mean over rounds, and of the validation error of the model without it. Our choices: the others' updates are weighted by
samples, as FedAvg weighs them; the mean over rounds is the plain one over those that the client took part in; the error
is 1 - accuracy, or the cross-entropy, on the server's validation data (the paper: on the client's own); values are not
divided by their sum. n calls a round. Whoever is absent keeps its value. Rows are the changes of the value. Exact; the
error over validation examples takes the cosines as given. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.scoring.evaluators.base import (
    EvaluatorParams,
    Round,
    Scores,
    State,
    example_std_error,
    example_values,
    linear_value,
)
from steelyard.scoring.evaluators.running import advance, nothing_yet, unchanged
from steelyard.scoring.geometry import cosines_with_others, gram


@dataclass(frozen=True, kw_only=True)
class FedCEParams(EvaluatorParams):
    """Nothing to set."""


class FedCE:
    """Federated contribution estimation.

    State: `cosine` [N], summed over `rounds` [N]; `examples` [N, E], the values by example; the running result.
    """

    def __init__(self, params: FedCEParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """One model without each player."""
        return players

    def start(self, clients: int) -> State:
        """No round seen."""
        return {
            "cosine": np.zeros(clients),
            "rounds": np.zeros(clients),
            "examples": np.zeros((clients, 0)),
            **nothing_yet(clients),
        }

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:  # noqa: ARG002 - exact
        """What the round changed of the value."""
        if not round_.members:
            return unchanged(state)
        members = list(round_.members)
        weights_n = np.array([round_.samples[k] for k in members], dtype=np.float64)
        cosine, rounds = state["cosine"].copy(), state["rounds"].copy()
        cosine[members] += cosines_with_others(gram(round_.updates_nD, round_.trainable), weights_n)
        rounds[members] += 1
        novelty_n = 1 - cosine[members] / rounds[members]
        game = round_.view(self.params.utility)
        without = ~np.eye(len(members), dtype=bool)
        perfect = 1.0 if self.params.utility == "accuracy" else 0.0
        coefficients = -np.diag(novelty_n)
        examples_nE = example_values(game, without, coefficients)
        value, error, validation = (state[name].copy() for name in ("value", "std_error", "validation_std_error"))
        value[members] = perfect * novelty_n + linear_value(coefficients, game.values(without))
        validation[members] = example_std_error(examples_nE)
        examples_NE = np.zeros((len(value), examples_nE.shape[1]))
        before_NE = state.get("examples", np.zeros((0, 0)))  # a run begun by an older version has none
        if before_NE.shape == examples_NE.shape:
            examples_NE[:] = before_NE
        examples_NE[members] = examples_nE
        result = Scores(
            value=value, std_error=error, validation_std_error=validation, calls=game.calls, examples=examples_NE
        )
        return advance({**state, "cosine": cosine, "rounds": rounds, "examples": examples_NE}, result)
