"""How the calls of Shapley estimators grow with the number of players, on games that saturate. Torch-free.

Both games cover items of equal worth, so their Shapley values have a closed form: `own items`, 30 new items with every
player, 4 players on each; and `fixed size`, 300 items whatever the number of players, each covered by a tenth of them,
which some twenty players saturate.

Legend: n players.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.evaluators.base import Fold
from steelyard.scoring.games import FunctionGame, coverage_game

PLAYERS = (10, 20, 40, 80)
METHODS = ("layers", "regression", "adjusted", "antithetic")
GAMES: dict[str, tuple[Callable[[int], int], Callable[[int], float]]] = {  # items, and who covers each, by players
    "own items": (lambda n: 30 * n, lambda n: 4 / n),
    "fixed size": (lambda _: 300, lambda _: 0.1),
}
TARGET = 0.1
MOST = 4000


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The mean calls [a number of players each] that brought the relative error to TARGET; nan beyond MOST calls.

    The relative error is the root mean square over players and repetitions, over the root mean square of the values.
    """

    method: str
    game: str
    calls: tuple[float, ...]


def growth(repetitions: int, players: tuple[int, ...] = PLAYERS) -> Iterator[Growth]:
    """Every method on both games; budgets grow by a quarter, the repetitions' seeds are 0, 1, 2, ..."""
    for game, (items, fraction) in GAMES.items():
        for method in METHODS:
            calls = tuple(_calls_for(method, n, items(n), fraction(n), repetitions) for n in players)
            yield Growth(method=method, game=game, calls=calls)


def saturating(players: int, items: int, fraction: float) -> tuple[FunctionGame, Floats]:
    """Items of equal worth, each covered by about that fraction of the players, and the players' values [n]."""
    covers = np.random.default_rng(players).random((items, players)) < fraction
    covers[np.arange(items), np.arange(items) % players] = True
    return coverage_game(covers, [1 / items] * items)


def _calls_for(method: str, players: int, items: int, fraction: float, repetitions: int) -> float:
    """The calls that the first budget took whose relative error is within the target."""
    _, exact_n = saturating(players, items, fraction)
    budget = float(players)
    while (budget := 1.25 * budget) < MOST:
        table = {"name": "e", "kind": "shapley", "utility": "loss", "method": method, "calls": int(budget)}
        evaluator = make_evaluators([table])[0].evaluator
        assert not isinstance(evaluator, Fold), "a game has no rounds to fold"
        results = [
            evaluator.evaluate(saturating(players, items, fraction)[0], np.random.default_rng(seed))
            for seed in range(repetitions)
        ]
        errors = np.array([result.value - exact_n for result in results])
        if np.sqrt(np.mean(errors**2)) <= TARGET * np.sqrt(np.mean(exact_n**2)):
            return float(np.mean([result.calls for result in results]))
    return float("nan")
