"""A rule with the steps before it, as one thing that judges and joins updates. Torch-free.

Legend: n updates, m rows after the steps, P trainable values of a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steelyard.aggregation.base import Group, Rule, State, Verdict
from steelyard.aggregation.mixing import Step, mix
from steelyard.aggregation.rows import Vector
from steelyard.defence import DefenceConfig
from steelyard.errors import UserError, described


@dataclass(frozen=True, kw_only=True, eq=False)
class Defence:
    """What an experiment's `[defence]` table names; `table` is that table."""

    rule: Rule
    steps: tuple[Step, ...]
    config: DefenceConfig
    table: Mapping[str, Any]

    def decide(self, state: State, group: Group) -> Verdict:
        """Judge and join a group; weights, suspicions and dues come back to the clients that are behind the rows.

        Raises:
            UserError: the rule's verdict is none, or does not have the shape of one.
        """
        matrices, stands = [], np.arange(len(group))
        for step in self.steps:
            group, matrix, places = mix(step, group)
            matrices.append(matrix)
            stands = places[stands]
        verdict: Any = self.rule.decide(state, group)
        if not isinstance(verdict, Verdict):
            due = f"[defence] {self.config.name}, round {group.setting.number}"
            raise UserError(f"{due}: a Verdict expected from decide, got {described(verdict)}")
        verdict.check(group, self.config.name)
        weights_n, due_n = verdict.weights_n, verdict.due_n
        for matrix in reversed(matrices):
            weights_n, due_n = weights_n @ matrix, due_n @ matrix
        return replace(verdict, weights_n=weights_n, due_n=due_n, suspicion_n=verdict.suspicion_n[stands])

    def after(self, state: State, group: Group, step_P: Vector) -> State:
        """What the rule carries on from a round; it remembers the rows that it saw."""
        for step in self.steps:
            group, _, _ = mix(step, group)
        return self.rule.after(state, group, step_P)


def take(group: Group, places: Sequence[int]) -> Group:
    """A coalition of a round's group."""
    return replace(
        group,
        rows=group.rows.take(places),
        samples=tuple(group.samples[k] for k in places),
        members=tuple(group.members[k] for k in places),
    )
