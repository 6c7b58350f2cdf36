"""ShapFed's class-specific score: per class, how much a client's last layer moves as the aggregate's does.

Tastan et al. 2024 (arXiv 2406.00569, "CSSV"). The mean over classes of the cosine between the class's row (weights and
bias) in the last layer of the client's update and of the aggregate. Despite its name it is a cosine, no Shapley value;
it rewards agreement on every class alike. A row of length 0 has cosine 0. Exact, no utility, no state; a run's total is
the sum over rounds (the paper keeps a running mean for its weights). Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.scoring.evaluators.base import EvaluatorParams, Round, Scores, State, Stateless


@dataclass(frozen=True, kw_only=True)
class ShapFedParams(EvaluatorParams):
    """Nothing to set; `utility` is not used."""


class ShapFed(Stateless):
    """Mean over classes of the last layer's cosines."""

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:  # noqa: ARG002 - exact
        """The round's mean cosines."""
        zeros = np.zeros(len(round_.members))
        value = zeros
        if round_.members:
            rows_nCF = np.array([round_.last_layer(update_D) for update_D in round_.updates_nD], dtype=np.float64)
            weights_n = np.array([round_.samples[k] for k in round_.members], dtype=np.float64)
            mean_CF = np.tensordot(weights_n / weights_n.sum(), rows_nCF, axes=1)
            products_nC = (rows_nCF * mean_CF).sum(axis=2)
            lengths_nC = np.linalg.norm(rows_nCF, axis=2) * np.linalg.norm(mean_CF, axis=1)
            cosines_nC = np.divide(products_nC, lengths_nC, out=np.zeros(products_nC.shape), where=lengths_nC > 0)
            value = np.clip(cosines_nC, -1, 1).mean(axis=1)
        scores = Scores(value=value, std_error=zeros, validation_std_error=zeros, calls=0)
        return state, scores.spread(round_.members, round_.clients)
