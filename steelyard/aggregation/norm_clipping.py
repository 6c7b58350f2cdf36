"""Norm clipping: no update may be longer than a bound, fixed or learnt from the rounds before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.aggregation.base import Group, State, Stateless, Verdict
from steelyard.aggregation.rows import Vector
from steelyard.parsing import NonNegativeFloat, Positive


@dataclass(frozen=True, kw_only=True)
class NormClippingParams:
    """`bound` is the longest norm (0: the median over the last `window` rounds of each round's median norm)."""

    bound: NonNegativeFloat = 0.0
    window: Positive = 5


class NormClipping(Stateless):
    """Sun et al. 2019, arXiv 1911.07963: longer updates are scaled down to the bound, then averaged by samples.

    The running median is our choice; the first round, which has none before it, takes its own. Suspicion: norm over
    bound, so that above 1 is clipped. Carries `medians` [window], oldest first; nan where there was no round yet.
    """

    def __init__(self, params: NormClippingParams) -> None:
        self.params = params

    def start(self, clients: int, size: int) -> State:  # noqa: ARG002 - of no client
        """No round yet."""
        return {} if self.params.bound else {"medians": np.full(self.params.window, np.nan)}

    def decide(self, state: State, group: Group) -> Verdict:
        """Clip and average."""
        norms_n = group.rows.norms_n
        bound = self.params.bound or _bound(state, float(np.median(norms_n)))
        kept_n = np.divide(bound, norms_n, out=np.ones(len(group)), where=norms_n > bound)
        over_n = norms_n / bound if bound else norms_n
        return Verdict(weights_n=group.shares_n * kept_n, suspicion_n=over_n, due_n=group.shares_n)

    def after(self, state: State, group: Group, step_P: Vector) -> State:  # noqa: ARG002 - the norms say all
        """One more median."""
        return {key: np.append(past[1:], np.median(group.rows.norms_n)) for key, past in state.items()}


def _bound(state: State, own: float) -> float:
    known = state["medians"][~np.isnan(state["medians"])]
    return float(np.median(known)) if len(known) else own
