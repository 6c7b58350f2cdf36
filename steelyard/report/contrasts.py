"""Statistics over paired seeds, as pure functions of numbers: intervals, tests, and what several tests together cost.

Every value is one seed's difference between two runs under the same seed. What the data cannot carry is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steelyard.report.measures import paired_interval

Direction = Literal["greater", "less", "two-sided"]
ROUNDING = 1e-9  # by which differences of equal rates may differ
MARGIN = 0.01
"""The accuracy that an attack may cost and still count as keeping utility: 1.0 point."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over n seeds and its two-sided 95 % Student's t interval; infinite for a single seed."""

    mean: float
    low: float
    high: float
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of one value per seed with its interval; None without any value."""
    if not values:
        return None
    mean, half = paired_interval(values)
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=len(values))


def paired_t_test(differences: Sequence[float], direction: Direction = "two-sided") -> float | None:
    """The p-value of Student's paired t-test that the mean difference is 0.

    Args:
        differences: one per seed.
        direction: the alternative: the mean is greater than 0, less, or either.

    Returns:
        None for fewer than two seeds. Where all differences are the same, which is how rates and places often fall and
        no proof that they always do, the sign test's: 2^-n for the direction that they have, twice that if two-sided;
        for 0, 1/2 (1 if two-sided).
    """
    from scipy import stats

    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    if abs(mean) > ROUNDING and max(differences) - min(differences) <= ROUNDING:
        alike = 0.5**n
        return 2 * alike if direction == "two-sided" else alike if (mean > 0) == (direction == "greater") else 1.0
    t = mean / error if error else 0.0
    if direction == "two-sided":
        return float(2 * stats.t.sf(abs(t), n - 1))
    return float(stats.t.sf(t if direction == "greater" else -t, n - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Holm 1979, Scand. J. Statist. 6): the family-wise error stays below the level.

    Args:
        p_values: one per test in any order; a None is a test not made yet and counts as one, so that the correction
            does not get stricter as a family fills.

    Returns:
        Adjusted p-values in the same order: the i-th smallest of m times m - i + 1, never below a smaller one's, and
        never above 1.
    """
    order = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for place, (p, at) in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - place) * p))
        adjusted[at] = floor
    return adjusted


def non_inferior(difference: Estimate) -> bool | None:
    """Whether a figure fell by less than MARGIN, by the lower end of its two-sided 95 % interval.

    That end is stricter than a one-sided 95 % bound (our choice). None for a single seed, which has no interval.
    """
    return None if difference.n < 2 else difference.low > -MARGIN


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """A gain in score beside the gain in what a client's presence did to the model, in the utility's own unit.

    `honest` and `attacked` are counterfactual contributions: the utility with the client minus the utility of the
    federation retrained without it. `manipulation` is the part of the score's gain that no such gain matches.
    """

    score_gain: float
    honest: float
    attacked: float

    @property
    def gain(self) -> float:
        """How much more the attacked client contributed than the honest one."""
        return self.attacked - self.honest

    @property
    def manipulation(self) -> float:
        """The remainder."""
        return self.score_gain - self.gain


def contribution(
    score_gain: float, utility: str, honest: float, attacked: float, without: float
) -> Contribution | None:
    """One seed's contribution figures.

    Args:
        score_gain: attacked minus honest total of the attackers.
        utility: "accuracy", or "loss", of which the utility is minus; None comes back for any other.
        honest: the test figure of the honest run.
        attacked: that of the attacked run.
        without: that of the run without the attackers.
    """
    sign = {"accuracy": 1.0, "loss": -1.0}.get(utility)
    if sign is None:
        return None
    return Contribution(score_gain=score_gain, honest=sign * (honest - without), attacked=sign * (attacked - without))
