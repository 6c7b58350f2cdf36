"""What an aggregation rule is, what it sees and what it says. Knows neither networks nor files. Torch-free.

A rule sees trainable parameters alone. Its verdict is a weight and a suspicion per client, and the joined step where
that is no weighted sum of updates. It has no memory: what it carries from round to round are named arrays.

Legend: N clients of the roster, n rows (the participants' updates), P trainable values of a state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from steelyard.aggregation.rows import Rows, Vector
from steelyard.errors import UserError, described
from steelyard.scoring.coalitions import Floats
from steelyard.seeding import numpy_generator

State = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a round's groups share: the round's number, the experiment's seed, N, and what the server holds.

    Attributes:
        number: the round, from 1.
        seed: the experiment's; every draw names (seed, round, purpose).
        clients: N.
        global_P: the trainable values of the state that the round began with.
        root_P: the server's own update, trained on its root set; None where no rule asked for it.
        known: values that are the same for every coalition of the round, by name; a cache, never part of a result.
    """

    number: int
    seed: int
    clients: int
    global_P: Vector
    root_P: Vector | None = None
    known: dict[str, Any] = field(default_factory=dict, compare=False)

    def generator(self, purpose: str) -> np.random.Generator:
        """The round's generator for one purpose, anew at each call: every coalition draws the same."""
        return numpy_generator(self.seed, "defence", self.number, purpose)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """A value that does not depend on the coalition, computed at its first use."""
        if name not in self.known:
            self.known[name] = compute()
        return self.known[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The updates to be joined: all of the round's, or a coalition's.

    Attributes:
        rows: the updates, trainable values alone.
        samples: n_k of each row's client (a bucket's: the sum).
        members: each row's place in the roster.
        setting: the round.
    """

    rows: Rows
    samples: tuple[int, ...]
    members: tuple[int, ...]
    setting: Setting

    def __len__(self) -> int:
        return len(self.members)

    @property
    def shares_n(self) -> Floats:
        """Each row's part of the samples, n_k / n, [n]."""
        total = sum(self.samples)
        return np.array([n / total for n in self.samples])

    @property
    def equal_n(self) -> Floats:
        """1 / n for each row, [n]."""
        return np.full(len(self), 1 / len(self))


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What a rule says of a group.

    Attributes:
        weights_n: each row's part in the joined step. Where the step is no weighted sum, the mean over coordinates of
            the row's part there.
        suspicion_n: how suspicious each row is; larger is more so. The unit is the rule's own.
        due_n: the weights that there would be if nobody were suspected.
        step_P: the joined step where it is not the weighted sum of the rows, else None.
    """

    weights_n: Floats
    suspicion_n: Floats
    due_n: Floats
    step_P: Vector | None = None

    def check(self, group: Group, rule: str) -> None:
        """Raise UserError unless there is a finite number of each kind per row, and a value of a step per parameter.

        The records pair a verdict's numbers with clients by their places, so a number too few would be told as another
        client's. That a step is finite isn't asked: huge updates overflow float32 in an honest rule, too, and no client
        may end the run.
        """
        due = f"[defence] {rule}, round {group.setting.number}"
        for name in ("weights_n", "suspicion_n", "due_n"):
            values = getattr(self, name)
            if not isinstance(values, np.ndarray) or values.shape != (len(group),) or values.dtype.kind not in "fiu":
                expected = f"{name} as an array of {len(group)} numbers expected, one per update"
                raise UserError(f"{due}: {expected}, got {described(values)}")
            if not np.all(finite_n := np.isfinite(values)):
                at = int(np.argmin(finite_n))
                raise UserError(f"{due}: finite {name} expected, got {values[at]} at place {at} of {len(group)} from 0")
        if self.step_P is not None and np.shape(self.step_P) != group.setting.global_P.shape:
            size = len(group.setting.global_P)
            raise UserError(f"{due}: step_P as an array of {size} numbers expected, got {described(self.step_P)}")


class Rule(Protocol):
    """Joins the updates of a group.

    Attributes:
        tracks: whether it carries arrays that are a client's own.
        needs_root: whether it asks for the server's own update.
    """

    tracks: ClassVar[bool]
    needs_root: ClassVar[bool]

    def check(self, rows: int) -> None:
        """Raise UserError if a round of so many rows is too small for the parameters."""

    def decide(self, state: State, group: Group) -> Verdict:
        """Judge and join a group of at least one row; changes nothing."""

    def start(self, clients: int, size: int) -> State:
        """What is carried before the first round: N clients, P trainable values."""

    def after(self, state: State, group: Group, step_P: Vector) -> State:
        """What is carried on from a round, given its group and its joined step; the given arrays are not changed."""


class Stateless:
    """A rule without memory."""

    tracks: ClassVar[bool] = False
    needs_root: ClassVar[bool] = False

    def start(self, clients: int, size: int) -> State:  # noqa: ARG002 - the same for any number
        """Nothing."""
        return {}

    def after(self, state: State, group: Group, step_P: Vector) -> State:  # noqa: ARG002 - nothing is carried
        """Nothing."""
        return {}

    def check(self, rows: int) -> None:
        """Any number of rows will do."""


def check_limit(rows: int, f: int, least: int, limit: str, rule: str) -> None:
    """Raise UserError unless a round has the rows that a rule needs to stand f attackers.

    Args:
        rows: how many rows a full round has.
        f: the attackers to be stood.
        least: the fewest rows for that.
        limit: the same in words, e.g. "N >= 2f + 3".
        rule: its name.
    """
    if rows < least:
        raise UserError(
            f"[defence] {rule}: {limit} expected, that is at least {least} updates for f = {f}, got {rows}; lower f"
        )


def relative(values_n: Floats) -> Floats:
    """Values over their median, or over their mean where that is 0: a scale that rounds share, [n]."""
    scale = float(np.median(values_n)) or float(np.mean(values_n)) or 1.0
    return values_n / scale
