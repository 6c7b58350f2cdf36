"""The `[defence]` table of an experiment: how the server joins updates, and what coalitions are then. Torch-free.

It knows the keys that are everybody's; a rule's own parameters pass through to the process that owns the rules
(`steelyard.aggregation`). The table is the server's alone: no client's half has a word of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steelyard.errors import UserError
from steelyard.parsing import NonNegative, parse

FRAME = ("name", "pre", "scoring", "root")


@dataclass(frozen=True, kw_only=True)
class DefenceConfig:
    """A defence as the experiment declares it.

    Attributes:
        name: the rule.
        pre: the steps that mix updates before it, in order: tables with a name and parameters.
        scoring: what a coalition's model is: "same_rule" joins its members' updates by the rule itself, "mean" by
            their weighted mean, whatever rule made the round's aggregate.
        root: labelled samples that the server holds for rules which compare updates with one of its own.
        parameters: the rule's own.
    """

    name: str = "mean"
    pre: tuple[dict[str, Any], ...] = ()
    scoring: Literal["same_rule", "mean"] = "same_rule"
    root: NonNegative = 0
    parameters: dict[str, Any] = field(default_factory=dict)


def defence_config(table: Mapping[str, Any], where: str = "[defence]") -> DefenceConfig | None:
    """A `[defence]` table, its rule's own parameters apart; None for an empty one: plain federated averaging.

    A step of `pre` without parameters may be its name alone.

    Raises:
        UserError: no name, or a value that the shared keys do not allow.
    """
    if not table:
        return None
    if "name" not in table:
        raise UserError(f"{where}: key 'name' is missing; add it")
    frame = {key: value for key, value in table.items() if key in FRAME}
    if isinstance(steps := frame.get("pre", []), list | tuple):
        frame["pre"] = [{"name": step} if isinstance(step, str) else step for step in steps]
    own = {key: value for key, value in table.items() if key not in FRAME}
    return parse(DefenceConfig, {**frame, "parameters": own}, where)
