"""Evaluators side by side over runs whose numbers a person can add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.main import main
from steelyard.errors import UserError
from steelyard.report.comparison import compare, comparison_table
from steelyard.report.records import REPLAYED

HEADER = "round,client,evaluator,value,std_error,validation_std_error,calls,evaluated,converged,seconds\n"


def rows(evaluator: str, table: list[list[float]], error: str) -> str:
    return "".join(
        f"{t},{k},{evaluator},{value!r},{error},0.0,{8 * t},1,1,0.5\n"
        for t, row in enumerate(table, 1)
        for k, value in enumerate(row)
    )


def write_run(
    run: Path,
    seed: int,
    live: list[list[float]],
    added: list[list[float]],
    *,
    attack: bool,
    absent: tuple[int, ...] = (),
) -> Path:
    run.mkdir()
    named = {"name": "label_flip", "clients": [0]} if attack else None
    experiment = {"name": "tiny", "seed": seed, "attack": named, "clients": {"absent": list(absent)}}
    manifest = {"status": "DONE", "experiment": experiment}
    (run / "manifest.json").write_text(json.dumps(manifest))
    header = "round,accuracy,loss,participants,missing,weights,suspicion,seconds\n"
    (run / "metrics.csv").write_text(header + "".join(f"{t},0.5,0.5,,,,,1.0\n" for t in range(1, len(live) + 1)))
    (run / "events.jsonl").write_text("")
    (run / "scores.csv").write_text(HEADER + rows("live", live, "0.3"))
    (run / REPLAYED).write_text(HEADER + rows("added", added, "nan"))
    return run


def pair(folder: Path, seed: int, gain: float) -> Path:
    """Honest totals 1, 2, 3 of `live`, client 0's raised by `gain`; -1, 1 and 3 of `added`, client 0 at 1 attacked."""
    twin = write_run(folder / f"honest{seed}", seed, [[1, 2, 2], [0, 0, 1]], [[-1, 1, 3], [0, 0, 0]], attack=False)
    run = write_run(folder / f"run{seed}", seed, [[1, 2, 2], [gain, 0, 1]], [[1, 1, 2], [0, 0, 0]], attack=True)
    (run / "honest").symlink_to(twin)
    return run


def test_figures_by_hand(tmp_path: Path) -> None:
    runs = [pair(tmp_path, 0, 3.0), pair(tmp_path, 1, 1.5)]
    live, added = compare(runs)["tiny"]
    assert (live.evaluator, added.evaluator) == ("live", "added")
    assert live.calls == 12, "8 in the first round, 16 in the second"
    assert live.raw is not None
    assert live.raw.mean == pytest.approx(2.25)
    assert live.raw.low == pytest.approx(2.25 - 12.7062 * 0.75, abs=1e-3), "two seeds: t with one degree"
    assert live.scaled is not None
    assert live.scaled.mean == pytest.approx(2.25), "1, 2 and 3 have the standard deviation 1"
    assert live.std_error == pytest.approx((0.3**2 + 0.3**2) ** 0.5), "rounds are independent"
    assert live.validation_std_error == 0.0
    assert live.paid is not None
    assert live.paid.mean == pytest.approx(((4 / 9 + 2.5 / 7.5) / 2) - 1 / 6)
    assert live.places is not None
    assert live.places.mean == pytest.approx((2 + 1) / 2), "to the first place from the third, and to the second"
    assert live.up == 2
    assert added.paid is not None
    assert added.paid.mean == pytest.approx(1 / 4), "a negative total is paid nothing: 0 of 4, then 1 of 4"
    assert added.std_error is None, "an unknown error stays unknown"
    assert "| `added` | 2 | 12 | unknown, 0 | +2.000 [+2.000, +2.000] |" in comparison_table([live, added])


def test_the_command_prints_a_table_per_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(pair(tmp_path, 0, 3.0)), str(pair(tmp_path, 1, 1.0))]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny: attacked minus honest")
    assert "| `live` | 2 |" in said


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    table = comparison_table(compare([pair(tmp_path, 0, 3.0)])["tiny"])
    assert "| +3.000 [one seed] | +3.00 [one seed] |" in table, "of live"
    assert "inf" not in table


def test_mistakes_are_named(tmp_path: Path) -> None:
    run = pair(tmp_path, 0, 1.0)
    with pytest.raises(UserError, match="a run with attackers and an honest twin expected"):
        compare([tmp_path / "honest0"])
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match="one run per seed expected of tiny"):
        compare([run, pair(tmp_path / "again", 0, 2.0)])
    with pytest.raises(UserError, match="one run per seed expected of tiny"):
        compare([run, run])


def change(run: Path, section: str, value: object) -> None:
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["experiment"][section] = value
    file.write_text(json.dumps(manifest))


def test_runs_that_differ_in_more_than_the_seed_are_not_pooled(tmp_path: Path) -> None:
    runs = [pair(tmp_path, seed, 1.0) for seed in (0, 1)]
    live, other = {"name": "fedsv_loss", "kind": "fedsv", "utility": "loss"}, {"name": "loo", "kind": "loo"}
    change(runs[0], "evaluators", [live])
    change(runs[1], "evaluators", [other, live])
    change(runs[1], "scoring", {"workers": 2, "examples": 0})
    change(runs[1], "data", {"folder": "/elsewhere"})
    row = compare(runs)["tiny"][0]
    assert row.raw is not None
    assert row.raw.n == 2, "where the data lies, how many work, more evaluators, defaults spelled out: no difference"
    for section, value, key in (
        ("attack", {"name": "label_flip", "clients": [0], "to": 5}, "attack.to"),
        ("defence", {"name": "median"}, "defence"),
        ("evaluators", [{**live, "utility": "accuracy"}], "evaluator fedsv_loss"),
    ):
        before = json.loads((runs[1] / "manifest.json").read_text())["experiment"].get(section, {})
        change(runs[1], section, value)
        with pytest.raises(UserError, match=f"runs of tiny that differ in the seed alone .* differ in {key};"):
            compare(runs)
        change(runs[1], section, before)


def test_clients_that_are_left_out_have_no_rank_and_no_part_in_a_mean(tmp_path: Path) -> None:
    """Totals -0.1, 0.3, 0 (absent), 0.2, then 0.1 for client 0: the last of three both times."""
    before, after = [[-0.1, 0.3, 0.0, 0.2]], [[0.1, 0.3, 0.0, 0.2]]
    twin = write_run(tmp_path / "twin", 0, before, before, attack=False, absent=(2,))
    run = write_run(tmp_path / "run", 0, after, after, attack=True, absent=(2,))
    (run / "honest").symlink_to(twin)
    live = compare([run])["tiny"][0]
    assert live.places is not None
    assert live.places.mean == 0.0
    assert live.scaled is not None
    assert live.scaled.mean == pytest.approx(0.2 / float(np.std([-0.1, 0.3, 0.2], ddof=1)))


@pytest.mark.parametrize("place", [".", "honest"])
def test_a_run_that_goes_on_is_not_compared(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder := tmp_path / "my runs").mkdir()
    run = pair(folder, 0, 3.0)
    manifest = run / place / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"DONE"', '"FAILED"'))
    (run / place / "metrics.csv").unlink()
    assert main(["compare", str(run)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{run / place}: a finished run expected, its status is FAILED; go on with it: " in told.err
    assert told.err.endswith(f"steelyard run --resume '{(run / place).resolve()}'\n")
