"""The files of a sweep, from its DONE runs: tidy rows, tables over the seeds, intervals and a heat map."""

from __future__ import annotations

from pathlib import Path

from steelyard.bundle import write_text
from steelyard.errors import UserError
from steelyard.report.figures import ATTACKER, BENIGN, Span, interval_figure
from steelyard.report.sweep_defences import attack_by_defence, flagged, flags_table
from steelyard.report.sweep_results import Results
from steelyard.report.sweep_rows import read_rows, rows_as_csv
from steelyard.report.sweep_table import markdown, shown
from steelyard.sweep import HONEST, Sweep

FILES = ("table.csv", "table.md", "intervals.svg", "heat.svg")


def write_sweep(sweep: Sweep, out: Path) -> str:
    """Write a sweep's files into OUT/sweeps/<name>/, each whole or not at all.

    Args:
        sweep: the sweep.
        out: the folder of run directories.

    Returns:
        The text of table.md.

    Raises:
        UserError: no variant's run is DONE, or a run's files are damaged.
    """
    rows = read_rows(sweep.cells, out)
    if not rows:
        raise UserError(f"finished runs of sweep {sweep.config.name} expected in {out}, there is none; run the sweep")
    folder = out / "sweeps" / sweep.config.name
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(sweep, rows)
    found = flagged(results, out)
    text = markdown(results) + "".join(f"\n{part}\n" for part in [flags_table(found)] if part)
    figures = (intervals_figure(results) + "\n", attack_by_defence(results, found) + "\n")
    for name, content in zip(FILES, (rows_as_csv(rows), text, *figures), strict=True):
        write_text(folder / name, content)
    return text


def intervals_figure(results: Results) -> str:
    """Every variant's mean difference to its honest twin with its interval; the primary contrast's variant in red."""
    evaluator = results.sweep.evaluator
    primary = results.primary()
    spans = []
    for point, variant, _ in results.groups(evaluator):
        change = results.contrast(point, variant, HONEST, evaluator).estimate
        if change is not None:
            first = primary is not None and (point, variant) == (primary.point, primary.variant)
            spans.append(
                Span(
                    label=f"{variant} {point}".strip(),
                    words=shown(change),
                    mean=change.mean,
                    low=change.low,
                    high=change.high,
                    colour=ATTACKER if first else BENIGN,
                )
            )
    unit = f"{evaluator}, raw total, attacked minus honest; mean and 95 % interval over {_seeds(results)} seeds"
    return interval_figure(f"What each variant adds to the attacker's score ({results.sweep.config.name})", unit, spans)


def _seeds(results: Results) -> int:
    return len({row.seed for row in results.rows})
