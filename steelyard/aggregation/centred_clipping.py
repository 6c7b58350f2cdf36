"""Centred clipping: every update is pulled to within a radius of where the last round went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard.aggregation.base import Group, State, Stateless, Verdict
from steelyard.aggregation.rows import Vector, distances_to_sum
from steelyard.parsing import Positive, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class CentredClippingParams:
    """`tau` is the radius, `iterations` how often the centre moves within a round."""

    tau: PositiveFloat = 10.0
    iterations: Positive = 5


class CentredClipping(Stateless):
    """Karimireddy, He and Jaggi 2021, arXiv 2012.10333: v <- v + mean_k (D_k - v) min(1, tau / |D_k - v|), repeated.

    Suspicion: the distance to the centre at the last iteration over tau, so that above 1 is clipped. Carries `centre`
    [P], the last round's step, at first 0. All of it is linear in the updates and the centre, so it runs on their
    inner products.
    """

    def __init__(self, params: CentredClippingParams) -> None:
        self.params = params

    def start(self, clients: int, size: int) -> State:  # noqa: ARG002 - of no client
        """The model stands still."""
        return {"centre": np.zeros(size, np.float32)}

    def decide(self, state: State, group: Group) -> Verdict:
        """Iterate, in coefficients of the updates and of the centre."""
        n, centre_P = len(group), state["centre"]
        products_n = group.rows.dot(centre_P)
        square = float(np.sum(centre_P.astype(np.float64) ** 2))
        gram = np.block([[group.rows.gram_nn, products_n[:, None]], [products_n, square]])
        at = np.zeros(n + 1)
        at[-1] = 1.0
        far_n = np.zeros(n)
        for _ in range(self.params.iterations):
            far_n = distances_to_sum(gram, at)[:n]
            pull_n = np.divide(self.params.tau, far_n, out=np.ones(n), where=far_n > self.params.tau) / n
            at = at * (1 - np.sum(pull_n))
            at[:n] += pull_n
        step_P = (group.rows.combined(at[:n]) + at[-1] * centre_P).astype(np.float32)
        return Verdict(weights_n=at[:n], suspicion_n=far_n / self.params.tau, due_n=group.equal_n, step_P=step_P)

    def after(self, state: State, group: Group, step_P: Vector) -> State:  # noqa: ARG002 - the step says all
        """The step is the next centre."""
        return {"centre": step_P.copy()}
