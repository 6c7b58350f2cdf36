"""Results that are defined for a run as a whole, told round by round. Torch-free.

A round's row is the running result after the round less that before it, so rows add up to the final one. Its standard
error is the root of what the squared error grew by, 0 where it shrank: the squares of all rows add up to the final
square or more, never less.
"""

from __future__ import annotations

import numpy as np

from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators.base import Scores, State


def nothing_yet(clients: int) -> State:
    """The running result before the first round."""
    return {name: np.zeros(clients) for name in ("value", "std_error", "validation_std_error")}


def advance(state: State, result: Scores) -> tuple[State, Scores]:
    """The state that holds a new running result, and the row that leads there from the old one."""
    row = Scores(
        value=result.value - state["value"],
        std_error=_growth(state["std_error"], result.std_error),
        validation_std_error=_growth(state["validation_std_error"], result.validation_std_error),
        calls=result.calls,
        converged=result.converged,
        examples=result.examples,
        whole=True,
    )
    new = {
        "value": result.value,
        "std_error": result.std_error,
        "validation_std_error": result.validation_std_error,
    }
    return {**state, **new}, row


def unchanged(state: State) -> tuple[State, Scores]:
    """A round that changes nothing of the running result."""
    zeros = np.zeros(len(state["value"]))
    return state, Scores(value=zeros, std_error=zeros, validation_std_error=zeros, calls=0)


def _growth(before: Floats, after: Floats) -> Floats:
    grown: Floats = np.sqrt(np.maximum(after**2 - before**2, 0.0))
    return grown
