"""The report: one page that stands alone, without scripts or anything to load. It shows a summary as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from steelyard.bundle import write_text
from steelyard.report.figures import ATTACKER, BENIGN, HONEST, Bars, Line, bar_figure, line_figure
from steelyard.report.summary import headline, shown
from steelyard.report.table import HEADERS, client_rows

Summary = dict[str, Any]

STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; color: #1f2933;
       max-width: 800px; margin: 2.5rem auto; padding: 0 20px; background: #fff; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.meta, figcaption, caption { color: #5b6875; font-size: .87rem; }
.headline { border-left: 4px solid #c43d2b; padding: .6rem 1rem; background: #faf4f3; font-size: 1.05rem; }
.caveat { border-left: 4px solid #d99a1c; padding: .6rem 1rem; background: #fdf8ec; }
figure { margin: 1.4rem 0; break-inside: avoid; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0 1.4rem; font-variant-numeric: tabular-nums;
        break-inside: avoid; }
caption { text-align: left; break-after: avoid; padding-bottom: .3rem; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid #e4e8ec; }
th { font-weight: 600; } th, td { text-align: right; } th:first-child, td:first-child, .words * { text-align: left; }
.values td { white-space: nowrap; } tr.attacker td { color: #c43d2b; font-weight: 600; }
code { background: #f1f3f5; padding: .1rem .35rem; }
@page { margin: 15mm; }
@media print { body { margin: 0; max-width: none; font-size: 9.5pt; } * { print-color-adjust: exact; } }
"""

FILES = (
    ("manifest.json", "the resolved experiment, seed, versions, processor, and how the run ended"),
    ("scores.csv", "every client's value in every round, by evaluator, with standard errors and calls"),
    ("metrics.csv", "accuracy and loss after every round, who took part, weights and suspicion"),
    ("events.jsonl", "joins, rounds, receipts, refusals, with times and bytes"),
    ("recordings/", "every round's global model and accepted updates, with digests"),
    ("honest/", "the paired honest twin, the same files (where there is one)"),
    ("summary.json", "the numbers of this page"),
)


def write_report(run: Path, summary: Summary) -> Path:
    """Write report.html into the run directory, whole or not at all."""
    path = run / "report.html"
    write_text(path, page(run, summary))
    return path


def write_picture(summary: Summary, path: Path) -> None:
    """Write the figure of values by client as an SVG file of its own."""
    write_text(path, values_figure(summary, next(iter(summary["evaluators"]))) + "\n")


def page(run: Path, summary: Summary) -> str:
    """The report as HTML text."""
    primary = next(iter(summary["evaluators"]))
    body = [
        f"<h1>{escape(summary['name'])}</h1>",
        f'<p class="meta">{escape(_subtitle(summary))}</p>',
        *[f'<p class="headline">{escape(sentence)}</p>' for sentence in headline(summary, primary)],
        *[f'<p class="caveat">Warning: {escape(sentence)}</p>' for sentence in summary.get("caveats", ())],
        _figure(values_figure(summary, primary), _errors_caption(summary)),
        _figure(cumulative_figure(summary, primary), "Values of all rounds so far, added up."),
        _figure(accuracy_figure(summary), f"The global model on {summary['data']['test']} test examples."),
        "<h2>Values by client</h2>",
        *[_clients_table(summary, name) for name in summary["evaluators"]],
        "<h2>Measures</h2>",
        _table("The attacker's share of all values", _shares(summary)),
        _table("Structure among the benign clients, honest against attacked", _structure(summary)),
        _table("The global model on the test set after the last round", _utility(summary)),
        _table(
            "Fraction of benign clients that look less suspicious than the attacker (0.5: like any other)",
            _stealth(summary),
        ),
        _table("Cost", _cost(summary)),
        _table("Traffic by client, over all rounds, as the server saw it", _traffic(summary)),
        "<h2>What was declared</h2>",
        _table("The attack, as the experiment file has it", _declared(summary), kind="words"),
        f"<p>Which wall kept the roles apart: {escape(summary['boundary'] or 'not stated')}.</p>",
        _table("Which bytes each role could see", _seen(summary), kind="words"),
        "<h2>Replay</h2>",
        f"<p>The recorded rounds give the same scores again: <code>steelyard replay {escape(str(run))}</code></p>",
        _table("Files in this folder", [("file", "holds"), *FILES], kind="words"),
    ]
    title = escape(f"{summary['name']}: contribution scores")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"
    )


def values_figure(summary: Summary, evaluator: str) -> str:
    """Every client's total, without and with the attack."""
    results, clients = summary["evaluators"][evaluator], range(len(summary["data"]["samples"]))
    marked = [ATTACKER if client in summary["attackers"] else BENIGN for client in clients]
    groups = []
    if results["honest"]:
        groups.append(_bars("honest", results["honest"], [HONEST if results["attacked"] else BENIGN] * len(clients)))
    if results["attacked"]:
        groups.append(_bars("attacked", results["attacked"], marked))
    legend = [
        *[Line(label="honest run", values=(), colour=bars.colours[0]) for bars in groups if bars.label == "honest"],
        *[Line(label="attacked run", values=(), colour=BENIGN) for bars in groups if bars.label == "attacked"],
        *[Line(label="attacker", values=(), colour=ATTACKER)] * bool(summary["attackers"]),
    ]
    title = f"What each client is said to have contributed ({evaluator})"
    names = [str(client) for client in clients]
    return bar_figure(title, f"value, summed over {summary['rounds']} rounds", groups, names, legend)


def cumulative_figure(summary: Summary, evaluator: str) -> str:
    """The attackers' values as they add up over the rounds; "" when nobody attacks."""
    results = summary["evaluators"][evaluator]
    lines = [
        Line(
            label=f"client {client}, {run}",
            values=[0.0, *(row[client] for row in results[run]["cumulative"])],
            colour=colour,
            dashed=run == "honest",
        )
        for client in summary["attackers"]
        for run, colour in (("honest", HONEST), ("attacked", ATTACKER))
        if results[run]
    ]
    return line_figure("The attacker's value, round by round", f"{evaluator}, added up", lines, 0) if lines else ""


def accuracy_figure(summary: Summary) -> str:
    """Test accuracy after every round; "" when no round was measured."""
    by_round = summary["utility"]["accuracy_by_round"]
    lines = [
        Line(label=run, values=by_round[run], colour=colour, dashed=run == "honest")
        for run, colour in (("honest", HONEST), ("attacked", BENIGN))
        if by_round[run]
    ]
    return line_figure("Accuracy of the global model", "fraction of test examples", lines, 1) if lines else ""


def _bars(label: str, totals: Summary, colours: Sequence[str]) -> Bars:
    errors = [
        None if a is None or b is None else math.hypot(a, b)
        for a, b in zip(totals["std_error"], totals["validation_std_error"], strict=True)
    ]
    return Bars(label=label, heights=totals["total"], errors=errors, colours=colours)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" if svg else ""


def _table(caption: str, rows: Sequence[Sequence[str]], marked: Iterable[int] = (), *, kind: str = "") -> str:
    """The first row is the header; `marked` counts the rows below it from 0. Without such rows there is no table."""
    if len(rows) < 2:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = [f'<table class="{kind}"><caption>{escape(caption)}</caption>', f"<tr>{head}</tr>"]
    for index, row in enumerate(rows[1:]):
        mark = ' class="attacker"' if index in marked else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return "\n".join([*lines, "</table>"])


def _subtitle(summary: Summary) -> str:
    data = summary["data"]
    return (
        f"{len(data['samples'])} clients, {summary['rounds']} rounds, seed {summary['seed']}; "
        f"{data['dataset']} ({data['partition']} partition), {_judges(summary)}"
    )


def _errors_caption(summary: Summary) -> str:
    return f"Whiskers: one standard error, from sampling coalitions and over the {_judges(summary)} together."


def _judges(summary: Summary) -> str:
    judged_on, there = summary["data"]["judged_on"], summary["data"]["validation"]
    return f"{there} validation examples" if judged_on == there else f"{judged_on} of {there} validation examples used"


def _clients_table(summary: Summary, name: str) -> str:
    rows = [HEADERS, *client_rows(summary, summary["evaluators"][name])]
    return _table(f"{name}, summed over {summary['rounds']} rounds", rows, summary["attackers"], kind="values")


def _shares(summary: Summary) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("evaluator and client", "honest", "attacked")]
    for name, results in summary["evaluators"].items():
        runs = (results["honest"], results["attacked"])
        rows.extend((f"{name}, client {k}", *(_share(run, k) for run in runs)) for k in summary["attackers"])
    return rows


def _share(totals: Summary | None, client: int) -> str:
    if totals is None:
        return "-"
    return str(totals["shares_reason"]) if totals["shares"] is None else _number(totals["shares"][client])


def _structure(summary: Summary) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("evaluator", "Kendall tau", "Spearman rho", "L1 of shares")]
    for name, results in summary["evaluators"].items():
        if found := results["structure"]:
            distance = _number(found["share_distance"]) if found["share_distance"] is not None else found["reason"]
            rows.append((name, _number(found["kendall"]), _number(found["spearman"]), distance))
    return rows


def _utility(summary: Summary) -> list[Sequence[str]]:
    rows = [_compared(name, summary["utility"][name]) for name in ("accuracy", "loss")]
    return [("", "honest", "attacked", "difference"), *rows]


def _stealth(summary: Summary) -> list[Sequence[str]]:
    names = {"norm": "distance from the median norm", "cosine": "cosine distance from the median update"}
    return [
        ("client and figure", "honest", "attacked", "difference"),
        *[_compared(f"{s['client']}: {names[f]}", s[f]) for s in summary["stealth"] for f in names],
    ]


def _compared(name: str, pair: Summary) -> Sequence[str]:
    return (name, *(_number(pair.get(key)) for key in ("honest", "attacked", "difference")))


def _cost(summary: Summary) -> list[Sequence[str]]:
    runs = {run: summary["cost"][run] for run in ("honest", "attacked") if summary["cost"][run]}
    units = (
        ("wall_seconds", "seconds from the first event to the last", 1.0),
        ("evaluation_seconds", "seconds of evaluation", 1.0),
        ("bytes_received", "MB received by the server", 1e-6),
        ("bytes_sent", "MB sent by the server", 1e-6),
    )
    rows = [(label, *(f"{cost[key] * unit:.2f}" for cost in runs.values())) for key, label, unit in units]
    calls = [
        (f"utility calls, {name}", *(str(cost["calls"][name]) for cost in runs.values()))
        for name in summary["evaluators"]
    ]
    return [("", *runs), *rows, *calls]


def _traffic(summary: Summary) -> list[Sequence[str]]:
    head = ("client", "rounds counted", "MB down", "MB up", "seconds of transfers", "retries", "seconds idle")
    rows = [
        (
            str(own["client"]),
            str(own["rounds"]),
            *(f"{own[key] * 1e-6:.3f}" for key in ("bytes_down", "bytes_up")),
            f"{own['transfer_seconds']:.2f}",
            str(own["retries"]),
            f"{own['idle_seconds']:.2f}",
        )
        for own in summary["traffic"]["by_client"]
    ]
    return [head, *rows] if rows else []


def _seen(summary: Summary) -> list[Sequence[str]]:
    rows = [
        (
            role,
            f"{len(own['files'])} files, {sum(file['bytes'] for file in own['files'])} bytes",
            f"{own['transfers']} {own['arrived']}, {own['bytes']} bytes" if own["transfers"] else own["arrived"],
        )
        for role, own in summary["seen"].items()
    ]
    return [("role", "in its folder", "over the wire"), *rows] if rows else []


def _declared(summary: Summary) -> list[Sequence[str]]:
    attack = summary["attack"]
    return [("key", "value"), *[(str(key), str(value)) for key, value in attack.items()]] if attack else []


def _number(value: float | None) -> str:
    return "-" if value is None else shown(value)
