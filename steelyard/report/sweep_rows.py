"""The runs of a sweep as tidy rows: one per grid point, seed, variant, evaluator and watched client.

It reads what each run's summary says and concludes nothing; only runs that are DONE give rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steelyard.config import Experiment
from steelyard.errors import UserError
from steelyard.report import measures
from steelyard.report.origin import Made, check_data, data_of, made
from steelyard.report.records import read_metrics
from steelyard.sweep import HONEST, Cell, absent, value_text

Table = Mapping[str, Any]
MADE, DATA, SECONDS = "made", "data_sha256", "seconds"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One client under one evaluator in one run, beside the honest run under the same seed.

    `attacked` is the variant's run, whether or not anybody attacks in it; differences are attacked minus honest, but
    `rank_displacement` counts places gained. What there is no number for is None. `without` figures are of the
    federation retrained without the attackers, under the same seed. Coalitions were judged on `judged_on` of the
    `validation` examples. `made` is what made the run, `data_sha256` that of the data set ("" if it was not noted).
    """

    point: dict[str, Any]
    seed: int
    variant: str
    evaluator: str
    kind: str
    utility: str
    client: int
    attacks: bool
    absent: tuple[int, ...]
    honest: float | None
    attacked: float | None
    difference: float | None
    rank_honest: float | None
    rank_attacked: float | None
    rank_displacement: float | None
    share_honest: float | None
    share_attacked: float | None
    share_reason: str
    kendall: float | None
    spearman: float | None
    share_distance: float | None
    accuracy_honest: float | None
    accuracy_attacked: float | None
    accuracy_difference: float | None
    loss_honest: float | None
    loss_attacked: float | None
    loss_difference: float | None
    norm_honest: float | None
    norm_attacked: float | None
    norm_difference: float | None
    cosine_honest: float | None
    cosine_attacked: float | None
    cosine_difference: float | None
    lightened_client: float | None
    lightened_benign: float | None
    accuracy_without: float | None
    loss_without: float | None
    validation: int
    judged_on: int
    test: int
    seconds: float | None
    calls: int | None
    bytes: int | None
    run: str
    honest_run: str
    data_sha256: str
    made: Made
    honest_made: Made

    @property
    def key(self) -> tuple[str, int]:
        """The grid point, as text, and the seed: what pairs rows of different variants."""
        return point_key(self.point), self.seed


def point_key(point: Table) -> str:
    """A grid point as text: "data.alpha=0.3"; "" where the grid has one point."""
    return " ".join(f"{key}={value_text(value)}" for key, value in point.items())


def read_rows(cells: Sequence[Cell], out: Path) -> list[Row]:
    """The rows of every variant's cell that is DONE.

    Args:
        cells: a sweep's cells.
        out: the folder of run directories.

    Raises:
        UserError: a run's files are damaged, or runs of one data set were made of different data.
    """
    read = {run: _summary(out / run) for run in dict.fromkeys(cell.run for cell in cells)}
    summaries = {run: summary for run, summary in read.items() if summary is not None}
    first = {cell.run: cell for cell in reversed(cells)}
    check_data(
        (first[run].experiment.data.dataset, summary[DATA], f"{first[run].title}, {out / run}")
        for run, summary in summaries.items()
    )
    controls = {
        (cell.honest, tuple(sorted(absent(cell.experiment)))): summaries[cell.run]  # same twin: else unchanged
        for cell in cells
        if cell.run in summaries and absent(cell.experiment) and not cell.experiment.attack
    }
    rows: list[Row] = []
    for cell in cells:
        if cell.variant != HONEST and cell.run in summaries and cell.honest in summaries:
            control = controls.get((cell.honest, tuple(sorted(cell.experiment.attackers))))
            rows += _rows(cell, summaries[cell.run], summaries[cell.honest], control, out)
    return rows


def rows_as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV text: a column per grid key, then the fields in order; empty where there is no number."""
    keys = list(rows[0].point) if rows else []
    names = [field.name for field in fields(Row) if field.name != "point"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, *names])
    for row in rows:
        values = asdict(row)
        values["absent"] = " ".join(map(str, row.absent))
        for key in ("made", "honest_made"):
            values[key] = "; ".join(f"{what} {value}" for what, value in values[key].items())
        writer.writerow([*(value_text(row.point[key]) for key in keys), *(_cell(values[name]) for name in names)])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else int(value) if isinstance(value, bool) else value


def _summary(run: Path) -> dict[str, Any] | None:
    """A run's summary if it is DONE, with what made it, of which data, and the seconds in which it really ran."""
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        if manifest["status"] != "DONE":
            return None
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        return {**summary, MADE: made(manifest), DATA: data_of(manifest), SECONDS: manifest.get("seconds")}
    except FileNotFoundError as error:
        if Path(error.filename).name == "summary.json":
            raise UserError(
                f"{run}: a finished run's summary.json expected, there is none; remove the run, to be made anew"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run}: a finished run's manifest and summary expected: {error}") from None


def _rows(cell: Cell, summary: Table, honest: Table, control: Table | None, out: Path) -> list[Row]:
    attacks = bool(cell.experiment.attack)
    after, before = "attacked" if attacks else HONEST, HONEST
    stealth = {entry["client"]: entry for entry in summary["stealth"]} if attacks else {}
    cost = summary["cost"][after] or {}
    lightened = _lightened(out / cell.run, summary, cell.watched) if attacks else {}
    utility: dict[str, Any] = {
        f"{figure}_{name}": value
        for figure in ("accuracy", "loss")
        for name, value in _pair(honest["utility"][figure][before], summary["utility"][figure][after]).items()
    }
    gone = absent(cell.experiment)
    utilities = _utilities(cell.experiment)
    return [
        Row(
            point=cell.point,
            seed=cell.seed,
            variant=cell.variant,
            evaluator=name,
            kind=results["kind"],
            utility=utilities[name],
            client=client,
            attacks=attacks,
            absent=gone,
            **_scores(honest["evaluators"][name][before], None if client in gone else results[after], client),
            **_structure(results["structure"]),
            **utility,
            **_suspicion(stealth.get(client)),
            **lightened.get(client, {"lightened_client": None, "lightened_benign": None}),
            accuracy_without=_without(control, "accuracy"),
            loss_without=_without(control, "loss"),
            validation=summary["data"]["validation"],
            judged_on=summary["data"].get("judged_on", summary["data"]["validation"]),
            test=summary["data"]["test"],
            seconds=summary[SECONDS],
            calls=cost["calls"][name] if cost else None,
            bytes=cost["bytes_received"] + cost["bytes_sent"] if cost else None,
            run=cell.run,
            honest_run=cell.honest,
            data_sha256=summary[DATA],
            made=summary[MADE],
            honest_made=honest[MADE],
        )
        for name, results in summary["evaluators"].items()
        for client in cell.watched
    ]


def _utilities(experiment: Experiment) -> dict[str, str]:
    return {str(table["name"]): str(table.get("utility", "")) for table in experiment.evaluators}


def _without(control: Table | None, figure: str) -> float | None:
    return None if control is None else control["utility"][figure][HONEST]


def _pair(honest: float | None, attacked: float | None) -> dict[str, Any]:
    difference = None if honest is None or attacked is None else attacked - honest
    return {"honest": honest, "attacked": attacked, "difference": difference}


def _scores(honest: Table | None, attacked: Table | None, client: int) -> dict[str, Any]:
    def of(totals: Table | None, key: str) -> float | None:
        return None if totals is None or totals[key] is None else totals[key][client]

    before, after = of(honest, "rank"), of(attacked, "rank")
    reasons = [totals["shares_reason"] for totals in (honest, attacked) if totals is not None]
    return {
        **_pair(of(honest, "total"), of(attacked, "total")),
        "rank_honest": before,
        "rank_attacked": after,
        "rank_displacement": None if before is None or after is None else before - after,
        "share_honest": of(honest, "shares"),
        "share_attacked": of(attacked, "shares"),
        "share_reason": next(filter(None, reasons), ""),
    }


def _structure(structure: Table | None) -> dict[str, Any]:
    return {key: structure[key] if structure else None for key in ("kendall", "spearman", "share_distance")}


def _suspicion(stealth: Table | None) -> dict[str, Any]:
    return {
        f"{figure}_{name}": stealth[figure].get(name) if stealth else None
        for figure in ("norm", "cosine")
        for name in ("honest", "attacked", "difference")
    }


def _lightened(run: Path, summary: Table, attackers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """How often each attacker weighed less than its samples say, and how often a benign client did."""
    samples, metrics = summary["data"]["samples"], read_metrics(run)
    weights, due = [row.weights for row in metrics], [row.due for row in metrics]
    often = [measures.lightened(weights, samples, client, due) for client in range(len(samples))]
    benign = measures.mean_over_rounds([often[k] for k in range(len(samples)) if k not in attackers])
    return {k: {"lightened_client": often[k], "lightened_benign": benign} for k in attackers}
