"""How sure scores and their sums over rounds are, as far as that hangs on the validation examples. Torch-free.

All rounds of a run are judged on the same examples, so the errors of a client's rounds are no independent ones: what a
total errs by is told by its sum over rounds on each single example. Those sums are kept here and carried from round to
round; they are N x E numbers an evaluator, however many rounds there are.

Where a value is no mean over examples (`fold_median`), the errors of its rounds are added up: the error of a sum is at
most that. Unknown errors (nan) stay unknown.

Legend: N clients, E validation examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators.base import Scores, State, example_std_error


@dataclass(frozen=True, kw_only=True)
class ExampleErrors:
    """Of one evaluator after a round: the error of each client's total up to now over the validation examples, [N]."""

    total_validation_std_error: Floats


class Totals:
    """Each evaluator's values so far.

    State by evaluator: `examples` [N, E] (E = 0 before there are any), summed over rounds; `bound` [N], the errors of
    those rounds of which nothing is known by example, added up.

    Args:
        clients: N.
    """

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._states: dict[str, State] = {}

    def add(self, evaluator: str, scores: Scores) -> ExampleErrors:
        """Take in an evaluator's next round, [N]."""
        state = self._states.setdefault(evaluator, _nothing_yet(self._clients))
        examples_NE, bound_N = state["examples"], state["bound"]
        if scores.examples is None:
            bound_N = bound_N + scores.validation_std_error
        elif scores.whole or not examples_NE.shape[1]:
            examples_NE = scores.examples
        else:
            examples_NE = examples_NE + scores.examples
        self._states[evaluator] = {"examples": examples_NE, "bound": bound_N}
        return ExampleErrors(total_validation_std_error=example_std_error(examples_NE) + bound_N)

    def forget(self, evaluator: str) -> None:
        """What came before is not known: the errors of an evaluator's totals are unknown from now on."""
        unknown = np.full(self._clients, np.nan)
        self._states[evaluator] = {**_nothing_yet(self._clients), "bound": unknown}

    def arrays(self) -> State:
        """All of it under names of its own, to be kept."""
        return {f"{name}/{part}": array for name, state in self._states.items() for part, array in state.items()}

    def resume(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what `arrays` gave."""
        self._states = by_evaluator(arrays)


def by_evaluator(arrays: Mapping[str, np.ndarray]) -> dict[str, State]:
    """Named arrays EVALUATOR/PART as a state by evaluator."""
    states: dict[str, State] = {}
    for key, array in arrays.items():
        name, _, part = key.partition("/")
        states.setdefault(name, {})[part] = array.copy()
    return states


def _nothing_yet(clients: int) -> State:
    return {"examples": np.zeros((clients, 0)), "bound": np.zeros(clients)}
