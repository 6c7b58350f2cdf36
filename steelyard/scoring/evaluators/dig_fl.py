"""DIG-FL: how far an update goes down the validation loss, to first order.

Wang et al. 2022 ("Efficient participant contribution evaluation for horizontal and vertical federated learning",
ICDE): the inner product of -D_k and the gradient of the validation loss at the round's global state, here times n_k / n
where the paper has 1 / n, since the aggregate weighs so (our choice): values add up to the first-order gain of the
aggregate. One gradient a round and no utility call, whatever `utility` says. Exact; its error over validation examples
is not known (nan). A run's total is the sum over rounds. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.scoring.evaluators.base import EvaluatorParams, Round, Scores, State, Stateless


@dataclass(frozen=True, kw_only=True)
class DigFLParams(EvaluatorParams):
    """Nothing to set; `utility` is not used."""


class DigFL(Stateless):
    """First-order gain of the validation loss."""

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:  # noqa: ARG002 - exact
        """The round's first-order gains."""
        members = round_.members
        value = np.zeros(len(members))
        if members:
            gradient_P = round_.validation_gradient()
            total = sum(round_.samples[k] for k in members)
            for i, (k, update_D) in enumerate(zip(members, round_.updates_nD, strict=True)):
                descent = -float(np.dot(gradient_P, update_D[: round_.trainable].astype(np.float64)))
                value[i] = round_.samples[k] / total * descent
        scores = Scores(
            value=value,
            std_error=np.zeros(len(members)),
            validation_std_error=np.full(len(members), np.nan),
            calls=0,
        )
        return state, scores.spread(members, round_.clients)
