"""How often a rule would flag a client: suspicion above what honest runs show, as pure functions of suspicions.

The null distribution is that of honest runs: every client's suspicion in every round of them. Our choice: a client is
flagged in a round if its suspicion is above the null's 95th percentile, so an honest client is flagged once in twenty
rounds on average; one that is unlike the others all along, as shards differ, more often: an attacker is compared with
itself in its honest twin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
Rounds = Sequence[Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """One seed: the threshold, and the fractions of the client's rounds above it, honest and attacked."""

    threshold: float
    honest: float
    attacked: float

    @property
    def difference(self) -> float:
        """Attacked minus honest."""
        return self.attacked - self.honest


def threshold(honest: Sequence[Rounds], level: float = LEVEL) -> float | None:
    """The null's quantile over all clients, rounds and runs; None without any suspicion."""
    null = [suspicion for rounds in honest for round_ in rounds for suspicion in round_.values()]
    return float(np.quantile(null, level)) if null else None


def flag_rate(rounds: Rounds, client: int, above: float) -> float | None:
    """The fraction of the client's rounds in which it is more suspicious than that; None if it was in none."""
    flags = [1.0 if round_[client] > above else 0.0 for round_ in rounds if client in round_]
    return math.fsum(flags) / len(flags) if flags else None


def flags(honest: Mapping[int, Rounds], attacked: Mapping[int, Rounds], client: int) -> dict[int, Flags]:
    """Per seed that has both runs, how often the client is flagged in each.

    Args:
        honest: the honest runs' suspicions by seed; together they are the null distribution.
        attacked: the attacked runs' by seed.
        client: the attacker.
    """
    above = threshold(list(honest.values()))
    found: dict[int, Flags] = {}
    for seed in sorted(honest.keys() & attacked.keys()):
        if above is not None:
            rates = flag_rate(honest[seed], client, above), flag_rate(attacked[seed], client, above)
            if rates[0] is not None and rates[1] is not None:
                found[seed] = Flags(threshold=above, honest=rates[0], attacked=rates[1])
    return found
