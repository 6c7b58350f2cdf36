"""FLTrust: each update counts as far as it points where the server's own update points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steelyard.aggregation.base import Group, State, Stateless, Verdict


@dataclass(frozen=True, kw_only=True)
class FLTrustParams:
    """None; `[defence] root` is the size of the server's set."""


class FLTrust(Stateless):
    """Cao et al. 2021, arXiv 2012.13995: weights are cosines with the server's update, at least 0; lengths become its.

    If nobody points its way the model stays. Suspicion: one minus the cosine. The server trains on its root set as a
    client would; see docs/defences.md for where that set is from.
    """

    needs_root: ClassVar[bool] = True

    def __init__(self, params: FLTrustParams) -> None:
        self.params = params

    def decide(self, state: State, group: Group) -> Verdict:  # noqa: ARG002 - it has none
        """Trust by direction."""
        root_P = group.setting.root_P
        assert root_P is not None, "a rule that needs a root set is given the server's update"
        length = float(np.sqrt(np.sum(root_P.astype(np.float64) ** 2)))
        norms_n = group.rows.norms_n
        lengths_n = norms_n * length
        cosines_n = np.divide(group.rows.dot(root_P), lengths_n, out=np.zeros(len(group)), where=lengths_n > 0)
        cosines_n = np.clip(cosines_n, -1.0, 1.0)
        trust_n = np.maximum(cosines_n, 0.0)
        scale_n = np.divide(length, norms_n, out=np.zeros(len(group)), where=norms_n > 0)
        return Verdict(
            weights_n=trust_n / (np.sum(trust_n) or 1.0) * scale_n,
            suspicion_n=1.0 - cosines_n,
            due_n=group.equal_n * scale_n,
        )
