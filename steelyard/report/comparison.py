"""Evaluators side by side over recorded runs: what each costs, how sure it is, and how far an attack inflates it.

Reads run directories and their honest twins, the live scores and those that `steelyard replay --evaluator` added.

Choices where the literature leaves one: the spread of an evaluator is the standard deviation over clients of the honest
run's totals, so that evaluators of different units compare; the paid share is max(total, 0) over its sum over clients,
what a client would get of money that is split by positive values (it exists for every evaluator, efficient or not).
With several attackers totals and paid shares are summed over them and ranks averaged. Clients that the experiment
leaves out have no rank and no part in any mean.

Legend: N clients, S runs, one per seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from steelyard.config import Experiment
from steelyard.errors import UserError
from steelyard.parsing import differing, parse
from steelyard.report.contrasts import Estimate, estimate
from steelyard.report.measures import Floats, ranks, root_sum_of_squares
from steelyard.report.records import REPLAYED, Records, Scores, read_records, read_scores
from steelyard.report.sweep_table import shown


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One evaluator in one pair of runs.

    Attributes:
        calls: coalitions a round, mean over both runs' rounds.
        spread: the standard deviation over clients of the honest totals.
        std_error, validation_std_error: of a client's total in the attacked run, mean over clients; nan where unknown.
        raw: attacked minus honest total.
        paid: the same of the paid share; None where nobody's total is positive in one of the runs.
        places: ranks gained.
    """

    calls: float
    spread: float
    std_error: float
    validation_std_error: float
    raw: float
    paid: float | None
    places: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One evaluator over the seeds; errors and `scaled` inflation are parts of the spread (None: unknown)."""

    evaluator: str
    calls: float
    std_error: float | None
    validation_std_error: float | None
    raw: Estimate | None
    scaled: Estimate | None
    paid: Estimate | None
    places: Estimate | None
    up: int


def compare(runs: Sequence[Path]) -> dict[str, list[Comparison]]:
    """Compare evaluators over runs, by experiment name; evaluators in the order of the files.

    Raises:
        UserError: a run has no attackers or no twin; two runs of one name have one seed, or differ in more than it.
    """
    found: dict[str, dict[str, list[Sample]]] = {}
    seeds: dict[tuple[str, int], Path] = {}
    first: dict[str, tuple[Path, Experiment]] = {}
    for run in runs:
        attacked = _records(run)
        experiment = attacked.manifest["experiment"]
        attack = experiment["attack"] or {}
        attackers = [int(client) for client in attack.get("clients", [0])] if attack else []
        if not attackers or not (run / "honest").exists():
            raise UserError(f"{run}: a run with attackers and an honest twin expected (compare_honest = true)")
        name, seed = str(experiment["name"]), int(experiment["seed"])
        if (name, seed) in seeds:
            raise UserError(
                f"one run per seed expected of {name}, got {seeds[name, seed]} and {run}, both of seed {seed}"
            )
        seeds[name, seed] = run
        resolved = parse(Experiment, experiment, f"{run / 'manifest.json'}, experiment")
        other, base = first.setdefault(name, (run, resolved))
        if (key := _difference(base, resolved)) is not None:
            raise UserError(
                f"runs of {name} that differ in the seed alone expected: {other} and {run} differ in {key}; "
                "compare them by two commands"
            )
        absent = set(experiment["clients"].get("absent", ()))
        honest = _records(run / "honest")
        for evaluator in attacked.scores:
            if evaluator in honest.scores:
                sample = _sample(attacked.scores[evaluator], honest.scores[evaluator], attackers, absent)
                found.setdefault(name, {}).setdefault(evaluator, []).append(sample)
    return {
        name: [_over_seeds(evaluator, samples) for evaluator, samples in evaluators.items()]
        for name, evaluators in found.items()
    }


def _difference(one: Experiment, other: Experiment) -> str | None:
    """What makes two experiments give different results, the seed aside; None if nothing does.

    Of the evaluators those of one name are compared, since runs may have had more added to them.
    """
    a, b = ({**each.deciding(), "seed": 0} for each in (one, other))
    theirs, ours = ({table["name"]: table for table in each.pop("evaluators")} for each in (a, b))
    found = [f"evaluator {name}" for name in theirs if name in ours and theirs[name] != ours[name]]
    found += differing(a, b)
    return found[0] if found else None


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown: a row per evaluator."""
    header = (
        "evaluator",
        "seeds",
        "calls a round",
        "error: sampling, validation (% of spread)",
        "raw change",
        "in spreads",
        "paid share, points",
        "places up",
        "seeds up",
    )
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in comparisons:
        cells = (
            f"`{row.evaluator}`",
            "-" if row.raw is None else str(row.raw.n),
            f"{row.calls:.0f}",
            f"{_percent(row.std_error)}, {_percent(row.validation_std_error)}",
            shown(row.raw, 3),
            _of(row, row.scaled, 2),
            _of(row, row.paid, 1, scale=100),
            shown(row.places, 1),
            f"{row.up}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _of(row: Comparison, estimate: Estimate | None, digits: int, scale: float = 1.0) -> str:
    """An estimate, and of how many seeds where some have no such figure."""
    seeds = "" if row.raw is None or estimate is None or estimate.n == row.raw.n else f" (n={estimate.n})"
    return shown(estimate, digits, scale=scale) + seeds


def paid_shares(total_N: Floats) -> Floats | None:
    """Each client's part of the positive totals, [N]; None where no total is positive."""
    positive_N: Floats = np.maximum(total_N, 0.0)
    whole = math.fsum(positive_N)
    return positive_N / whole if whole > 0 else None


def _records(run: Path) -> Records:
    """A run's records, replayed scores beside the live ones."""
    records = read_records(run)
    path = run / REPLAYED
    return replace(records, scores=records.scores | read_scores(path)) if path.exists() else records


def _sample(attacked: Scores, honest: Scores, attackers: list[int], absent: AbstractSet[int]) -> Sample:
    after_N, before_N = np.sum(attacked.value, axis=0), np.sum(honest.value, axis=0)
    if after_N.shape != before_N.shape:
        raise UserError(f"a twin with as many clients expected, got {len(before_N)} for {len(after_N)}")
    paid = (paid_shares(after_N), paid_shares(before_N))
    here = np.array([k for k in range(len(before_N)) if k not in absent])
    places_N = np.zeros(len(before_N))
    places_N[here] = ranks(before_N[here]) - ranks(after_N[here])
    return Sample(
        calls=float(np.concatenate([attacked.calls, honest.calls]).mean()),
        spread=float(before_N[here].std(ddof=1)),
        std_error=float(root_sum_of_squares(attacked.std_error)[here].mean()),
        validation_std_error=float(attacked.total_validation_std_error[-1][here].mean()),
        raw=float((after_N - before_N)[attackers].sum()),
        paid=None if paid[0] is None or paid[1] is None else float((paid[0] - paid[1])[attackers].sum()),
        places=float(places_N[attackers].mean()),
    )


def _over_seeds(evaluator: str, samples: Sequence[Sample]) -> Comparison:
    spread = math.fsum(sample.spread for sample in samples) / len(samples)

    def part(figures: Sequence[float]) -> float | None:
        mean = math.fsum(figures) / len(figures)
        return mean / spread if spread > 0 and math.isfinite(mean) else None

    return Comparison(
        evaluator=evaluator,
        calls=math.fsum(sample.calls for sample in samples) / len(samples),
        std_error=part([sample.std_error for sample in samples]),
        validation_std_error=part([sample.validation_std_error for sample in samples]),
        raw=estimate([sample.raw for sample in samples]),
        scaled=estimate([sample.raw / sample.spread for sample in samples if sample.spread > 0]),
        paid=estimate([sample.paid for sample in samples if sample.paid is not None]),
        places=estimate([sample.places for sample in samples]),
        up=sum(sample.raw > 0 for sample in samples),
    )


def _percent(part: float | None) -> str:
    return "unknown" if part is None else "0" if part == 0 else f"{100 * part:.1f}"
