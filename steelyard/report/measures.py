"""The measures of an attack, as pure functions of arrays. They read no file and know no run.

Shapes: `_N` one entry per client in client order, `_TN` rounds by clients. Our choices where the literature leaves one:
tied ranks are averaged, so that no client gains by its index; a measure that its data cannot carry is None, and the
reason stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EFFICIENT_KINDS = frozenset({"fedsv", "shapley", "multi_round", "one_round", "gtg_corrected", "least_core"})
"""Evaluators whose values add up to the utility gained, so that a value's share of the sum means something."""

UTILITY_KINDS = EFFICIENT_KINDS | frozenset(("loo", "tmc", "gtg", "banzhaf", "beta_shapley"))
"""Evaluators whose values are differences of utility, so that they compare with one; a cosine, for example, is none."""

MIN_SHARED_SUM = 0.05
MIN_SHARED_EXAMPLES = 10
WEIGHT_TOLERANCE = 1e-6  # relative: far above rounding, far below any clipping that matters


def ranks(totals_N: Floats) -> Floats:
    """Ranks of the clients, [N]: 1 is the highest value; ties share the mean of the ranks that they cover."""
    from scipy import stats  # slow to load, and a command that measures nothing need not wait for it

    return np.asarray(stats.rankdata(-totals_N, method="average"), dtype=np.float64)


def root_sum_of_squares(errors_TN: Floats) -> Floats:
    """Standard errors [N] of sums over rounds whose errors are independent, as samplings of coalitions are."""
    return np.asarray(np.sqrt(np.sum(errors_TN**2, axis=0)), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of a total, [N] in client order, or None and the reason why there are none."""

    values: tuple[float, ...] | None
    reason: str = ""


def shares(totals_N: Floats, *, kind: str, validation: int) -> Shares:
    """Each client's share of the sum of all values, where that means something.

    Args:
        totals_N: totals of a run, never of one round.
        kind: the evaluator's kind; only efficient ones have shares.
        validation: the number of validation examples: the sum must be worth more than ten of them, and 0.05.
    """
    if kind not in EFFICIENT_KINDS:
        return Shares(values=None, reason=f"the values of {kind} are not known to add up to the utility")
    floor = max(MIN_SHARED_SUM, MIN_SHARED_EXAMPLES / validation)
    total = float(np.sum(totals_N))
    if not total > floor:
        return Shares(values=None, reason=f"the values add up to {total:.4f}; shares need more than {floor:.4f}")
    return Shares(values=tuple(float(value) / total for value in totals_N))


@dataclass(frozen=True, kw_only=True)
class Structure:
    """How alike two attributions are.

    Kendall's tau-b and Spearman's rho compare the order (1: the same, None: fewer than two clients or all of them
    tied); `share_distance` is the L1 distance of the shares (0: the same, 2: disjoint).
    """

    kendall: float | None
    spearman: float | None
    share_distance: float | None
    reason: str = ""


def structure(honest_N: Floats, attacked_N: Floats, *, kind: str, validation: int) -> Structure:
    """Compare the totals of the same clients (the benign ones) without and with the attack."""
    from scipy import stats

    first = shares(honest_N, kind=kind, validation=validation)
    second = shares(attacked_N, kind=kind, validation=validation)
    distance = None
    if first.values is not None and second.values is not None:
        distance = math.fsum(abs(a - b) for a, b in zip(first.values, second.values, strict=True))
    ordered = len(honest_N) >= 2 and np.ptp(honest_N) > 0 and np.ptp(attacked_N) > 0
    return Structure(
        kendall=float(stats.kendalltau(honest_N, attacked_N).statistic) if ordered else None,
        spearman=float(stats.spearmanr(honest_N, attacked_N).statistic) if ordered else None,
        share_distance=distance,
        reason=first.reason or second.reason,
    )


def less_suspicious(suspicion: Mapping[int, float], client: int, benign: Collection[int]) -> float | None:
    """The fraction of the benign clients that look LESS suspicious than `client` in one round; ties count half.

    One half is a client that cannot be told from the benign, 1 the most suspicious of all. Values far below one half
    are a trace too: too close to the middle. None when the client or every benign one is absent.
    """
    others = [suspicion[other] for other in benign if other in suspicion and other != client]
    if client not in suspicion or not others:
        return None
    own = suspicion[client]
    return math.fsum(1.0 if other < own else 0.5 if other == own else 0.0 for other in others) / len(others)


def norm_suspicion(norms: Mapping[int, float]) -> dict[int, float]:
    """How far each client's update norm is from the median norm of the round."""
    median = float(np.median(list(norms.values()))) if norms else 0.0
    return {client: abs(norm - median) for client, norm in norms.items()}


def lightened(
    weights: Sequence[Mapping[int, float]],
    samples: Sequence[int],
    client: int,
    due: Sequence[Mapping[int, float]] = (),
) -> float | None:
    """The fraction of the client's rounds in which it weighed less in the aggregate than its samples say.

    That is what clipping, down-weighting and dropping have in common: its weight, as a part of all weights of the
    round, is below n_k / n over the same clients (below its due, where a rule weighs clients otherwise). Our choice.

    Args:
        weights: each round's weights by participating client.
        samples: n_k of every client.
        client: whose.
        due: each round's weights if nobody were suspected; an empty mapping, or none at all, means n_k / n.

    Returns:
        None when the client was in no round.
    """
    light = []
    dues: Sequence[Mapping[int, float]] = due or [{}] * len(weights)
    for round_, fair_round in zip(weights, dues, strict=True):
        if client in round_:
            fair_of = fair_round or {k: float(samples[k]) for k in round_}
            fair = fair_of[client] / math.fsum(fair_of[k] for k in round_) * math.fsum(round_.values())
            light.append(1.0 if round_[client] < fair * (1 - WEIGHT_TOLERANCE) else 0.0)
    return math.fsum(light) / len(light) if light else None


def mean_over_rounds(figures: Sequence[float | None]) -> float | None:
    """The mean of what the rounds gave; None when none gave anything."""
    given = [figure for figure in figures if figure is not None]
    return math.fsum(given) / len(given) if given else None


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's t 95 % interval of the mean of paired differences, one per seed.

    Returns:
        The mean and the interval's half width; the half width is infinite for a single pair.

    Raises:
        ValueError: there is no difference at all.
    """
    n = len(differences)
    if n == 0:
        raise ValueError("an interval needs at least one paired difference, got none")
    mean = math.fsum(differences) / n
    if n == 1:
        return mean, math.inf
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    from scipy import stats

    quantile: Any = stats.t.ppf(0.975, n - 1)
    return mean, float(quantile) * deviation / math.sqrt(n)
