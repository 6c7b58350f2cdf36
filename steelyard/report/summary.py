"""The summary of a run: one plain table, ready for JSON, that the terminal, the page and the sweeps all read.

It compares a run with its honest twin where there is one. What cannot be said is None, and a reason stands beside it.
Of the two runs, `attacked` is the one with attackers and `honest` the one without; either may be None, never both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from steelyard.bundle import write_text
from steelyard.errors import UserError
from steelyard.report import measures
from steelyard.report.caveats import caveats
from steelyard.report.measures import Floats
from steelyard.report.records import Records, RoundMetrics, read_records
from steelyard.report.seen import seen
from steelyard.report.traffic import account
from steelyard.scoring.evaluators.base import example_std_error

Table = dict[str, Any]


def summarize(run: Path, honest: Path | None, attackers: Sequence[int], *, boundary: str = "") -> Table:
    """Everything that the measures say about a run.

    Standard errors of totals are root sums of squares over rounds, and those of differences over both runs. For the
    validation examples, which all rounds and both runs share, a total's error is the one that scores.csv has for it,
    and a difference's is taken example by example; where that was not kept it is the sum of both, an upper bound.

    Args:
        run: the run directory.
        honest: its honest twin's, under the same seeds; None when there is none.
        attackers: the attacking clients; empty when nobody attacks.
        boundary: which wall separated the roles, in words.

    Raises:
        UserError: a file is missing or malformed, or the twin is a run of another size.
    """
    this = read_records(run)
    twin = read_records(honest) if honest is not None else None
    attacked, plain = (this, twin) if attackers else (None, this)
    if attacked and plain:
        _check_twin(attacked, plain)
    experiment, data = this.manifest["experiment"], this.manifest["data"]
    kinds = {table["name"]: table["kind"] for table in experiment["evaluators"]}
    absent = _absent(this)
    judged_on = experiment.get("scoring", {}).get("examples") or data["validation"]
    benign = [client for client in range(len(data["samples"])) if client not in attackers and client not in absent]
    summary = {
        "name": experiment["name"],
        "seed": experiment["seed"],
        "rounds": experiment["rounds"],
        "attack": experiment["attack"],
        "attackers": list(attackers),
        "boundary": boundary,
        "caveats": caveats({"the attacked run": attacked, "the honest run": plain}, attackers),
        "data": {
            "dataset": experiment["data"]["dataset"],
            "partition": experiment["data"]["partition"],
            "samples": data["samples"],
            "absent": absent,
            "labels": [sum(count > 0 for count in counts) for counts in data["coverage"]],
            "classes": len(data["coverage"][0]),
            "validation": data["validation"],
            "judged_on": judged_on,
            "test": data["test"],
        },
        "model": experiment["model"]["name"],
        "evaluators": {
            name: _evaluator(name, kinds[name], attacked, plain, attackers, benign, judged_on) for name in this.scores
        },
        "utility": {
            "accuracy": _pair(attacked, plain, lambda records: records.metrics[-1].accuracy),
            "loss": _pair(attacked, plain, lambda records: records.metrics[-1].loss),
            "accuracy_by_round": _pair(attacked, plain, lambda records: [row.accuracy for row in records.metrics]),
        },
        "stealth": [_stealth(attacker, attacked, plain, benign) for attacker in attackers],
        "cost": _pair(attacked, plain, _cost),
        "traffic": account(this.events),
        "seen": seen(run, this.events),
    }
    return dict(_json_ready(summary))


def write_summary(run: Path, summary: Table) -> Path:
    """Write summary.json into the run directory, whole or not at all."""
    path = run / "summary.json"
    write_text(path, json.dumps(summary, indent=1) + "\n")
    return path


def headline(summary: Table, evaluator: str) -> list[str]:
    """What happened to each attacker's value, in raw units: one sentence for a person per attacker."""
    results = summary["evaluators"][evaluator]
    if not summary["attackers"]:
        return ["Nobody attacked in this run."]
    if results["honest"] is None:
        totals = ["no finite number" if t is None else shown(t) for t in results["attacked"]["total"]]
        return [
            f"Client {k}'s {evaluator} is {totals[k]}; without an honest twin there is nothing to compare."
            for k in summary["attackers"]
        ]
    return [_inflation_sentence(evaluator, results, inflation) for inflation in results["inflation"]]


def shown(value: float, sign: str = "") -> str:
    """A score as people read it: four decimals, or a power of ten where those would push other columns away."""
    return f"{value:{sign}.4f}" if abs(value) < 1e7 else f"{value:{sign}.4e}"


def _inflation_sentence(evaluator: str, results: Table, inflation: Table) -> str:
    client, raw = inflation["client"], inflation["raw"]
    honest, attacked = results["honest"], results["attacked"]
    if raw is None:
        runs = " and ".join(run for run in ("honest", "attacked") if results[run]["total"][client] is None)
        return (
            f"Client {client}'s {evaluator} is no finite number in the {runs} run; scores.csv says since which round."
        )
    verb = "raised" if raw > 0 else "lowered" if raw < 0 else "did not change"
    before, after = honest["total"][client], attacked["total"][client]
    amount = f" by {shown(abs(raw))}, from {shown(before)} to {shown(after)}" if raw else f", {shown(after)}"
    return (
        f"Client {client} {verb} its {evaluator}{amount} "
        f"(standard error {_figure(inflation['std_error'])} from sampling coalitions, "
        f"{_figure(inflation['validation_std_error'])} over validation examples), "
        f"and {_rank_change(honest['rank'][client], attacked['rank'][client])} "
        f"of {sum(rank is not None for rank in honest['rank'])}."
    )


def _rank_change(before: float, after: float) -> str:
    return f"stayed at rank {after:g}" if before == after else f"went from rank {before:g} to {after:g}"


def _figure(value: float | None) -> str:
    return "unknown" if value is None else "0" if value == 0 else shown(value)


def _check_twin(attacked: Records, honest: Records) -> None:
    shapes = [{name: scores.value.shape for name, scores in records.scores.items()} for records in (attacked, honest)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{honest.folder}: a twin with the rounds, clients and evaluators of {attacked.folder} expected, "
            f"{shapes[0]}, got {shapes[1]}"
        )


def _pair(attacked: Records | None, honest: Records | None, figure: Any) -> Table:
    """A figure of both runs; and the difference, attacked minus honest, where both have it and it is a number."""
    after, before = (figure(records) if records and records.metrics else None for records in (attacked, honest))
    pair: Table = {"attacked": after, "honest": before}
    if isinstance(after, float) and isinstance(before, float):
        pair["difference"] = after - before
    return pair


def _evaluator(
    name: str,
    kind: str,
    attacked: Records | None,
    honest: Records | None,
    attackers: Sequence[int],
    benign: list[int],
    validation: int,
) -> Table:
    results: Table = {
        "kind": kind,
        "attacked": attacked and _totals(attacked, name, kind, validation),
        "honest": honest and _totals(honest, name, kind, validation),
        "change": None,
        "rank_displacement": None,
        "inflation": None,
        "structure": None,
    }
    if attacked is None or honest is None:
        return results
    after, before = results["attacked"], results["honest"]
    change = after["total"] - before["total"]
    errors = {
        "std_error": np.hypot(after["std_error"], before["std_error"]),
        "validation_std_error": _validation_error_of_change(name, attacked, honest),
    }
    return results | {
        "change": change,
        "rank_displacement": before["rank"] - after["rank"],  # positive: rose
        "inflation": [
            {"client": k, "raw": change[k], **{key: error[k] for key, error in errors.items()}} for k in attackers
        ],
        "structure": asdict(
            measures.structure(before["total"][benign], after["total"][benign], kind=kind, validation=validation)
        ),
    }


def _validation_error_of_change(name: str, attacked: Records, honest: Records) -> Floats:
    """Of attacked less honest totals, [N]: both were judged on the same examples, so differences on each count."""
    after, before = attacked.examples.get(name), honest.examples.get(name)
    if (
        after is None
        or before is None
        or after["examples"].shape != before["examples"].shape
        or np.isnan(after["bound"] + before["bound"]).any()
    ):
        scores = (attacked.scores[name], honest.scores[name])
        return sum((each.total_validation_std_error[-1] for each in scores), start=np.zeros(1))
    error_N: Floats = example_std_error(after["examples"] - before["examples"]) + after["bound"] + before["bound"]
    return error_N


def _totals(records: Records, name: str, kind: str, validation: int) -> Table:
    scores = records.scores[name]
    total: Floats = np.sum(scores.value, axis=0)
    shares = measures.shares(total, kind=kind, validation=validation)
    return {
        "total": total,
        "std_error": measures.root_sum_of_squares(scores.std_error),
        "validation_std_error": scores.total_validation_std_error[-1],
        "subset_std_error": scores.total_subset_std_error[-1],
        "rank": _ranks(total, _absent(records)),
        "shares": shares.values,
        "shares_reason": shares.reason,
        "rounds_evaluated": np.sum(scores.evaluated, axis=0).astype(int),
        "cumulative": np.cumsum(scores.value, axis=0),
    }


def _absent(records: Records) -> list[int]:
    """The clients that were never there."""
    return list(records.manifest["experiment"].get("clients", {}).get("absent", []))


def _ranks(total: Floats, absent: Sequence[int]) -> Floats:
    """Ranks [N] among the clients that were there and whose value is a number; NaN for the others."""
    here = ~np.isin(np.arange(len(total)), absent) & np.isfinite(total)
    ranks = np.full(len(total), np.nan)
    ranks[here] = measures.ranks(total[here])
    return ranks


def _stealth(attacker: int, attacked: Records | None, honest: Records | None, benign: list[int]) -> Table:
    def norm(row: RoundMetrics) -> float | None:
        return measures.less_suspicious(measures.norm_suspicion(row.norms), attacker, benign)

    def cosine(row: RoundMetrics) -> float | None:
        return measures.less_suspicious(row.cosines, attacker, benign)

    return {
        "client": attacker,
        "norm": _pair(attacked, honest, lambda records: measures.mean_over_rounds(list(map(norm, records.metrics)))),
        "cosine": _pair(
            attacked, honest, lambda records: measures.mean_over_rounds(list(map(cosine, records.metrics)))
        ),
    }


def _cost(records: Records) -> Table:
    times = [event["time"] for event in records.events]
    return {
        "calls": {name: int(np.sum(scores.calls)) for name, scores in records.scores.items()},
        "evaluation_seconds": math.fsum(float(np.sum(scores.seconds)) for scores in records.scores.values()),
        "bytes_received": _bytes(records, "received"),
        "bytes_sent": _bytes(records, "fetched"),
        "wall_seconds": max(times) - min(times) if times else 0.0,
    }


def _bytes(records: Records, name: str) -> int:
    return sum(int(event.get("bytes", 0)) for event in records.events if event["event"] == name)


def _json_ready(value: Any) -> Any:
    """Plain lists, and None for what is no number: JSON knows neither arrays nor NaN."""
    if isinstance(value, np.ndarray | np.generic):
        return _json_ready(value.tolist())
    if isinstance(value, dict):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
