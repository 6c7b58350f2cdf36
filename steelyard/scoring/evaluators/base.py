"""What an evaluator is and what it returns. Knows games and rounds, never models or files. Torch-free.

An `Evaluator` turns one round's game into values. A `Fold` sees whole rounds, the updates too, and carries state from
round to round. Either way the values of all rounds add up to a client's total: where a result is defined for a run as
a whole, a round's row is what the round changed of it (`evaluators/running.py`).

Legend: N clients of the roster, n players (the round's participants), C coalitions, E validation examples, D float
values of a state, P of them trainable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import fsum, nan, sqrt
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from steelyard.errors import UserError, described
from steelyard.scoring.coalitions import Floats, Game, Masks

CHUNK = 256

Vectors = NDArray[np.float32]
State = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class EvaluatorParams:
    """The keys that every `[[evaluators]]` table has: a unique name, the evaluator's kind, and the utility."""

    name: str
    kind: str
    utility: Literal["accuracy", "loss"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One evaluator's result for one game.

    Attributes:
        value: each player's contribution, [n].
        std_error: its standard error from the sampling of coalitions, [n]; 0 where exact, nan where the
            sample is too small to tell.
        validation_std_error: its standard error from the sampling of validation examples, the coalitions being those
            used, [n]; 0 for a game without examples, nan where a single example tells nothing.
        calls: distinct coalitions asked for.
        converged: False where sampling ended for its budget's sake, before the standard error or the rule that it was
            to reach; True where it is exact, or nothing was to be reached.
        examples: the values taken apart by validation example, [n, E]: but for a constant, their mean over E is the
            value; None where the value is no such mean, or knows no example.
        whole: `examples` is the whole run's up to now and not the round's.
    """

    value: Floats
    std_error: Floats
    validation_std_error: Floats
    calls: int
    converged: bool = True
    examples: Floats | None = field(default=None, repr=False)
    whole: bool = False

    def check(self, places: int, where: str) -> None:
        """Raise UserError unless there is a number of each kind per place.

        A single number would be told as every client's, another wrong size in numpy's words. That they are finite
        isn't asked: huge updates can make an honest evaluator's values overflow, and no client may end the run.

        Args:
            places: how many values are due.
            where: names the evaluator and the round in an error.
        """
        for name in ("value", "std_error", "validation_std_error"):
            numbers = getattr(self, name)
            if not isinstance(numbers, np.ndarray) or numbers.shape != (places,) or numbers.dtype.kind not in "fiu":
                raise UserError(f"{where}: {name} as an array of {places} numbers expected, got {described(numbers)}")
        if not isinstance(self.calls, int) or self.calls < 0:
            raise UserError(f"{where}: calls as an integer >= 0 expected, got {self.calls!r}; game.calls counts them")
        parts = self.examples
        if parts is not None and (not isinstance(parts, np.ndarray) or parts.ndim != 2 or len(parts) != places):
            expected = f"examples as an array [{places}, validation examples] or None expected"
            raise UserError(f"{where}: {expected}, got {described(parts)}")

    def spread(self, members: tuple[int, ...], clients: int) -> Scores:
        """The same for the whole roster, [N]: 0 for whoever is not a member."""
        columns = []
        for column_n in (self.value, self.std_error, self.validation_std_error):
            column_N = np.zeros(clients)
            column_N[list(members)] = column_n
            columns.append(column_N)
        examples_NE = None
        if self.examples is not None:
            examples_NE = np.zeros((clients, self.examples.shape[1]))
            examples_NE[list(members)] = self.examples
        return Scores(
            value=columns[0],
            std_error=columns[1],
            validation_std_error=columns[2],
            calls=self.calls,
            converged=self.converged,
            examples=examples_NE,
            whole=self.whole,
        )


class Evaluator(Protocol):
    """Turns a game into a contribution per player."""

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Score the game's players; all randomness comes from the generator."""

    def most_calls(self, players: int) -> int:
        """The most distinct coalitions that a game of so many players can take."""


class Round(Protocol):
    """A recorded round as a fold may see it. Clients are named by their places 0..N-1 in the roster.

    Attributes:
        number: the round, from 1.
        last: whether it is the experiment's last.
        clients: N.
        members: the places of the round's participants, in client order.
        samples: n_k of all N clients.
        trainable: P: geometry looks at that many first values of a state alone.
        global_D: the state that the round began with; not to be written.
        updates_nD: the members' updates, a float32 vector [D] each; not to be written.
        labels_E: the labels of the validation examples.
    """

    number: int
    last: bool
    clients: int
    members: tuple[int, ...]
    samples: tuple[int, ...]
    trainable: int
    global_D: Vectors
    updates_nD: tuple[Vectors, ...]
    labels_E: NDArray[np.int64]

    def view(self, metric: Literal["accuracy", "loss"]) -> Game:
        """The round's game, its players the members in client order; with its own count of calls."""

    def last_layer(self, vector_P: Vectors) -> Vectors:
        """The last layer's part of an update: a row of weights and bias per class, [classes, features + 1]."""

    def validation_gradient(self) -> Floats:
        """The gradient of the mean validation cross-entropy at the global state, [P]."""

    def play(
        self,
        global_D: Vectors,
        updates_nD: tuple[Vectors, ...],
        samples: tuple[int, ...],
        metric: Literal["accuracy", "loss"],
    ) -> Game:
        """Another game on the same validation data: of these updates to that state."""


@runtime_checkable
class Fold(Protocol):
    """Scores round after round, in order, with named arrays carried between them; never changes those it is given.

    One that plays other games (`Round.play`) than the round's, with which others share no outcome, says `own_games =
    True`, so that the time which it takes can be foretold.
    """

    def start(self, clients: int) -> State:
        """The state before the first round of so many clients."""

    def fold(self, state: State, round_: Round, generator: np.random.Generator) -> tuple[State, Scores]:
        """The state after a round, and what the round adds to each client's total, [N]."""

    def most_calls(self, players: int) -> int:
        """The most distinct coalitions that a round of so many players can take."""


class Stateless:
    """What folds share whose rounds stand alone and that ask for no coalition: all but `fold` itself."""

    def __init__(self, params: EvaluatorParams) -> None:
        self.params = params

    def start(self, clients: int) -> State:  # noqa: ARG002 - the same for any number
        """No state."""
        return {}

    def most_calls(self, players: int) -> int:  # noqa: ARG002 - the same for any number
        """None."""
        return 0


NO_SCORES = Scores(value=np.zeros(0), std_error=np.zeros(0), validation_std_error=np.zeros(0), calls=0)


def linear_value(coefficients_nC: Floats, values_C: Floats) -> Floats:
    """Each player's value as a linear function of the coalitions' utilities, [n].

    The sum is the correctly rounded one of the products, so its bits do not depend on the coalitions' order, and a
    player that never changes a value scores exactly 0.
    """
    return np.array([fsum(row) for row in (coefficients_nC * values_C).tolist()], dtype=np.float64)


def example_values(game: Game, masks_Cn: Masks, coefficients_nC: Floats) -> Floats:
    """Linear values on every validation example alone, [n, E]. Memory: CHUNK coalitions at a time."""
    chunks = range(0, len(masks_Cn), CHUNK)
    per_example_nE = sum(
        coefficients_nC[:, at : at + CHUNK] @ game.examples(masks_Cn[at : at + CHUNK]) for at in chunks
    )
    assert isinstance(per_example_nE, np.ndarray)
    return per_example_nE


def example_std_error(examples_nE: Floats) -> Floats:
    """Standard error over the sampling of validation examples of values taken apart by example, [n].

    A utility is a mean over examples and the value is linear in it, so the value is the mean over examples of the
    value computed on that example alone; its standard error is their standard deviation (n - 1) over the root of their
    number, which is what a bootstrap over the examples converges to.
    """
    players, examples = examples_nE.shape
    if examples < 2:
        return np.full(players, 0.0 if examples == 0 else nan)
    error_n: Floats = examples_nE.std(axis=1, ddof=1) / sqrt(examples)
    return error_n


def linear_scores(
    game: Game,
    masks_Cn: Masks,
    coefficients_nC: Floats,
    values_C: Floats,
    std_error: Floats,
    *,
    converged: bool = True,
) -> Scores:
    """The scores of values that are linear in the utilities of these coalitions."""
    examples_nE = example_values(game, masks_Cn, coefficients_nC)
    return Scores(
        value=linear_value(coefficients_nC, values_C),
        std_error=std_error,
        validation_std_error=example_std_error(examples_nE),
        calls=game.calls,
        converged=converged,
        examples=examples_nE,
    )
