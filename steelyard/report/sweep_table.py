"""The tables of a sweep over its seeds, as Markdown that reads well as plain text too. It knows rows, no run.

Every difference is attacked minus honest under the same seed; intervals are two-sided 95 % Student's t over seeds. What
was chosen beforehand stands first and as it is, the declared contrasts are Holm-corrected, all else is exploratory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from steelyard.report.contrasts import MARGIN, Estimate, estimate, holm, non_inferior
from steelyard.report.origin import Difference, differences
from steelyard.report.sweep_results import Result, Results, by_seed, contributions, estimate_of, mean
from steelyard.report.sweep_rows import Row
from steelyard.sweep import HONEST

NOTHING = "-"


def markdown(results: Results) -> str:
    """All tables of a sweep."""
    sweep = results.sweep
    parts = [
        f"# Sweep {sweep.config.name}",
        _about(results, mixed := _mixed(results)),
        _made(mixed),
        _primary(results.primary()),
        _contrasts(results.family()),
        _scores(results, sweep.evaluator, f"Scores: {sweep.evaluator}, the attacker's raw total"),
        _utility(results),
        _stealth(results),
        _structure(results),
        _contribution(results),
        *[
            _scores(results, name, f"Exploratory: {name}, the attacker's raw total")
            for name in results.evaluators
            if name != sweep.evaluator
        ],
        _cost(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(results: Results, mixed: Sequence[Difference]) -> str:
    sweep, rows = results.sweep, results.rows
    seeds = {row.seed for row in rows}
    sizes = sorted({(row.judged_on, row.validation, row.test) for row in rows})
    examples = "; ".join(
        f"{_part(judged_on, all_)} validation and {test} test examples" for judged_on, all_, test in sizes
    )
    done = len({(row.key, row.variant) for row in rows})
    planned = sum(cell.variant != HONEST for cell in sweep.cells)
    paired = f"{len(seeds)} paired seed{'s' if len(seeds) > 1 else ''} ({_spans(sorted(seeds))})"
    what = ", ".join(dict.fromkeys(each.what for each in mixed))
    source = f"MIXED: {what}, see below" if mixed else f"Source revision {rows[0].made['revision']}"
    return (
        f"Base {sweep.config.base}, {paired}, {done} of {planned} variant runs done. {examples}. {source}.\n"
        "Differences are attacked minus honest under the same seed; brackets are two-sided 95 % intervals, Student's t "
        "over seeds."
    )


def _mixed(results: Results) -> list[Difference]:
    """Where runs in the tables were not made like the others."""
    made = {run: each for row in results.rows for run, each in ((row.run, row.made), (row.honest_run, row.honest_made))}
    return differences({cell.title: made[cell.run] for cell in results.sweep.runs if cell.run in made})


def _made(mixed: Sequence[Difference]) -> str:
    cells = [(each.what, each.usual, each.other, each.names) for each in mixed]
    return block("MIXED: not all runs were made alike", ("what", "most runs", "otherwise", "in"), cells)


def _part(judged_on: int, validation: int) -> str:
    return str(validation) if judged_on == validation else f"{judged_on} of {validation}"


def _spans(seeds: Sequence[int]) -> str:
    """Seeds as ranges: "0..4, 7"."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][-1] + 1:
            spans[-1][1:] = [seed]
        else:
            spans.append([seed])
    return ", ".join("..".join(map(str, span)) for span in spans)


def _primary(result: Result | None) -> str:
    if result is None:
        return "No primary contrast was declared."
    where = f" at {result.point}" if result.point else ""
    sided = "two-sided" if result.direction == "two-sided" else f"one-sided, {result.direction}"
    return (
        "## Primary contrast\n\n"
        f"{result.variant} minus {result.against}, {result.evaluator}{where}: {shown(result.estimate)}, "
        f"up in {_up(result)} seeds, paired t-test p = {p_text(result.p)} ({sided}, uncorrected)."
    )


def _contrasts(family: Sequence[Result]) -> str:
    adjusted = holm([result.p for result in family])
    cells = [
        (
            result.point,
            _difference(result),
            result.evaluator,
            shown(result.estimate),
            _up(result),
            p_text(result.p),
            p_text(corrected),
        )
        for result, corrected in zip(family, adjusted, strict=True)
    ]
    header = ("at", "contrast", "evaluator", "mean difference", "up", "p", "Holm p")
    return block(f"Other contrasts: paired t-tests, two-sided, Holm over these {len(cells)}", header, cells)


def _difference(result: Result) -> str:
    elsewhere = f" at {result.against_point}" if result.against_point != result.point else ""
    return f"{result.variant} - {result.against}{elsewhere}"


def _scores(results: Results, evaluator: str, title: str) -> str:
    cells = []
    for point, variant, rows in results.groups(evaluator):
        change = results.contrast(point, variant, HONEST, evaluator)
        if change.estimate is None:  # the control: who is absent has no score
            continue
        honest = estimate_of(rows, lambda row: row.honest, math.fsum)
        attacked = estimate_of(rows, lambda row: row.attacked, math.fsum)
        cells.append(
            (
                point,
                variant,
                f"{_mean(honest)} -> {_mean(attacked)}",
                shown(change.estimate),
                _up(change),
                _ratio(honest, attacked),
                _shares(rows),
                shown(estimate_of(rows, lambda row: row.rank_displacement), 2),
            )
        )
    header = ("at", "variant", "honest -> attacked", "difference", "up", "ratio", "share", "places gained")
    return block(title, header, cells)


def _utility(results: Results) -> str:
    cells = []
    for point, variant, rows in results.groups(results.sweep.evaluator):
        change = estimate_of(rows, lambda row: row.accuracy_difference)
        accuracies = (
            estimate_of(rows, lambda row: row.accuracy_honest),
            estimate_of(rows, lambda row: row.accuracy_attacked),
        )
        cells.append(
            (
                point,
                variant,
                " -> ".join(NOTHING if each is None else f"{100 * each.mean:.2f}" for each in accuracies),
                shown(change, 2, scale=100),
                NOTHING if change is None else _verdict(non_inferior(change)),
                shown(estimate_of(rows, lambda row: row.loss_difference)),
            )
        )
    header = ("at", "variant", "accuracy, %", "difference, points", "non-inferior", "loss difference")
    title = (
        f"Utility on the test set (non-inferior: the interval's lower end is above -{100 * MARGIN:.1f} point, which is "
        "stricter than a one-sided 95 % bound)"
    )
    return block(title, header, cells)


def _stealth(results: Results) -> str:
    cells = [
        (
            point,
            variant,
            *(
                shown(estimate_of(rows, figure), 3)
                for figure in (lambda row: row.norm_difference, lambda row: row.cosine_difference)
            ),
            *(
                _plain(estimate_of(rows, figure), 3)
                for figure in (lambda row: row.lightened_client, lambda row: row.lightened_benign)
            ),
        )
        for point, variant, rows in results.groups(results.sweep.evaluator, attacks=True)
    ]
    header = ("at", "variant", "by norm", "by cosine", "lightened: attacker", "benign")
    title = (
        "Stealth: change of the fraction of benign clients less suspicious than the attacker (the upper end counts), "
        "and the fraction of rounds with less than its due weight"
    )
    return block(title, header, cells)


def _structure(results: Results) -> str:
    cells = [
        (
            point,
            variant,
            *(
                _plain(estimate_of(rows, figure), 3)
                for figure in (lambda row: row.kendall, lambda row: row.spearman, lambda row: row.share_distance)
            ),
        )
        for point, variant, rows in results.groups(results.sweep.evaluator, attacks=True)
    ]
    header = ("at", "variant", "Kendall tau", "Spearman rho", "L1 of shares")
    return block("Structure among the benign, honest against attacked (means over seeds)", header, cells)


def _contribution(results: Results) -> str:
    cells = []
    for evaluator in results.evaluators:
        for point, variant, rows in results.groups(evaluator, attacks=True):
            each = contributions(rows)
            if each:
                figures = (
                    [c.score_gain for c in each],
                    [c.honest for c in each],
                    [c.attacked for c in each],
                    [c.gain for c in each],
                    [c.manipulation for c in each],
                )
                cells.append((point, variant, evaluator, *(shown(estimate(figure)) for figure in figures)))
    header = ("at", "variant", "evaluator", "score gain", "worth, honest", "worth, attacked", "worth gain", "remainder")
    title = (
        "Contribution control: worth is the test utility with the attacker minus that of the federation retrained "
        "without it; the remainder is the part of the score gain that no gain in worth matches"
    )
    return block(title, header, cells)


def _cost(results: Results) -> str:
    cells = [
        (
            point,
            variant,
            *(
                _plain(estimate_of(rows, figure), digits)
                for figure, digits in ((lambda row: row.seconds, 1), (lambda row: row.calls, 0))
            ),
            _plain(estimate_of(rows, lambda row: None if row.bytes is None else row.bytes / 1e6), 1),
        )
        for point, variant, rows in results.groups(results.sweep.evaluator)
    ]
    header = ("at", "variant", "seconds", "calls", "megabytes")
    return block(f"Cost of a run, means over seeds; calls of {results.sweep.evaluator}", header, cells)


def _shares(rows: Sequence[Row]) -> str:
    """Mean shares over the seeds where both runs have one, and how many those are."""
    both = [row for row in rows if row.share_honest is not None and row.share_attacked is not None]
    honest = by_seed(both, lambda row: row.share_honest, math.fsum)
    attacked = by_seed(both, lambda row: row.share_attacked, math.fsum)
    if not honest:
        return NOTHING
    return f"{mean(list(honest.values())):.3f} -> {mean(list(attacked.values())):.3f} (n = {len(honest)})"


def _ratio(honest: Estimate | None, attacked: Estimate | None) -> str:
    """The ratio of the means, where the honest interval excludes 0."""
    if honest is None or attacked is None or honest.n < 2 or honest.low <= 0 <= honest.high:
        return NOTHING
    return f"{attacked.mean / honest.mean:.2f}"


def shown(value: Estimate | None, digits: int = 4, *, scale: float = 1.0) -> str:
    """A difference with its interval: "+0.1000 [-0.0200, +0.2200]"."""
    if value is None:
        return NOTHING
    mean_ = f"{scale * value.mean:+.{digits}f}"
    if value.n < 2:
        return f"{mean_} [one seed]"
    return f"{mean_} [{scale * value.low:+.{digits}f}, {scale * value.high:+.{digits}f}]"


def _mean(value: Estimate | None) -> str:
    return NOTHING if value is None else f"{value.mean:+.4f}"


def _plain(value: Estimate | None, digits: int) -> str:
    return NOTHING if value is None else f"{value.mean:.{digits}f}"


def _up(result: Result) -> str:
    return f"{result.up} of {result.estimate.n if result.estimate else 0}"


def p_text(value: float | None) -> str:
    """A p-value as text; "-" for None."""
    return NOTHING if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _verdict(value: bool | None) -> str:  # noqa: FBT001 - a value to show, not a switch
    return NOTHING if value is None else "yes" if value else "not shown"


def block(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A titled Markdown table with even columns; "" without rows. The grid point's column is left out if empty."""
    if not cells:
        return ""
    table = [header, *cells]
    if not any(row[0] for row in cells):
        table = [row[1:] for row in table]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in table]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([f"## {title}", "", lines[0], rule, *lines[1:]])
