"""How sure scores and their sums over rounds are, as far as that hangs on the validation examples. Torch-free.

All rounds of a run are judged on the same examples, so the errors of a client's rounds are no independent ones: what a
total errs by is told by its sum over rounds on each single example. Those sums are kept here and carried from round to
round; they are N x E numbers an evaluator, however many rounds there are.

Where a value is no mean over examples (`fold_median`), the errors of its rounds are added up: the error of a sum is at
most that. Unknown errors (nan) stay unknown.

Where a run judges on some of its validation examples alone, the same parts tell what that errs by from all of them.

Legend: N clients, E validation examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators.base import Scores, State, example_std_error
from steelyard.scoring.subset import Subset


@dataclass(frozen=True, kw_only=True)
class ExampleErrors:
    """One evaluator's errors after a round, [N] each.

    Attributes:
        total_validation_std_error: of each client's total up to now, over the sampling of validation examples.
        subset_std_error: of the round's values as estimates of those on all validation examples; 0 where they are on
            all, or know no example.
        total_subset_std_error: the same of the totals.
    """

    total_validation_std_error: Floats
    subset_std_error: Floats
    total_subset_std_error: Floats


class Totals:
    """Each evaluator's values so far.

    State by evaluator: `examples` [N, E] (E = 0 before there are any), summed over rounds; `bound` [N], the errors of
    those rounds of which nothing is known by example, added up; `unsure` [N], nan where one of them hung on the subset.

    Args:
        clients: N.
        subset: the validation examples that utilities are on; None: all.
    """

    def __init__(self, clients: int, subset: Subset | None = None) -> None:
        self._clients, self._subset = clients, subset
        self._states: dict[str, State] = {}

    def add(self, evaluator: str, scores: Scores) -> ExampleErrors:
        """Take in an evaluator's next round, [N]."""
        state = self._states.setdefault(evaluator, _nothing_yet(self._clients))
        before_NE, bound_N, unsure_N = state["examples"], state["bound"], state["unsure"]
        examples_NE, hangs_N = before_NE, np.zeros(self._clients)
        if scores.examples is None:
            bound_N = bound_N + scores.validation_std_error
            if self._subset is not None and scores.calls:
                hangs_N = np.where(scores.validation_std_error == 0, 0.0, np.nan)
        elif not before_NE.shape[1]:
            examples_NE, before_NE = scores.examples, np.zeros(scores.examples.shape)
        else:
            examples_NE = scores.examples + (0.0 if scores.whole else before_NE)
        unsure_N = unsure_N + hangs_N
        self._states[evaluator] = {"examples": examples_NE, "bound": bound_N, "unsure": unsure_N}
        return ExampleErrors(
            total_validation_std_error=example_std_error(examples_NE) + bound_N,
            subset_std_error=self._off(examples_NE - before_NE) + hangs_N,
            total_subset_std_error=self._off(examples_NE) + unsure_N,
        )

    def _off(self, examples_NE: Floats) -> Floats:
        if self._subset is None or not examples_NE.shape[1]:
            return np.zeros(self._clients)
        return self._subset.std_error(examples_NE)

    def forget(self, evaluator: str) -> None:
        """What came before is not known: the errors of an evaluator's totals are unknown from now on."""
        unknown = np.full(self._clients, np.nan)
        unsure = np.zeros(self._clients) if self._subset is None else unknown
        self._states[evaluator] = {**_nothing_yet(self._clients), "bound": unknown, "unsure": unsure}

    def restart(self) -> None:
        """No round of anybody's."""
        self._states = {}

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
    return {"examples": np.zeros((clients, 0)), "bound": np.zeros(clients), "unsure": np.zeros(clients)}
