"""FoolsGold: clients whose updates have been alike all along lose weight, since copies of one attacker are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steelyard.aggregation.base import Group, State, Stateless, Verdict
from steelyard.aggregation.rows import Rows, Vector, cosines
from steelyard.parsing import PositiveFloat
from steelyard.scoring.coalitions import Floats


@dataclass(frozen=True, kw_only=True)
class FoolsGoldParams:
    """`kappa` is the confidence: how steep weights fall."""

    kappa: PositiveFloat = 1.0


class FoolsGold(Stateless):
    """Fung, Yoon and Beschastnikh 2018, arXiv 1808.04866, on all trainable parameters.

    Weights are divided by their sum, so that the step is a mean (our choice; as published their sum grows with the
    clients); if all are 0 the model stays. Suspicion: the largest pardoned cosine with another client's history.
    Carries `history` [N, P], each client's sum of updates: as large as a round's updates are together.
    """

    tracks: ClassVar[bool] = True

    def __init__(self, params: FoolsGoldParams) -> None:
        self.params = params

    def start(self, clients: int, size: int) -> State:
        """Nobody has sent anything."""
        return {"history": np.zeros((clients, size), np.float32)}

    def decide(self, state: State, group: Group) -> Verdict:
        """Compare histories that include this round's updates."""
        likeness_n = pardoned(cosines(Rows(_with(state, group), group.rows.size).gram_nn))
        weights_n = self._weights(likeness_n)
        total = float(np.sum(weights_n))
        return Verdict(
            weights_n=weights_n / total if total > 0 else weights_n, suspicion_n=likeness_n, due_n=group.equal_n
        )

    def after(self, state: State, group: Group, step_P: Vector) -> State:  # noqa: ARG002 - the updates say all
        """Add each client's update to its history."""
        history_NP = state["history"].copy()
        for place, vector_P in zip(group.members, _with(state, group), strict=True):
            history_NP[place] = vector_P
        return {"history": history_NP}

    def _weights(self, likeness_n: Floats) -> Floats:
        alpha_n = np.clip(1.0 - likeness_n, 0.0, 1.0)
        top = float(np.max(alpha_n))
        alpha_n = np.minimum(alpha_n / top, 0.99) if top > 0 else alpha_n
        with np.errstate(divide="ignore"):
            logit_n = self.params.kappa * (np.log(alpha_n / (1.0 - alpha_n)) + 0.5)
        return np.clip(logit_n, 0.0, 1.0)


def pardoned(cosines_nn: Floats) -> Floats:
    """Each row's largest cosine with another, less where that is with a row more suspicious than itself, [n]."""
    alike_nn = np.where(np.eye(len(cosines_nn), dtype=bool), -np.inf, cosines_nn)
    if len(alike_nn) == 1:
        return np.zeros(1)
    most_n = np.max(alike_nn, axis=1)
    ratio_nn = np.divide(
        most_n[:, None], most_n, out=np.ones_like(cosines_nn), where=most_n > np.maximum(most_n[:, None], 0)
    )
    return np.asarray(np.max(alike_nn * np.maximum(ratio_nn, 0.0), axis=1, where=np.isfinite(alike_nn), initial=-1.0))


def _with(state: State, group: Group) -> list[Vector]:
    """Each member's history, this round's update included."""
    sums = [state["history"][place].copy() for place in group.members]
    for columns, block_nb in group.rows.blocks():
        for vector_P, row_b in zip(sums, block_nb, strict=True):
            vector_P[columns] += row_b.astype(np.float32)
    return sums
