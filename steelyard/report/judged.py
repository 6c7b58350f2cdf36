"""What a rule says of recorded rounds, as rows of defences-replayed.csv. It knows verdicts, no run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steelyard.aggregation.base import Verdict

JUDGED = "defences-replayed.csv"


def judged_rows(defence: str, round_: int, clients: Sequence[int], verdict: Verdict | None) -> list[dict[str, Any]]:
    """A row per client whose update counted: defence, round, client, weight, due, suspicion; none of a void round."""
    if verdict is None:
        return []
    columns = (verdict.weights_n, verdict.due_n, verdict.suspicion_n)
    return [
        {"defence": defence, "round": round_, "client": client, "weight": weight, "due": due, "suspicion": suspicion}
        for client, weight, due, suspicion in zip(clients, *(column.tolist() for column in columns), strict=True)
    ]
