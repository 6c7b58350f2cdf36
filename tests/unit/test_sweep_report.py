"""Rows, tables and figure of sweeps whose numbers a person can check: only summaries are read, so tests write those."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints
from xml.etree import ElementTree as ET

import pytest

from steelyard.config import ClientsConfig, ScoringConfig
from steelyard.errors import UserError
from steelyard.parsing import parse
from steelyard.report.origin import differences
from steelyard.report.sweep_files import intervals_figure, write_sweep
from steelyard.report.sweep_results import Results, contributions
from steelyard.report.sweep_rows import Row, read_rows, rows_as_csv
from steelyard.report.sweep_table import markdown
from steelyard.sweep import HONEST, Cell, Sweep, SweepConfig, resolve

BASE = {"name": "base", "clients": {"count": 3}, "attack": {"name": "latent"}}
TABLE: dict[str, Any] = {
    "name": "s",
    "base": "base.toml",
    "grid": {"seed": [7, 8, 9]},
    "variants": [{"name": "latent"}, {"name": "flip", "attack": {"name": "label_flip"}}],
    "primary": {"variant": "latent"},
    "contrasts": [{"variant": "latent", "against": "flip"}],
}
EVALUATORS = [
    {"name": "sv", "kind": "fedsv", "utility": "accuracy"},
    {"name": "leave", "kind": "loo", "utility": "loss"},
]
HONEST_TOTAL = 0.1
GAINS = {"latent": {7: 0.1, 8: 0.2, 9: 0.3}, "flip": {7: -0.1, 8: 0.0, 9: -0.2}}
ACCURACIES = {HONEST: 0.90, "latent": 0.91, "flip": 0.87, "without": 0.86}


def sweep_of(**changes: Any) -> Sweep:
    table = {key: value for key, value in {**TABLE, **changes}.items() if value is not None}
    return resolve(parse(SweepConfig, table, "s.toml"), BASE, "s.toml")


def totals(value: float) -> dict[str, Any]:
    everyone = [value, 0.2, 0.3]
    ranks = [float(1 + sum(other > own for other in everyone)) for own in everyone]
    return {"total": everyone, "rank": ranks, "shares": [v / sum(everyone) for v in everyone], "shares_reason": ""}


def summary_of(cell: Cell) -> dict[str, Any]:
    attacks = bool(cell.experiment.attack)
    honest = totals(HONEST_TOTAL)
    attacked = totals(HONEST_TOTAL + GAINS[cell.variant][cell.seed]) if attacks else None

    def pair(before: Any, after: Any) -> dict[str, Any]:
        both = {"attacked": after if attacks else None, "honest": before}
        return {**both, "difference": after - before} if attacks and isinstance(after, float) else both

    accuracy = ACCURACIES[cell.variant]
    cost = {"calls": {"sv": 24, "leave": 12}, "bytes_received": 1000, "bytes_sent": 500}
    structure = {"kendall": 1.0, "spearman": 1.0, "share_distance": 0.0} if attacks else None
    leave = {"kind": "loo", "attacked": attacked and {**attacked, "shares": None}, "honest": {**honest, "shares": None}}
    return {
        "data": {"samples": [10, 10, 20], "validation": 300, "test": 400},
        "evaluators": {
            "sv": {"kind": "fedsv", "attacked": attacked, "honest": honest, "structure": structure},
            "leave": {**leave, "structure": structure},
        },
        "utility": {
            "accuracy": pair(ACCURACIES[HONEST] if attacks else accuracy, accuracy),
            "loss": pair(0.4 if attacks else 1.3 - accuracy, 1.3 - accuracy),
        },
        "stealth": [{"client": 0, "norm": pair(0.5, 0.75), "cosine": pair(0.5, 0.5)}] if attacks else [],
        "cost": {"attacked": cost if attacks else None, "honest": cost},
    }


def write_run(out: Path, cell: Cell, status: str = "DONE", **manifest: Any) -> None:
    run = out / cell.run
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(
        json.dumps({"status": status, "experiment": {}, "revision": "1a2b", "seconds": 2.5, **manifest}),
        encoding="utf-8",
    )
    (run / "summary.json").write_text(json.dumps(summary_of(cell)), encoding="utf-8")
    header = "round,accuracy,loss,participants,missing,weights,suspicion,seconds,model_sha256\n"
    rows = "1,0.5,0.5,0 1 2,,0:0.25 1:0.25 2:0.5,,1.0,x\n2,0.5,0.5,0 1 2,,0:0.2 1:0.3 2:0.5,,1.0,x\n"
    (run / "metrics.csv").write_text(header + rows, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class WithAbsent(ClientsConfig):
    absent: tuple[int, ...] = (0,)


def with_control(sweep: Sweep) -> Sweep:
    """The sweep with the federation retrained without client 0, behind each seed's honest run."""
    config = sweep.config
    variants = (*config.variants, replace(config.variants[0], name="without"))
    controls = [
        replace(
            cell,
            variant="without",
            run=f"without-{cell.seed}",
            experiment=replace(cell.experiment, clients=WithAbsent(count=3)),
        )
        for cell in sweep.cells
        if cell.variant == HONEST
    ]
    return replace(sweep, config=replace(config, variants=variants), cells=(*sweep.cells, *controls))


@pytest.fixture
def sweep() -> Sweep:
    return sweep_of(set={"evaluators": EVALUATORS})


def results_of(sweep: Sweep, out: Path) -> Results:
    for cell in sweep.cells:
        write_run(out, cell)
    return Results(sweep, read_rows(sweep.cells, out))


def row_of(results: Results, variant: str, evaluator: str, seed: int) -> Row:
    (row,) = [row for row in results.of("", variant, evaluator) if row.seed == seed]
    return row


def line_of(text: str, *starts: str) -> list[str]:
    """The cells of the first table row that starts with these."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if tuple(cells[: len(starts)]) == starts:
            return cells
    raise AssertionError(f"no row starts with {starts}")


def test_a_row_pairs_a_run_with_its_twin(sweep: Sweep, tmp_path: Path) -> None:
    row = row_of(results_of(sweep, tmp_path), "latent", "sv", 8)
    assert (row.honest, row.attacked, row.difference) == pytest.approx((0.1, 0.3, 0.2))
    assert (row.rank_honest, row.rank_attacked, row.rank_displacement) == (3, 1, 2)
    assert (row.share_honest, row.share_attacked) == pytest.approx((1 / 6, 3 / 8))
    assert (row.accuracy_honest, row.accuracy_attacked) == (0.90, 0.91)
    assert (row.norm_difference, row.cosine_difference) == (0.25, 0.0)
    assert (row.seconds, row.calls, row.bytes) == (2.5, 24, 1500)
    # Due weights 1/4 1/4 1/2: in the second round client 0 had less, the others had not.
    assert (row.lightened_client, row.lightened_benign) == (0.5, 0.0)
    assert row.accuracy_without is None


def test_rows_are_tidy_csv(sweep: Sweep, tmp_path: Path) -> None:
    results = results_of(sweep, tmp_path)
    rows = list(csv.DictReader(rows_as_csv(results.rows).splitlines()))
    assert len(rows) == 3 * 2 * 2
    assert (rows[0]["variant"], rows[0]["attacks"], rows[0]["accuracy_without"]) == ("latent", "1", "")
    assert float(rows[0]["difference"]) == results.rows[0].difference


def test_the_primary_contrast_stands_first_and_uncorrected(sweep: Sweep, tmp_path: Path) -> None:
    # Gains .1 .2 .3: mean .2, deviation .1; t(0.975, 2) = 4.302653 / sqrt(3) makes +- .2484; t = 3.4641, p = .0371.
    text = markdown(results_of(sweep, tmp_path))
    first = text.index("latent minus honest, sv: +0.2000 [-0.0484, +0.4484], up in 3 of 3 seeds")
    assert "p = 0.0371 (one-sided, greater, uncorrected)" in text
    assert first < text.index("## Other contrasts")


def test_the_other_contrasts_are_corrected_together(sweep: Sweep, tmp_path: Path) -> None:
    results = results_of(sweep, tmp_path)
    family = results.family()
    # Gains of flip -.1 0 -.2; latent minus flip .2 .2 .5.
    assert [(each.variant, each.against) for each in family] == [("flip", HONEST), ("latent", "flip")]
    assert [each.estimate.mean for each in family if each.estimate] == pytest.approx([-0.1, 0.3])
    assert [each.up for each in family] == [0, 3]
    text = markdown(results)
    flip, against = line_of(text, "flip - honest"), line_of(text, "latent - flip")
    assert "Holm over these 2" in text
    # Both t values are sqrt(3) and 3 with 2 degrees of freedom: p = .2254 and .0955, times 1 and 2.
    assert flip[-2:] == ["0.2254", "0.2254"]
    assert against[-2:] == ["0.0955", "0.1909"]


def test_the_correction_counts_contrasts_that_are_still_to_come(sweep: Sweep, tmp_path: Path) -> None:
    for cell in sweep.runs:
        write_run(tmp_path, cell, "RUNNING" if cell.variant == "latent" else "DONE")
    results = Results(sweep, read_rows(sweep.cells, tmp_path))
    assert [(each.variant, each.p is None) for each in results.family()] == [("flip", False), ("latent", True)]
    assert line_of(markdown(results), "flip - honest")[-2:] == ["0.2254", "0.4508"]


def test_a_contrast_between_grid_points_pairs_their_seeds(tmp_path: Path) -> None:
    """Gains .1 .2 .3 at 0.1 and a half more at 0.3."""
    contrast = {"variant": "latent", "against": "latent", "against_at": {"data.alpha": 0.1}}
    grid = {"seed": [7, 8, 9], "data.alpha": [0.1, 0.3]}
    between = sweep_of(set={"evaluators": EVALUATORS}, grid=grid, contrasts=[contrast], primary=None)
    rows = results_of(between, tmp_path).rows
    moved = [replace(row, difference=row.difference + 0.5) if row.point["data.alpha"] == 0.3 else row for row in rows]
    results = Results(between, moved)
    assert [(each.point, each.variant, each.against, each.against_point) for each in results.family()][-1] == (
        "data.alpha=0.3",
        "latent",
        "latent",
        "data.alpha=0.1",
    )
    assert len(results.family()) == 5, "two attacks at two points, and no point against itself"
    line = line_of(markdown(results), "data.alpha=0.3", "latent - latent at data.alpha=0.1")
    assert line[2:5] == ["sv", "+0.5000 [+0.5000, +0.5000]", "3 of 3"]


def test_runs_that_were_not_made_alike_are_told(sweep: Sweep, tmp_path: Path) -> None:
    for cell in sweep.runs:
        older = {"revision": "3c4d", "versions": {"torch": "2.1"}} if (cell.variant, cell.seed) == (HONEST, 8) else {}
        elsewhere = {"processor": "another"} if cell.variant == "flip" else {}
        begun = {"versions": {"torch": "2.2"}, "processor": "one"}
        went_on = {"continued": [{**begun, "revision": "5e6f"}]} if (cell.variant, cell.seed) == ("latent", 9) else {}
        write_run(tmp_path, cell, **{**begun, **older, **elsewhere, **went_on})
    results = Results(sweep, read_rows(sweep.cells, tmp_path))
    text = markdown(results)
    assert "MIXED: revision, processor, torch, see below." in text
    told = text[text.index("## MIXED: not all runs were made alike") : text.index("## Primary")]
    assert line_of(told, "revision", "1a2b", "3c4d")[3:] == ["honest seed=8"]
    assert line_of(told, "revision", "1a2b", "1a2b, then 5e6f")[3:] == ["latent seed=9"]
    assert line_of(told, "processor", "one", "another")[3:] == ["flip seed=7, flip seed=8, flip seed=9"]
    assert line_of(told, "torch", "2.2", "2.1")[3:] == ["honest seed=8"]
    (row,) = csv.DictReader(rows_as_csv([row_of(results, "flip", "sv", 8)]).splitlines())
    assert row["made"] == "revision 1a2b; processor another; torch 2.2"
    assert row["honest_made"] == "revision 3c4d; processor one; torch 2.1"
    same = markdown(Results(sweep, [row for row in results.rows if row.seed == 7 and row.variant == "latent"]))
    assert "Source revision 1a2b." in same
    assert "MIXED" not in same


@pytest.mark.parametrize("path", get_args(get_type_hints(ScoringConfig)["path"]))
def test_other_compiled_filtering_is_told_of_runs_that_it_scored(sweep: Sweep, tmp_path: Path, path: str) -> None:
    for cell in sweep.runs:
        experiment, digest = {"scoring": {"path": path}}, "b" if cell.seed == 8 else "a"
        later = {"continued": [{"compiled": {"winograd-avx2.so": "c"}}]} if cell.seed == 9 else {}
        write_run(tmp_path, cell, experiment=experiment, compiled={"winograd-avx2.so": digest}, **later)
    text = markdown(Results(sweep, read_rows(sweep.cells, tmp_path)))
    assert ("MIXED: revision, compiled filtering, see below." in text) == ("winograd" in path)


def test_many_runs_that_were_made_otherwise_are_counted() -> None:
    (found,) = differences({str(n): {"torch": "2.1"} for n in range(8)}, {"torch": "2.2", "python": "3.12"})
    assert (found.what, found.usual, found.other, found.names) == ("torch", "2.2", "2.1", "0, 1, 2, 3, 4 and 3 more")


def test_runs_of_other_data_stand_in_no_table(sweep: Sweep, tmp_path: Path) -> None:
    for cell in sweep.runs:
        other = (cell.variant, cell.seed) in ((HONEST, 8), ("flip", 8))
        write_run(tmp_path, cell, data={"sha256": ("b" if other else "a") * 64})
    with pytest.raises(UserError) as raised:
        write_sweep(sweep, tmp_path)
    said = str(raised.value)
    first, other = (next(cell for cell in sweep.runs if cell.seed == seed) for seed in (7, 8))
    assert "digits: the same data behind runs that are compared expected, got SHA-256 aaaaaaaaaa of" in said
    assert f"aaaaaaaaaa of {first.title}, {tmp_path / first.run} and 6 more" in said
    assert f"bbbbbbbbbb of {other.title}, {tmp_path / other.run} and 1 more" in said


def test_only_seeds_that_both_have_are_paired(sweep: Sweep, tmp_path: Path) -> None:
    for cell in sweep.cells:
        write_run(tmp_path, cell, "RUNNING" if (cell.variant, cell.seed) == ("flip", 8) else "DONE")
    results = Results(sweep, read_rows(sweep.cells, tmp_path))
    found = results.contrast("", "latent", "flip", "sv").estimate
    assert found is not None
    assert (found.n, found.mean) == (2, pytest.approx(0.35))
    assert "5 of 6 variant runs done" in markdown(results)


def test_ratios_and_shares_only_where_they_mean_something(sweep: Sweep, tmp_path: Path) -> None:
    text = markdown(results_of(sweep, tmp_path))
    scores, leave = text.split("## Exploratory: leave")
    # The honest totals are .1 in every seed: the interval excludes 0, and .3 / .1 is 3.
    latent = line_of(scores[scores.index("## Scores") :], "latent")
    assert latent[4:6] == ["3.00", "0.167 -> 0.368 (n = 3)"]  # shares .2/.7, .3/.8 and .4/.9
    assert line_of(leave, "latent")[5] == "-"


def test_utility_is_judged_by_the_lower_end(sweep: Sweep, tmp_path: Path) -> None:
    text = markdown(results_of(sweep, tmp_path))
    utility = text[text.index("## Utility") :]
    assert line_of(utility, "latent")[1:4] == ["90.00 -> 91.00", "+1.00 [+1.00, +1.00]", "yes"]
    assert line_of(utility, "flip")[3] == "not shown"
    assert "300 validation and 400 test examples" in text


def test_a_table_says_how_many_validation_examples_judged(sweep: Sweep, tmp_path: Path) -> None:
    results = results_of(sweep, tmp_path)
    part = Results(sweep, [replace(row, judged_on=120) for row in results.rows])
    assert "120 of 300 validation and 400 test examples" in markdown(part)


def test_the_control_tells_worth_from_manipulation(sweep: Sweep, tmp_path: Path) -> None:
    results = results_of(with_control(sweep), tmp_path)
    each = contributions(results.of("", "latent", "sv"))
    # Accuracy .86 without, .90 with the honest client, .91 with the attacker; gains .1 .2 .3.
    assert [c.honest for c in each] == pytest.approx([0.04] * 3)
    assert [c.attacked for c in each] == pytest.approx([0.05] * 3)
    assert [c.manipulation for c in each] == pytest.approx([0.09, 0.19, 0.29])
    text = markdown(results)
    control = line_of(text[text.index("## Contribution control") :], "latent", "sv")
    assert control[2:4] == ["+0.2000 [-0.0484, +0.4484]", "+0.0400 [+0.0400, +0.0400]"]
    assert control[-1] == "+0.1900 [-0.0584, +0.4384]"
    # Loss falls as accuracy rises: the same worth in that unit.
    (first, *_) = contributions(results.of("", "latent", "leave"))
    assert (first.honest, first.attacked) == pytest.approx((0.04, 0.05))


def test_a_score_in_no_unit_of_utility_has_no_worth_to_compare_with(sweep: Sweep, tmp_path: Path) -> None:
    rows = results_of(with_control(sweep), tmp_path).of("", "latent", "sv")
    assert contributions([replace(row, kind="cosine") for row in rows]) == []
    assert contributions([]) == []


def test_the_control_itself_has_no_score(sweep: Sweep, tmp_path: Path) -> None:
    results = results_of(with_control(sweep), tmp_path)
    row = row_of(results, "without", "sv", 7)
    assert (row.absent, row.honest, row.attacked, row.difference) == ((0,), 0.1, None, None)
    assert row.accuracy_difference == pytest.approx(-0.04)
    text = markdown(results)
    assert line_of(text[text.index("## Utility") :], "without")[2] == "-4.00 [-4.00, -4.00]"
    assert "without" not in text[text.index("## Scores") : text.index("## Utility")]


def test_without_a_control_nothing_is_said_about_it(sweep: Sweep, tmp_path: Path) -> None:
    assert "Contribution control" not in markdown(results_of(sweep, tmp_path))


def test_the_figure_shows_every_interval_to_scale(sweep: Sweep, tmp_path: Path) -> None:
    root = ET.fromstring(intervals_figure(results_of(sweep, tmp_path)))  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    dots = [float(dot.get("cx", "")) for dot in root.iter(f"{space}circle")]
    bars = [line for line in root.iter(f"{space}line") if line.get("stroke-width")]
    spans = [(float(bar.get("x1", "")), float(bar.get("x2", ""))) for bar in bars]
    assert len(spans) == len(dots) == 2
    # Both half widths are .2484 (a deviation of .1 over three seeds), and the means .2 and -.1 lie .3 apart.
    scale = (dots[0] - dots[1]) / 0.3
    assert [(high - low) / 2 / scale for low, high in spans] == pytest.approx([0.2484, 0.2484], abs=2e-3)
    assert "latent" in [text.text for text in root.iter(f"{space}text")]


def test_a_sweep_of_which_the_control_alone_is_done_has_tables_and_a_bare_figure(sweep: Sweep, tmp_path: Path) -> None:
    whole = with_control(sweep)
    for cell in whole.cells:
        write_run(tmp_path, cell, "DONE" if cell.variant in (HONEST, "without") else "RUNNING")
    results = Results(whole, read_rows(whole.cells, tmp_path))
    assert "latent minus honest, sv: -, up in 0 of 0 seeds, paired t-test p = -" in markdown(results)
    root = ET.fromstring(intervals_figure(results))  # noqa: S314 - our own text
    assert not list(root.iter("{http://www.w3.org/2000/svg}circle"))


def test_files_are_written_from_finished_runs_alone(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finished runs of sweep s expected"):
        write_sweep(sweep, tmp_path)
    for cell in sweep.cells:
        write_run(tmp_path, cell)
    text = write_sweep(sweep, tmp_path)
    folder = tmp_path / "sweeps" / "s"
    assert sorted(path.name for path in folder.iterdir()) == ["heat.svg", "intervals.svg", "table.csv", "table.md"]
    assert (folder / "table.md").read_text(encoding="utf-8") == text
    (tmp_path / sweep.cells[0].run / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="finished run's manifest and summary expected"):
        write_sweep(sweep, tmp_path)
    (tmp_path / sweep.cells[0].run / "summary.json").unlink()
    with pytest.raises(UserError, match=r"a finished run's summary\.json expected, there is none; remove the run"):
        write_sweep(sweep, tmp_path)


def test_one_seed_has_no_interval(tmp_path: Path, sweep: Sweep) -> None:
    one = replace(sweep, cells=tuple(cell for cell in sweep.cells if cell.seed == 7))
    text = markdown(results_of(one, tmp_path))
    assert "latent minus honest, sv: +0.1000 [one seed], up in 1 of 1 seeds, paired t-test p = -" in text
    assert "1 paired seed (7)" in text
    assert "<svg" in intervals_figure(Results(one, read_rows(one.cells, tmp_path)))
