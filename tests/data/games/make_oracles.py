"""Writes into oracles.json what shapiq, pyDVL or svfl (PyPI) makes of games in this folder: one of them a call.

    python make_oracles.py shapiq|pydvl|svfl        where it is installed; pydvl 0.9.2 wants numpy below 2

Small games are the first 64 or 32 rows of a file, its first six or five players. svfl cuts marginals at 0 and counts
from 0, so its game is the largest utility of any part of a coalition, less that of the empty one: there nothing is cut.
"""

from __future__ import annotations

import csv
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
GAMES = ("rough", "smooth", "trained_round_accuracy", "trained_round_loss")
BETAS = ((16.0, 1.0), (4.0, 1.0), (1.0, 4.0))


def read(name: str) -> Any:
    """A game's utilities by coalition."""
    with (HERE / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return np.array([float(row["value"]) for row in csv.DictReader(file)])


class Indices:
    """What pyDVL asks of data: its indices."""

    def __init__(self, players: int) -> None:
        self.indices = self.data_names = np.arange(players)

    def __len__(self) -> int:
        return len(self.indices)


class Utility:
    """A table as a utility of pyDVL."""

    def __init__(self, table: Any) -> None:
        self._table, self.data = table, Indices(len(table).bit_length() - 1)

    def __call__(self, members: Any) -> float:
        return float(self._table[sum(1 << int(i) for i in members)])


def of_shapiq(table: Any) -> dict[str, list[float]]:
    """Shapley and Banzhaf values."""
    import shapiq
    from shapiq.game_theory.exact import ExactComputer

    places = 1 << np.arange(len(table).bit_length() - 1)

    class TableGame(shapiq.Game):
        def __init__(self) -> None:
            super().__init__(len(places), normalize=True, normalization_value=float(table[0]))

        def value_function(self, coalitions: Any) -> Any:
            return table[coalitions.astype(int) @ places]

    computer = ExactComputer(TableGame(), n_players=len(places))
    found = {}
    for name, index in (("shapley", "SV"), ("banzhaf", "BV")):
        values = computer(index, order=1)
        found[name] = [float(values[(i,)]) for i in range(len(places))]
    return found


def of_pydvl(table: Any) -> dict[str, list[float]]:
    """The same, Beta Shapley values, and the least core of least norm."""
    from pydvl.value import MinUpdates
    from pydvl.value.least_core import exact_least_core
    from pydvl.value.sampler import DeterministicUniformSampler
    from pydvl.value.semivalues import banzhaf_coefficient, beta_coefficient, compute_generic_semivalues
    from pydvl.value.shapley.naive import combinatorial_exact_shapley

    utility = Utility(table)

    def semivalue(coefficient: Any) -> list[float]:
        sampler = DeterministicUniformSampler(utility.data.indices)
        done = MinUpdates(len(table) // 2)
        result = compute_generic_semivalues(sampler, utility, coefficient, done, progress=False, skip_converged=False)
        return [float(value) for value in result.values]

    found = {"shapley": [float(v) for v in combinatorial_exact_shapley(utility, progress=False).values]}
    found["banzhaf"] = semivalue(banzhaf_coefficient)
    found |= {f"beta_shapley {a:g} {b:g}": semivalue(beta_coefficient(a, b)) for a, b in BETAS}
    shifted = Utility(table - table[0])
    found["least_core"] = [float(v) for v in exact_least_core(shifted, progress=False).values]
    return found


def of_svfl(table: Any) -> dict[str, list[float]]:
    """Shapley values of the monotone game."""
    from svfl.svfl import calculate_sv

    monotone = np.array([max(table[t] for t in range(s + 1) if t & s == t) for s in range(len(table))]) - table[0]
    models = {k: 1 << k for k in range(len(table).bit_length() - 1)}
    values = calculate_sv(models, lambda model: float(monotone[model]), lambda local: sum(local.values()))
    return {"monotone shapley": [float(values[k]) for k in models]}


ORACLES = {"shapiq": (of_shapiq, (64, 1024)), "pydvl": (of_pydvl, (64,)), "svfl": (of_svfl, (32,))}  # on how many rows


def main() -> int:
    """Compute and write."""
    warnings.filterwarnings("ignore")
    package, path = sys.argv[1], HERE / "oracles.json"
    oracle, sizes = ORACLES[package]
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    table[package] = {
        "versions": {name: version(name) for name in (package, "numpy", "scipy")} | {"python": sys.version.split()[0]},
        "results": {f"{name} {size}": oracle(read(name)[:size]) for name in GAMES for size in sizes},
    }
    path.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
