"""The summary in the terminal: one table for one evaluator, a line for each other one, and the sentence that counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steelyard.parsing import choose
from steelyard.report.summary import headline, shown

HEADERS = ("client", "label coverage", "honest", "attacked", "change", "rank")


def print_summary(summary: dict[str, Any], console: Console, evaluator: str = "") -> None:
    """Print the summary.

    Args:
        summary: what `summarize` gave, or summary.json as read back.
        console: where to.
        evaluator: the name of the one to tabulate; "" takes the first of the experiment.

    Raises:
        UserError: there is no evaluator of that name.
    """
    names = list(summary["evaluators"])
    primary = evaluator or names[0]
    results = choose(primary, summary["evaluators"], "evaluator")
    console.print(_clients(summary, primary, results))
    for name in names:
        for sentence in headline(summary, name):
            console.print(escape(sentence), style="bold" if name == primary else "", highlight=False)
        if not summary["attackers"]:
            break
    for caveat in summary.get("caveats", ()):
        console.print(escape(f"Warning: {caveat}"), style="bold yellow", highlight=False)
    for line in _notes(summary):
        console.print(escape(line), style="dim", highlight=False)


def client_rows(summary: dict[str, Any], results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The cells of one evaluator's table, a row per client under `HEADERS`; "-" where there is nothing to say."""
    data = summary["data"]
    absent = data.get("absent", [])
    for client, samples in enumerate(data["samples"]):
        mark = " (attacker)" if client in summary["attackers"] else " (absent)" if client in absent else ""
        yield (
            f"{client}{mark}",
            f"{data['labels'][client]}/{data['classes']} labels, {samples} samples",
            _value(results["honest"], client),
            _value(results["attacked"], client),
            _change(results["change"], client),
            " -> ".join(_rank(run["rank"][client]) for run in (results["honest"], results["attacked"]) if run),
        )


def _rank(rank: float | None) -> str:
    return "-" if rank is None else f"{rank:g}"


def _value(totals: dict[str, Any] | None, client: int) -> str:
    if totals is None:
        return "-"
    return "no number" if (total := totals["total"][client]) is None else shown(total)


def _change(changes: Sequence[float | None] | None, client: int) -> str:
    return "-" if changes is None or (change := changes[client]) is None else shown(change, "+")


def _clients(summary: dict[str, Any], name: str, results: dict[str, Any]) -> Table:
    title = f"{name} by client, summed over {summary['rounds']} rounds"
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for header in HEADERS:
        table.add_column(header, justify="left" if header in HEADERS[:2] else "right", no_wrap=True)
    for client, cells in enumerate(client_rows(summary, results)):
        table.add_row(*map(escape, cells), style="red" if client in summary["attackers"] else "")
    return table


def _notes(summary: dict[str, Any]) -> Iterator[str]:
    accuracy, data = summary["utility"]["accuracy"], summary["data"]
    runs = [f"{run} {accuracy[run]:.4f}" for run in ("honest", "attacked") if accuracy[run] is not None]
    if runs:
        sizes = f"{data['test']} test, {data['validation']} validation examples"
        yield f"Test accuracy: {', '.join(runs)} ({sizes})."
    for stealth in summary["stealth"]:
        figures = [
            f"by {name} {stealth[name]['attacked']:.2f}" + _against(stealth[name]["honest"])
            for name in ("norm", "cosine")
            if stealth[name]["attacked"] is not None
        ]
        if figures:
            said = f"Fraction of benign clients that look less suspicious than client {stealth['client']}"
            yield f"{said} (0.5: like any other): {'; '.join(figures)}."
    if summary["boundary"]:
        yield f"Roles kept apart by: {summary['boundary']}."


def _against(honest: float | None) -> str:
    return "" if honest is None else f" (honest {honest:.2f})"
