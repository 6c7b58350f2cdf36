"""Attack by defence, over a sweep's seeds: how often attackers are flagged, and a heat map of what they gain.

It reads suspicions from the runs' metrics.csv; where a run has no defence, the cosine distance to the coordinate-wise
median stands for the rule's own. A row of a map is a grid point, a column a variant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from steelyard.report.contrasts import Estimate, estimate, holm, paired_t_test
from steelyard.report.flags import LEVEL, Flags, Rounds, flags
from steelyard.report.heat_map import Cell, Panel, heat_map
from steelyard.report.records import read_metrics
from steelyard.report.sweep_results import Results, estimate_of
from steelyard.report.sweep_rows import Row
from steelyard.report.sweep_table import block, p_text, shown
from steelyard.sweep import HONEST

Key = tuple[str, str]
HEADER = ("at", "variant", "threshold", "flagged, honest", "flagged, attacked", "difference", "p (greater)", "Holm")


def flagged(results: Results, out: Path) -> dict[Key, dict[int, Flags]]:
    """By grid point and attack, per seed: how often the attacker is flagged, the mean over several attackers.

    Every attack that the sweep plans is there, without a seed where its runs are not done.

    Args:
        results: a sweep's rows.
        out: the folder of run directories.

    Raises:
        UserError: a run's metrics are damaged.
    """
    found: dict[Key, dict[int, Flags]] = {key: {} for key in results.planned_attacks()}
    for point, variant, rows in results.groups(results.sweep.evaluator, attacks=True):
        honest = {row.seed: suspicions(out / row.honest_run) for row in rows}
        attacked = {row.seed: suspicions(out / row.run) for row in rows}
        clients = sorted({row.client for row in rows})
        found[point, variant] = _mean([flags(honest, attacked, client) for client in clients])
    return found


def suspicions(run: Path) -> Rounds:
    """Each round's suspicion by client."""
    return [row.suspicion or row.cosines for row in read_metrics(run)]


def flags_table(found: Mapping[Key, Mapping[int, Flags]]) -> str:
    """Flag rates as a Markdown table; "" without attacks."""
    cells = []
    tests = [paired_t_test([one.difference for one in by_seed.values()], "greater") for by_seed in found.values()]
    for ((point, variant), by_seed), p, adjusted in zip(found.items(), tests, holm(tests), strict=True):
        each = list(by_seed.values())
        if each:
            rates = [estimate([getattr(one, name) for one in each]) for name in ("honest", "attacked", "difference")]
            words = (*(shown(rate, 3) for rate in rates), p_text(p), p_text(adjusted))
            cells.append((point, variant, f"{each[0].threshold:.3f}", *words))
    title = (
        "Flags: the fraction of rounds in which the attacker is more suspicious than "
        f"{100 * LEVEL:.0f} % of all clients and rounds of the honest twins, by the rule's own suspicion; "
        "one-sided t-tests of the difference, Holm over what is planned"
    )
    return block(title, HEADER, cells)


def attack_by_defence(results: Results, found: Mapping[Key, Mapping[int, Flags]]) -> str:
    """The heat map: what each attack adds to its score under each evaluator, to the accuracy, and to its flags."""
    sweep = results.sweep
    keys = [(point, variant) for point, variant, _ in results.groups(sweep.evaluator, attacks=True)]
    panels = [
        Panel(
            title=evaluator,
            cells=_cells({key: results.contrast(*key, HONEST, evaluator).estimate for key in keys}, 3),
        )
        for evaluator in results.evaluators
    ]
    rows = {key: results.of(*key, sweep.evaluator) for key in keys}
    accuracy = {key: estimate_of(of, _accuracy_points) for key, of in rows.items()}
    rates = {key: estimate([one.difference for one in found.get(key, {}).values()]) for key in keys}
    panels += [
        Panel(title="accuracy, points", cells=_cells(accuracy, 2)),
        Panel(title="flagged, rate", cells=_cells(rates, 2)),
    ]
    seeds = len({row.seed for row in results.rows})
    title = (
        f"Attack by defence ({sweep.config.name}): attacked minus honest, means over up to {seeds} seeds; "
        "bold: the 95 % interval excludes 0"
    )
    rows_shown, columns = (list(dict.fromkeys(key[side] for key in keys)) for side in (0, 1))
    short = {point: point.removeprefix("defence=") for point in rows_shown}
    renamed = [
        Panel(title=panel.title, cells={(short[p], v): cell for (p, v), cell in panel.cells.items()})
        for panel in panels
    ]
    return heat_map(title, list(short.values()), columns, renamed)


def _accuracy_points(row: Row) -> float | None:
    return None if row.accuracy_difference is None else 100 * row.accuracy_difference


def _cells(values: Mapping[Key, Estimate | None], digits: int) -> dict[Key, Cell]:
    return {
        key: Cell(
            value=value.mean,
            words=f"{value.mean:+.{digits}f}",
            sure=value.n > 1 and not value.low <= 0 <= value.high,
        )
        for key, value in values.items()
        if value is not None
    }


def _mean(each: Sequence[Mapping[int, Flags]]) -> dict[int, Flags]:
    """Over several attackers, for the seeds that all of them have."""
    seeds = set.intersection(*(set(one) for one in each)) if each else set()
    return {
        seed: Flags(
            threshold=each[0][seed].threshold,
            honest=sum(one[seed].honest for one in each) / len(each),
            attacked=sum(one[seed].attacked for one in each) / len(each),
        )
        for seed in sorted(seeds)
    }
