"""GTG-Shapley, as published and corrected (Liu et al. 2022, arXiv 2109.02053). Torch-free.

Published: a round whose model gains no more than `round_tolerance` gives nobody anything. Otherwise orders are walked
in cycles, each player leading one order of a cycle, the others behind it at random; who leads when is drawn and leaders
count alike (our choice: a budget may end within a cycle, and who leads joins nobody). A walk is cut once it is within
`tolerance` of V(N). Sampling stops when, after `at_least` orders, the running means of the last `last` of them differ
from the newest by `convergence` or less, relative, averaged over players. The defaults are those of the paper's
released code: 0.001, 0.01, 30 orders, 5 % over the last 10.

Three things of it mislead: the round's cut zeroes most late rounds whole; what a cut walk had left to V(N) goes to
nobody; and the relative change never settles for players whose value is near 0, as it stops by chance for the others.
(The released code also remembers utilities that it never evaluated, those after a cut, as if it had; neither of ours
does.) `gtg_corrected` zeroes no round and gives the players after a cut equal parts of what was left, so its values add
up to V(N) - V(empty); with a `target_std_error` it stops by that instead of the relative change.

Both are biased by the cuts, and by stopping when the means look settled. A cut leaves out less than `tolerance` in sum,
but more of single players where what one adds another takes away. The standard error knows neither: it is that of the
sampling of orders, stratified by who leads, and nan where nothing was looked at: for everybody in a round that was
zeroed, for a player that stood behind the cut in every order.

Legend: n players, m orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from steelyard.parsing import NonNegativeFloat, Positive, PositiveFloat, Range
from steelyard.scoring.coalitions import Floats, Game
from steelyard.scoring.evaluators.base import NO_SCORES, Scores, linear_scores
from steelyard.scoring.evaluators.budget import BudgetParams, meets
from steelyard.scoring.evaluators.racing import FIRST
from steelyard.scoring.evaluators.tmc import none_walked
from steelyard.scoring.evaluators.truncated import ROUNDING, Walk, Walker, known, walk_coefficients, walk_marginals

ENOUGH = 6


@dataclass(frozen=True, kw_only=True)
class GtgParams(BudgetParams):
    """The published thresholds, in units of the utility; `permutations` bounds the orders (our choice), `calls` too."""

    calls: Annotated[int, Range(2)] = 10_000
    tolerance: NonNegativeFloat = 0.001
    round_tolerance: NonNegativeFloat = 0.01
    convergence: PositiveFloat = 0.05
    last: Positive = 10
    at_least: Positive = 30
    permutations: Positive = 1000


@dataclass(frozen=True, kw_only=True)
class GtgCorrectedParams(GtgParams):
    """The same without the round's cut."""

    round_tolerance: NonNegativeFloat = 0.0


class Gtg:
    """GTG-Shapley as published."""

    shares_rest = False

    def __init__(self, params: GtgParams) -> None:
        self.params = params

    def most_calls(self, players: int) -> int:
        """The budget; no walk goes beyond it."""
        return self.params.within_calls(players)

    def evaluate(self, game: Game, generator: np.random.Generator) -> Scores:
        """Mean marginals over guided, truncated orders."""
        n = game.players
        if n == 0:
            return NO_SCORES
        walker = Walker(game, self.params)
        if self.params.round_tolerance > 0 and abs(walker.gain) <= self.params.round_tolerance + ROUNDING:
            nothing, unknown = np.zeros(n), np.full(n, np.nan)
            return Scores(value=nothing, std_error=unknown, validation_std_error=nothing, calls=game.calls)
        walks, converged = self._sample(walker, n, generator)
        if not walks:
            return none_walked(game, walker)
        coefficients = led_coefficients(walks, len(walker.values), shares_rest=self.shares_rest)
        return linear_scores(
            game,
            walker.masks(),
            coefficients,
            np.array(walker.values),
            self._std_error(walks, walker),
            converged=converged,
        )

    def _sample(self, walker: Walker, n: int, generator: np.random.Generator) -> tuple[list[Walk], bool]:
        """Whole cycles until converged, or as many orders as the budget holds."""
        walks: list[Walk] = []
        while len(walks) < self.params.permutations:
            for leader in generator.permutation(n):
                order = np.concatenate([[leader], generator.permutation(np.delete(np.arange(n), leader))])
                walk = walker.walk(order, self.params.tolerance)
                if walk is None:
                    return walks, False
                walks.append(walk)
                if walk.cut == 0:  # as every other one would be
                    return walks, True
            if self._settled(walks, walker):
                return walks, True
        return walks, False

    def _std_error(self, walks: list[Walk], walker: Walker) -> Floats:
        marginals = walk_marginals(walks, walker.values, shares_rest=self.shares_rest)
        error_n = led_std_error(marginals, [int(walk.order[0]) for walk in walks])
        if len(error_n) == 1:
            return error_n if self.shares_rest else known(walks, error_n)
        return known(walks, error_n, first=1)

    def _settled(self, walks: list[Walk], walker: Walker) -> bool:
        if self.params.target_std_error > 0:
            enough = max(len(walks), len(walker.values)) >= FIRST * len(walks[0].order)
            return enough and meets(self.params, self._std_error(walks, walker))
        marginals = walk_marginals(walks, walker.values, shares_rest=self.shares_rest)
        count = len(marginals)
        if count <= self.params.at_least or count <= self.params.last:
            return False
        means = np.cumsum(marginals, axis=0)[-self.params.last :]
        means /= np.arange(count - self.params.last + 1, count + 1)[:, None]
        change = np.abs(means - means[-1]) / (np.abs(means[-1]) + 1e-12)
        return bool(change.mean(axis=1).max() <= self.params.convergence)


class GtgCorrected(Gtg):
    """GTG-Shapley that zeroes no round and loses nothing to a cut."""

    shares_rest = True


def led_coefficients(walks: list[Walk], coalitions: int, *, shares_rest: bool) -> Floats:
    """The mean over leaders of the mean over their orders, as `walk_coefficients`; of all orders in the first cycle."""
    n = len(walks[0].order)
    led = [[walk for walk in walks if walk.order[0] == leader] for leader in range(n)]
    if not all(led):
        return walk_coefficients(walks, coalitions, shares_rest=shares_rest)
    each = [walk_coefficients(mine, coalitions, shares_rest=shares_rest) for mine in led]
    coefficients: Floats = np.sum(each, axis=0) / n
    return coefficients


def led_std_error(marginals: Floats, leaders: Sequence[int]) -> Floats:
    """Standard error of the mean over leaders of the means of their orders, [n].

    Who leads is fixed, so only the spread among the orders of one leader counts. It is pooled over leaders other than
    the player itself, which always joins nobody where it leads; nan until the second cycle is over, and below ENOUGH
    degrees of freedom, where a few equal orders would make it 0.
    """
    n = marginals.shape[1]
    if n == 1:
        return np.zeros(1)
    orders_n = np.bincount(leaders, minlength=n)
    others = ~np.eye(n, dtype=bool)
    degrees_n = others @ (orders_n - 1)
    if orders_n.min() < 2 or degrees_n.min() < ENOUGH:
        return np.full(n, np.nan)
    sums = np.zeros((n, n))  # leader, player
    np.add.at(sums, leaders, marginals)
    squares = np.zeros((n, n))
    np.add.at(squares, leaders, (marginals - (sums / orders_n[:, None])[list(leaders)]) ** 2)
    spread_n = (squares * others).sum(axis=0) / degrees_n
    error_n: Floats = np.sqrt(spread_n * (others @ (1 / orders_n))) / n
    return error_n
