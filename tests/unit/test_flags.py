"""Flag rates against a null of honest runs, and the heat map that shows them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from steelyard.aggregation.base import Verdict
from steelyard.report.flags import Flags, flag_rate, flags, threshold
from steelyard.report.heat_map import Cell, Panel, colour, heat_map
from steelyard.report.judged import judged_rows
from steelyard.report.records import read_metrics
from steelyard.report.suspicion import told
from steelyard.report.sweep_defences import flags_table
from steelyard.sweep import value_text


def test_the_threshold_is_the_nulls_quantile_over_clients_rounds_and_runs() -> None:
    runs = [[{0: 1.0, 1: 2.0}, {0: 3.0}], [{0: 4.0, 1: 5.0}]]
    assert threshold(runs, 0.5) == 3.0
    assert threshold(runs, 1.0) == 5.0
    assert threshold([[{}]]) is None


def test_an_attacker_is_compared_with_itself_in_the_honest_twin() -> None:
    honest = {7: [{0: 9.0, 1: 0.0}, {0: 0.0, 1: 0.0}] * 10, 8: [{0: 0.0, 1: 0.0}] * 20}
    attacked = {7: [{0: 10.0, 1: 0.0}, {0: 0.0}] * 10, 8: [{0: 20.0}, {0: 0.0}, {1: 99.0}, {0: 0.0}]}
    found = flags(honest, attacked, 0)
    assert found[7].threshold == found[8].threshold == pytest.approx(np.quantile([9.0] * 10 + [0.0] * 70, 0.95))
    assert (found[8].honest, found[8].attacked) == (0.0, pytest.approx(1 / 3))
    assert found[8].difference == pytest.approx(1 / 3)
    assert flags(honest, {}, 0) == {}
    assert flag_rate([{1: 1.0}], 0, 0.0) is None


def test_flag_rates_are_tested_one_sided_and_holm_corrected_over_what_is_planned() -> None:
    """Differences .1, .2 and .3: t = .2 / (.1 / sqrt 3), p = 0.0371 with two degrees; never flagged is p = 1/2.

    The third is planned and not run: no row, but it counts.
    """
    seen = {seed: Flags(threshold=1.0, honest=0.0, attacked=0.1 * (seed + 1)) for seed in range(3)}
    never = {seed: Flags(threshold=1.0, honest=0.0, attacked=0.0) for seed in range(3)}
    found = {("krum", "latent"): seen, ("median", "latent"): never, ("mean", "latent"): {}}
    lines = flags_table(found).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "latent" in line]
    assert [row[-2:] for row in cells] == [["0.0371", "0.1113"], ["0.5000", "1.0000"]]


def test_a_defence_adds_dues_and_suspicions_to_the_metrics(tmp_path: Path) -> None:
    verdict = Verdict(weights_n=np.array([0.5, 0.0]), suspicion_n=np.array([0.25, 4.0]), due_n=np.array([0.75, 0.25]))
    figures = (np.array([1.0, 2.0]), np.array([0.1, 0.2]))
    cells = told([0, 3], [30, 10], verdict, figures)
    assert cells == ("0:0.5:0.75 3:0.0:0.25", "0:1.0:0.1:0.25 3:2.0:0.2:4.0")
    plain = told([0, 3], [30, 10], None, figures)
    assert plain == ("0:0.75 3:0.25", "0:1.0:0.1 3:2.0:0.2")
    header = "round,accuracy,loss,participants,missing,weights,suspicion,seconds,model_sha256\n"
    lines = [f"{i},0.5,0.5,0 3,,{','.join(pair)},1.0,x\n" for i, pair in enumerate((cells, plain), 1)]
    (tmp_path / "metrics.csv").write_text(header + "".join(lines), encoding="utf-8")
    first, second = read_metrics(tmp_path)
    assert (first.due, first.suspicion, first.cosines) == ({0: 0.75, 3: 0.25}, {0: 0.25, 3: 4.0}, {0: 0.1, 3: 0.2})
    assert (second.weights, second.due, second.suspicion) == ({0: 0.75, 3: 0.25}, {}, {})


def test_judged_rows_name_clients() -> None:
    verdict = Verdict(weights_n=np.array([1.0]), suspicion_n=np.array([2.0]), due_n=np.array([1.0]))
    assert judged_rows("krum", 4, [5], verdict) == [
        {"defence": "krum", "round": 4, "client": 5, "weight": 1.0, "due": 1.0, "suspicion": 2.0}
    ]
    assert judged_rows("krum", 4, [], None) == []


def test_grid_points_are_called_by_name_and_parameters() -> None:
    assert value_text({"name": "krum", "f": 2}) == "krum(f=2)"
    assert value_text({"name": "mean", "pre": [{"name": "nnm", "f": 2}, "bucketing"]}) == "mean(pre=nnm(f=2)+bucketing)"
    assert value_text(0.3) == "0.3"


def test_the_heat_map_colours_by_sign_and_size_and_escapes_words() -> None:
    assert (colour(0.0, 1.0), colour(1.0, 1.0), colour(-2.0, 1.0)) == ("#ffffff", "#d06455", "#658eb8")
    cells = {("krum<2>", "latent"): Cell(value=0.2, words="+0.200", sure=True)}
    text = heat_map("a < b", ["krum<2>", "median"], ["latent"], [Panel(title="score", cells=cells)])
    root = ET.fromstring(text)  # noqa: S314 - our own text
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"krum<2>", "median", "+0.200", "a < b"} <= set(words)
    fills = [element.get("fill") for element in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert fills == ["#ffffff", colour(0.2, 0.2), "#f2f4f6"], "page, the cell, the missing one in grey"
