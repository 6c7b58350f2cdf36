"""What weakens a run's conclusion: rounds that did not count, and updates that did not come. Knows no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from steelyard.participation import expected, stays
from steelyard.report.records import Records


def caveats(runs: Mapping[str, Records | None], attackers: Sequence[int]) -> list[str]:
    """A sentence for each thing that went wrong in a run; none where every round counted and every update came.

    Args:
        runs: the records by what to call the run.
        attackers: the attacking clients, who are named first.
    """
    return [
        sentence
        for name, records in runs.items()
        if records is not None
        for sentence in (_void(name, records), _missing(name, records, attackers))
        if sentence
    ]


def _void(run: str, records: Records) -> str:
    void, rounds = sum(not row.weights for row in records.metrics), len(records.metrics)
    if not void:
        return ""
    were, them = ("was", "it") if void == 1 else ("were", "them")
    return f"{void} of the {rounds} rounds of {run} {were} void: no update counted in {them}, and no model changed."


def _missing(run: str, records: Records, attackers: Sequence[int]) -> str:
    """A client that was not there when a round opened is no participant, so whom the experiment expects is asked."""
    due, lost = Counter[int](), Counter[int]()
    for row in records.metrics:
        if row.weights:
            here = _expected(records.manifest, row.round)
            due.update(here)
            lost.update(here - row.weights.keys())
    said = _listed(lost, due, attackers, records.manifest)
    return f"Updates were missing in rounds of {run} that counted: {said}." if said else ""


def _expected(manifest: Mapping[str, Any], round_: int) -> frozenset[int]:
    """Whom the experiment has take part in a round."""
    clients = manifest["experiment"].get("clients", {})
    present = [k for k in range(len(manifest["data"]["samples"])) if k not in clients.get("absent", ())]
    return expected(stays(present, clients.get("schedule", ())), round_)


def _listed(lost: Counter[int], due: Counter[int], attackers: Sequence[int], manifest: Mapping[str, Any]) -> str:
    faults = manifest["experiment"].get("network", {}).get("faults", ())
    planned = {fault["client"] for fault in faults}
    alike: dict[tuple[str, int, int], list[int]] = {}
    for client in sorted(lost, key=lambda k: (k not in attackers, -lost[k], k)):
        words = ["attacker"] * (client in attackers) + ["whose fault plan may be why"] * (client in planned)
        kind = f" ({', '.join(words)})" if words else ""
        alike.setdefault((kind, lost[client], due[client]), []).append(client)
    return "; ".join(
        f"client{'s' * (len(own) > 1)} {', '.join(map(str, own))}{kind} in {times} of {of}"
        for (kind, times, of), own in alike.items()
    )
