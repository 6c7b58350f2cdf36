"""Summary, table and page of tiny run directories whose numbers a person can add up."""

import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from rich.console import Console

from steelyard.bundle import write_arrays
from steelyard.errors import UserError
from steelyard.report.figures import ticks
from steelyard.report.html import cumulative_figure, page, values_figure, write_picture, write_report
from steelyard.report.summary import headline, summarize, write_summary
from steelyard.report.table import print_summary

# Two rounds, three clients; client 0 is the one that attacks in ATTACKED.
HONEST = {"sv": [[0.1, 0.2, 0.3], [0.0, 0.1, 0.1]], "leave": [[0.01, 0.02, 0.0], [0.0, 0.0, 0.0]]}
ATTACKED = {"sv": [[0.3, 0.2, 0.1], [0.2, 0.0, 0.1]], "leave": [[0.02, 0.02, 0.0], [0.02, 0.0, 0.0]]}
ATTACK = {"name": "latent", "clients": [0], "knowledge": "own"}


def write_run(
    run: Path, values: dict[str, list[list[float]]], *, accuracy: tuple[float, float], norm: float, attack: Any = None
) -> Path:
    run.mkdir()
    manifest = {
        "experiment": {
            "name": "tiny",
            "seed": 3,
            "rounds": 2,
            "data": {"dataset": "digits", "partition": "labels"},
            "model": {"name": "linear"},
            "attack": attack or {},
            "evaluators": [{"name": "sv", "kind": "fedsv"}, {"name": "leave", "kind": "loo"}],
        },
        "data": {"coverage": [[5, 0], [3, 4], [0, 9]], "samples": [5, 7, 9], "validation": 100, "test": 50},
        "status": "DONE",
    }
    (run / "manifest.json").write_text(json.dumps(manifest))
    header = "round,client,evaluator,value,std_error,validation_std_error,calls,evaluated,seconds\n"
    rows = [
        f"{t},{k},{name},{value!r},{0.03 if t == 1 else 0.04},0.0,{8 if name == 'sv' else 4},1,0.5\n"
        for name, table in values.items()
        for t, row in enumerate(table, 1)
        for k, value in enumerate(row)
    ]
    (run / "scores.csv").write_text(header + "".join(rows))
    metrics = [
        f"{t},{a},{1 - a},0 1 2,,0:0.2 1:0.3 2:0.5,0:{norm}:0.5 1:1.0:0.1 2:2.0:0.7,1.5,abc\n"
        for t, a in enumerate(accuracy, 1)
    ]
    columns = "round,accuracy,loss,participants,missing,weights,suspicion,seconds,model_sha256\n"
    (run / "metrics.csv").write_text(columns + "".join(metrics))
    events = [
        {"time": 100.0, "event": "server_started"},
        {"time": 101.0, "event": "fetched", "bytes": 40},
        {"time": 102.0, "event": "received", "bytes": 1000, "seconds": 0.1},
        {"time": 103.0, "event": "received", "bytes": 500, "seconds": 0.1},
        {"time": 107.5, "event": "finished"},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    return write_run(tmp_path / "honest", HONEST, accuracy=(0.5, 0.75), norm=1.5)


@pytest.fixture
def attacked(tmp_path: Path) -> Path:
    return write_run(tmp_path / "attacked", ATTACKED, accuracy=(0.5, 0.875), norm=9.0, attack=ATTACK)


@pytest.fixture
def summary(attacked: Path, honest: Path) -> dict[str, Any]:
    return summarize(attacked, honest, (0,), boundary="separate processes of one user")


def test_totals_ranks_and_inflation(summary: dict[str, Any]) -> None:
    results = summary["evaluators"]["sv"]
    assert results["honest"]["total"] == pytest.approx([0.1, 0.3, 0.4])
    assert results["attacked"]["total"] == pytest.approx([0.5, 0.2, 0.2])
    assert results["change"] == pytest.approx([0.4, -0.1, -0.2])
    assert results["honest"]["rank"] == [3, 2, 1]
    assert results["attacked"]["rank"][0] == 1
    assert results["rank_displacement"][0] == 2
    assert results["honest"]["cumulative"][1] == pytest.approx([0.1, 0.3, 0.4])
    assert results["honest"]["std_error"] == pytest.approx([0.05] * 3)  # 0.03 and 0.04
    (inflation,) = results["inflation"]
    assert (inflation["client"], inflation["raw"]) == (0, pytest.approx(0.4))
    assert inflation["std_error"] == pytest.approx(0.05 * 2**0.5)
    assert inflation["validation_std_error"] == 0.0


def test_an_absent_client_has_no_rank_and_is_no_benign_one(tmp_path: Path) -> None:
    values = {"sv": [[0.3, 0.0, -0.1], [0.2, 0.0, 0.0]], "leave": [[0.1, 0.0, -0.1], [0.1, 0.0, 0.0]]}
    runs = [write_run(tmp_path / name, values, accuracy=(0.5, 0.5), norm=1.5) for name in ("one", "other")]
    for run in runs:
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["experiment"]["clients"] = {"count": 3, "absent": [1]}
        (run / "manifest.json").write_text(json.dumps(manifest))
    summary = summarize(runs[0], runs[1], (0,))
    results = summary["evaluators"]["sv"]
    assert results["attacked"]["rank"] == [1, None, 2]
    assert results["rank_displacement"] == [0, None, 0]
    assert results["structure"]["kendall"] is None, "one benign client has no order"
    assert "stayed at rank 1 of 2." in headline(summary, "sv")[0]
    said = io.StringIO()
    print_summary(summary, Console(file=said, width=120))
    assert "1 (absent)" in said.getvalue()
    assert "1 (absent)" in page(runs[0], summary)


def test_shares_and_structure_where_they_mean_something(summary: dict[str, Any]) -> None:
    sv, leave = summary["evaluators"]["sv"], summary["evaluators"]["leave"]
    assert sv["honest"]["shares"] == pytest.approx([0.125, 0.375, 0.5])
    assert leave["honest"]["shares"] is None
    assert "are not known to add up" in leave["honest"]["shares_reason"]
    # Benign 1 and 2: honest shares 3/7 and 4/7, attacked 1/2 and 1/2.
    assert sv["structure"]["share_distance"] == pytest.approx(1 / 7)
    assert leave["structure"]["kendall"] == 1.0


def test_utility_stealth_and_cost(summary: dict[str, Any]) -> None:
    assert summary["utility"]["accuracy"] == {"attacked": 0.875, "honest": 0.75, "difference": 0.125}
    (stealth,) = summary["stealth"]
    # Honest norms 1.5, 1, 2: client 0 is the median. Attacked 9, 1, 2: the median is 2 and 0 is farthest.
    assert stealth["norm"] == {"attacked": 1.0, "honest": 0.0, "difference": 1.0}
    assert stealth["cosine"] == {"attacked": 0.5, "honest": 0.5, "difference": 0.0}
    cost = summary["cost"]["attacked"]
    assert cost["calls"] == {"sv": 16, "leave": 8}
    assert (cost["bytes_received"], cost["bytes_sent"], cost["wall_seconds"]) == (1500, 40, 7.5)
    assert cost["evaluation_seconds"] == 2.0


def test_the_summary_survives_its_file(summary: dict[str, Any], attacked: Path) -> None:
    path = write_summary(attacked, summary)
    assert json.loads(path.read_text()) == summary
    assert sorted(p.name for p in attacked.iterdir())[-1] == "summary.json"


def test_coverage_counts_labels(summary: dict[str, Any]) -> None:
    assert (summary["data"]["labels"], summary["data"]["classes"]) == ([1, 2, 1], 2)


def test_without_a_twin_there_is_no_comparison(attacked: Path) -> None:
    alone = summarize(attacked, None, (0,))
    assert alone["evaluators"]["sv"]["honest"] is None
    assert alone["evaluators"]["sv"]["inflation"] is None
    assert alone["utility"]["accuracy"] == {"attacked": 0.875, "honest": None}
    assert headline(alone, "sv") == [
        "Client 0's sv is 0.5000; without an honest twin there is nothing to compare.",
    ]
    assert "<svg" in page(attacked, alone)


def test_an_honest_run_alone(honest: Path) -> None:
    alone = summarize(honest, None, ())
    assert alone["evaluators"]["sv"]["attacked"] is None
    assert alone["evaluators"]["sv"]["honest"]["total"] == pytest.approx([0.1, 0.3, 0.4])
    assert headline(alone, "sv") == ["Nobody attacked in this run."]
    assert cumulative_figure(alone, "sv") == ""
    assert "<svg" in page(honest, alone)
    assert "Nobody attacked" in printed(alone)


def test_what_is_no_number_is_null(attacked: Path) -> None:
    path = attacked / "scores.csv"
    path.write_text(path.read_text().replace(",0.03,", ",nan,"))
    alone = summarize(attacked, None, (0,))
    assert alone["evaluators"]["sv"]["attacked"]["std_error"] == [None] * 3
    assert "<svg" in page(attacked, alone)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("compared", [True, False])
def test_a_value_that_is_no_number_leaves_a_report(value: float, compared: bool, honest: Path, tmp_path: Path) -> None:
    """An evaluator of one's own may give one; all rounds are scored by then, and the run must end as DONE."""
    values = {"sv": [[0.3, 0.2, 0.1], [value, 0.0, 0.1]], "leave": ATTACKED["leave"]}
    run = write_run(tmp_path / "run", values, accuracy=(0.5, 0.75), norm=9.0, attack=ATTACK)
    summary = summarize(run, honest if compared else None, (0,))
    assert summary["evaluators"]["sv"]["attacked"]["rank"] == [None, 1.5, 1.5]
    assert "no finite number" in headline(summary, "sv")[0]
    assert "no number" in printed(summary)
    assert "no number" in page(run, summary)
    ET.fromstring(cumulative_figure(summary, "sv"))  # noqa: S314 - our own words
    ET.fromstring(values_figure(summary, "sv"))  # noqa: S314 - our own words


def test_a_huge_value_pushes_no_column_away(honest: Path, tmp_path: Path) -> None:
    values = {"sv": [[5e37, 0.2, 0.1], [0.0, 0.0, 0.1]], "leave": ATTACKED["leave"]}
    run = write_run(tmp_path / "run", values, accuracy=(0.5, 0.75), norm=9.0, attack=ATTACK)
    summary = summarize(run, honest, (0,))
    text = printed(summary)
    assert "│ 0.1000 │ 5.0000e+37 │ +5.0000e+37 │ " in text
    assert "Client 0 raised its sv by 5.0000e+37, from 0.1000 to 5.0000e+37 " in text


def test_a_twin_of_another_size_is_refused(attacked: Path, tmp_path: Path) -> None:
    twin = write_run(tmp_path / "short", {"sv": [[0.1, 0.2, 0.3]]}, accuracy=(0.5, 0.5), norm=1.0)
    with pytest.raises(UserError, match="twin"):
        summarize(attacked, twin, (0,))


@pytest.mark.parametrize("name", ["manifest.json", "scores.csv", "metrics.csv", "events.jsonl"])
def test_a_missing_or_broken_file_is_named(attacked: Path, name: str) -> None:
    (attacked / name).write_text("round,{\nx\n")
    with pytest.raises(UserError, match=name):
        summarize(attacked, None, (0,))
    (attacked / name).unlink()
    with pytest.raises(UserError, match=f"there is no .*{name}"):
        summarize(attacked, None, (0,))


def test_a_missing_score_is_noticed(attacked: Path) -> None:
    path = attacked / "scores.csv"
    path.write_text("\n".join(path.read_text().split("\n")[:-2]) + "\n")
    with pytest.raises(UserError, match="2 rounds and 3 clients expected of leave, got 5"):
        summarize(attacked, None, (0,))


def test_half_a_last_event_never_happened(attacked: Path, summary: dict[str, Any], honest: Path) -> None:
    with (attacked / "events.jsonl").open("a") as file:
        file.write('{"time": 999.0, "eve')
    assert summarize(attacked, honest, (0,), boundary="separate processes of one user") == summary


def test_the_headline_gives_raw_units_and_both_standard_errors(summary: dict[str, Any]) -> None:
    assert headline(summary, "sv") == [
        "Client 0 raised its sv by 0.4000, from 0.1000 to 0.5000 (standard error 0.0707 from sampling coalitions, "
        "0 over validation examples), and went from rank 3 to 1 of 3.",
    ]


def printed(summary: dict[str, Any], evaluator: str = "") -> str:
    console = Console(file=io.StringIO(), width=120)
    print_summary(summary, console, evaluator)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_a_row_per_client_and_marks_the_attacker(summary: dict[str, Any]) -> None:
    text = printed(summary)
    row = next(line for line in text.splitlines() if "attacker)" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
        "0 (attacker)",
        "1/2 labels, 5 samples",
        "0.1000",
        "0.5000",
        "+0.4000",
        "3 -> 1",
    ]
    assert "Client 0 raised its leave by 0.0300" in " ".join(text.split())
    assert "Test accuracy: honest 0.7500, attacked 0.8750 (50 test, 100 validation examples)." in text
    assert "leave by client" in printed(summary, "leave")
    with pytest.raises(UserError, match="did you mean 'leave'"):
        printed(summary, "leav")


def damage(run: Path, rounds: dict[int, str], experiment: dict[str, Any]) -> None:
    """Give rounds other weights (none: a void round), and the experiment other keys."""
    lines = (run / "metrics.csv").read_text().splitlines()
    for number, weights in rounds.items():
        lines[number] = lines[number].replace("0:0.2 1:0.3 2:0.5", weights)
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["experiment"] |= experiment
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("attacked_rounds", "honest_rounds", "experiment", "caveats"),
    [
        ({}, {}, {}, []),
        ({1: "0:0.0 1:0.3 2:0.7"}, {}, {}, []),  # a weight of 0 is the rule's verdict on an update that came
        (
            {1: "", 2: ""},
            {2: ""},
            {},
            [
                "2 of the 2 rounds of the attacked run were void: no update counted in them, and no model changed.",
                "1 of the 2 rounds of the honest run was void: no update counted in it, and no model changed.",
            ],
        ),
        (
            {1: "1:0.3 2:0.5", 2: "1:0.3"},
            {2: "0:0.2"},
            {},
            [
                "Updates were missing in rounds of the attacked run that counted: client 0 (attacker) in 2 of 2; "
                "client 2 in 1 of 2.",
                "Updates were missing in rounds of the honest run that counted: clients 1, 2 in 1 of 2.",
            ],
        ),
        ({1: "0:0.2 2:0.5"}, {2: "0:0.2 2:0.5"}, {"clients": {"schedule": [{"client": 1, "join": 3}]}}, []),
        ({1: "0:0.2 2:0.5", 2: "0:0.2 2:0.5"}, {}, {"clients": {"absent": [1]}}, []),
        (
            {2: "1:0.3 2:0.5"},
            {},
            {"network": {"faults": [{"client": 0, "round": 2, "kind": "crash"}]}},
            [
                "Updates were missing in rounds of the attacked run that counted: client 0 (attacker, whose fault plan "
                "may be why) in 1 of 2."
            ],
        ),
    ],
)
def test_what_weakens_the_conclusion_stands_beside_it(
    attacked: Path,
    honest: Path,
    attacked_rounds: dict[int, str],
    honest_rounds: dict[int, str],
    experiment: dict[str, Any],
    caveats: list[str],
) -> None:
    damage(attacked, attacked_rounds, experiment)
    damage(honest, honest_rounds, experiment)
    summary = summarize(attacked, honest, (0,))
    assert summary["caveats"] == caveats
    shown, html = " ".join(printed(summary).split()), page(attacked, summary)
    for caveat in caveats:
        assert f"Warning: {caveat}" in shown
        assert f'<p class="caveat">Warning: {caveat}</p>' in html
    assert shown.count("Warning") == html.count("Warning") == len(caveats)


def test_a_summary_of_an_earlier_version_has_no_caveats(attacked: Path, summary: dict[str, Any]) -> None:
    del summary["caveats"]
    assert "Warning" not in printed(summary) + page(attacked, summary)


class Tags(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.references += [value or "" for key, value in attrs if key in ("src", "href") or key.startswith("on")]


def test_the_page_stands_alone_and_escapes_every_word(attacked: Path, summary: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script>&\"'"
    summary["name"] = summary["boundary"] = evil
    summary["attack"] = {evil: evil}
    summary["evaluators"] = {evil: summary["evaluators"]["sv"]}
    summary["cost"]["attacked"]["calls"][evil] = summary["cost"]["honest"]["calls"][evil] = 1
    path = write_report(attacked, summary)
    text = path.read_text()
    tags = Tags(text)
    assert path.name == "report.html"
    assert not tags.names & {"script", "link", "img", "iframe"}
    assert tags.references == []
    assert text.count("<svg") == text.count("</svg>") == 3
    assert f"steelyard replay {attacked}" in text


def test_the_page_gives_the_attackers_share_or_why_there_is_none(attacked: Path, summary: dict[str, Any]) -> None:
    text = page(attacked, summary)
    assert "<td>sv, client 0</td><td>0.1250</td><td>0.5556</td>" in text  # 0.1 of 0.8, 0.5 of 0.9
    assert "<td>leave, client 0</td><td>the values of loo are not known to add up to the utility</td>" in text


def test_the_figures_are_well_formed_and_drawn_to_scale(summary: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    write_picture(summary, path)
    root = ET.fromstring(path.read_text())  # noqa: S314 - our own file
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("x") is not None]
    heights = [float(bar.get("height", "")) for bar in bars]
    expected = [0.1, 0.5, 0.3, 0.2, 0.4, 0.2]  # by client: honest, attacked
    assert [h / heights[1] * 0.5 for h in heights] == pytest.approx(expected, abs=2e-3)
    ET.fromstring(cumulative_figure(summary, "sv"))  # noqa: S314 - our own text
    assert values_figure(summary, "sv") in path.read_text()


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0.0, 0.061, [0.0, 0.02, 0.04, 0.06, 0.08]),
        (-0.01, 0.05, [-0.01, 0.0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (0.0, 0.0, [0.0, 0.2]),
        (0.5, 6.5, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_ticks_are_round_numbers_around_the_data(low: float, high: float, marks: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(marks)


def test_everything_but_nothing_of_torch_is_loaded() -> None:
    modules = ", ".join(f"steelyard.report.{m}" for m in ("table", "summary", "html", "measures", "suspicion"))
    code = f"import sys, {modules}; print([m for m in ('torch', 'server', 'client') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_errors_over_validation_examples_are_taken_example_by_example(attacked: Path, honest: Path) -> None:
    """Both runs err alike on two examples, so their difference does not; without the file it is at most the sum."""
    for run, shift in ((attacked, 0.5), (honest, 0.0)):
        text = (run / "scores.csv").read_text().replace("calls,", "total_validation_std_error,calls,")
        (run / "scores.csv").write_text(text.replace(",0.0,4,", ",0.0,1.0,4,").replace(",0.0,8,", ",0.0,1.0,8,"))
        examples = np.array([[0.0, 2.0], [0.0, 0.0], [1.0, 1.0]]) + shift
        arrays = {f"sv/{part}": array for part, array in (("examples", examples), ("bound", np.zeros(3)))}
        (run / "recordings" / "round-0002").mkdir(parents=True)
        write_arrays(run / "recordings" / "round-0002" / "examples.safetensors", arrays)
    results = summarize(attacked, honest, (0,))["evaluators"]
    assert results["sv"]["attacked"]["validation_std_error"] == [1.0, 1.0, 1.0], "the last round's, of the total"
    assert results["sv"]["inflation"][0]["validation_std_error"] == 0.0
    assert results["leave"]["inflation"][0]["validation_std_error"] == 2.0
