"""How far an attack moves client 0's standing under several scores, and how true they stay: docs/evaluators.md's table.

    python -m scripts.robust_scores RUNS NAME [--seeds 0..19] [--evaluator '{kind = "company"}' ...]

RUNS is a folder of run directories with full recordings (a sweep's), NAME an experiment in it, such as
digits_own-latent. Every run and its honest twin are scored from their recordings. Scale-free measures of client 0,
attacked minus honest: its share (its total over the sum of the positive totals), the ranks that it climbs, and its
distance from the others' mean in their standard deviations; `ratio` is against FedSV on the same runs.

Fidelity: the validation examples of each honest run are halved at random HALVINGS times; Spearman's correlation of a
score on one half with FedSV on the other, both ways, over that of FedSV with FedSV. The half that a score sees never
judges it. Intervals: 95 %, of means by Student's t, of ratios by a bootstrap over seeds. Writes nothing but the table.
The work runs in a child process with the environment of a run's processes, as a replay's does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deploy.endings import run_child
from deploy.prepare import server_folder
from scripts.replay import evaluator_table
from steelyard.bundle import read_arrays
from steelyard.config import ServerHalf, load_half
from steelyard.errors import UserError
from steelyard.process import exit_with_launcher, is_launched, run_main, settle_down
from steelyard.recording import ROLES, Recordings
from steelyard.report.measures import paired_interval, ranks
from steelyard.scoring.coalitions import Floats
from steelyard.scoring.evaluators import make_evaluators
from steelyard.scoring.evaluators.base import State
from steelyard.scoring.part import PartRound
from steelyard.scoring.score import score_round

HALVINGS, RESAMPLES = 4, 4000
FEDSV = {"name": "fedsv", "kind": "fedsv", "utility": "accuracy"}
DEFAULT = (
    "{kind = 'company'}",
    "{kind = 'company', name = 'company_losses_whole', losses = 1.0}",
    "{kind = 'company', name = 'company_no_losses', losses = 0.0}",
    "{kind = 'banzhaf', calls = 4096}",
    "rider",
    "fold_median",
)
Totals = dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One seed: totals [N] by evaluator, of the attacked and of the honest run, and the honest run's by halves."""

    attacked: Totals
    honest: Totals
    halves: list[tuple[Totals, Totals]]


def totals(run: Path, tables: Sequence[Mapping[str, Any]], parts: Sequence[NDArray[np.int64] | None]) -> list[Totals]:
    """Every evaluator's totals over a run on each part of the validation examples (None: all of them)."""
    from steelyard.scoring.replay import RoundScorer  # torch is not to be imported by who only asks for help

    half: ServerHalf = load_half(ServerHalf, server_folder(run / ROLES) / "half.json")
    data = read_arrays(server_folder(run / ROLES) / "data.safetensors")
    if half.scoring.examples not in {0, len(data["validation_labels"])}:
        raise UserError(
            f"{run}: coalitions judged on all validation examples expected, [scoring] examples is "
            f"{half.scoring.examples}; halves of a part of them would be weighted wrongly"
        )
    recordings = Recordings(run)
    sums: list[Totals] = [{} for _ in parts]
    states: list[dict[str, State]] = [{} for _ in parts]
    evaluators = make_evaluators(tables, half.clients)
    with contextlib.closing(RoundScorer(half, data, recordings, tables)) as scorer:
        for closed in recordings.closed_rounds():
            whole = scorer.played(closed, scorer.read(closed))
            for at, places in enumerate(parts):
                round_ = whole if places is None else PartRound(whole, places)
                for result in score_round(
                    round_, evaluators, seed=half.seed, round_number=closed.round, states=states[at]
                ):
                    scores = result.scores
                    if result.state is None:
                        scores = scores.spread(whole.members, whole.clients)
                    else:
                        states[at][result.evaluator] = result.state
                    sums[at][result.evaluator] = sums[at].get(result.evaluator, 0.0) + scores.value
    return sums


def pair(run: Path, seed: int, tables: Sequence[Mapping[str, Any]]) -> Pair:
    """Score a run and its honest twin."""
    examples = len(read_arrays(server_folder(run / ROLES) / "data.safetensors")["validation_labels"])
    generator = np.random.default_rng(seed)
    parts: list[NDArray[np.int64] | None] = [None]
    for _ in range(HALVINGS):
        order = generator.permutation(examples)
        parts += [order[: examples // 2], order[examples // 2 :]]
    (attacked,) = totals(run, tables, [None])
    honest, *halves = totals(run / "honest", tables, parts)
    return Pair(attacked=attacked, honest=honest, halves=list(zip(halves[::2], halves[1::2], strict=True)))


def share(totals_N: Floats) -> float:
    """Client 0's total over the sum of the positive totals."""
    positive = float(np.maximum(totals_N, 0).sum())
    return float(totals_N[0]) / positive if positive > 0 else 0.0


def distance(totals_N: Floats) -> float:
    """Client 0's distance from the mean of the others, in their standard deviations."""
    return float((totals_N[0] - totals_N[1:].mean()) / totals_N[1:].std(ddof=1))


def fidelity(halves: Sequence[tuple[Totals, Totals]], name: str) -> float:
    """Mean correlation of a score on one half with FedSV on the other."""

    def correlation(first_N: Floats, second_N: Floats) -> float:
        return float(stats.spearmanr(first_N, second_N).statistic)

    both = [correlation(a[name], b["fedsv"]) + correlation(b[name], a["fedsv"]) for a, b in halves]
    return float(np.mean(both)) / 2


def ratio(over: Sequence[float], under: Sequence[float]) -> str:
    """The ratio of two means over the same seeds, and its bootstrap interval."""
    first, second = np.array(over), np.array(under)
    drawn = np.random.default_rng(1).integers(len(first), size=(RESAMPLES, len(first)))
    low, high = np.quantile(first[drawn].mean(axis=1) / second[drawn].mean(axis=1), [0.025, 0.975])
    return f"{first.mean() / second.mean():.2f} [{low:.2f}, {high:.2f}]"


def table(pairs: Sequence[Pair]) -> str:
    """The Markdown table."""
    moves: dict[str, Callable[[Pair, str], float]] = {
        "share": lambda p, e: share(p.attacked[e]) - share(p.honest[e]),
        "ranks": lambda p, e: float(ranks(p.honest[e])[0] - ranks(p.attacked[e])[0]),
        "distance": lambda p, e: distance(p.attacked[e]) - distance(p.honest[e]),
    }
    heads = [f"{name}, change | ratio" for name in moves]
    lines = [f"| score | fidelity to FedSV | {' | '.join(heads)} |", "|---" * (2 + 2 * len(moves)) + "|"]
    truth = [fidelity(p.halves, "fedsv") for p in pairs]
    for name in pairs[0].honest:
        cells = [name, ratio([fidelity(p.halves, name) for p in pairs], truth)]
        for move in moves.values():
            changes = [move(p, name) for p in pairs]
            mean, width = paired_interval(changes)
            cells += [f"{mean:+.3f} ± {width:.3f}", ratio(changes, [move(p, "fedsv") for p in pairs])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{len(pairs)} seeds; FedSV's own correlation between halves {np.mean(truth):.3f}."])


def found(folder: Path, name: str, seeds: range) -> list[tuple[int, Path]]:
    """Finished runs of an experiment by seed.

    Raises:
        UserError: fewer than two.
    """
    runs = {}
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        experiment = manifest["experiment"]
        if experiment["name"] == name and manifest["status"] == "DONE" and experiment["seed"] in seeds:
            runs[int(experiment["seed"])] = path.parent
    if len(runs) < 2:
        raise UserError(f"two finished runs of {name} at least expected in {folder}, found {len(runs)}")
    return sorted(runs.items())


def main() -> int:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", type=Path)
    parser.add_argument("name")
    parser.add_argument("--seeds", default="0..19", help="a range such as 0..19")
    parser.add_argument("--evaluator", action="append", default=[], help="as of replay; default: those of the docs")
    arguments = parser.parse_args()
    match = re.fullmatch(r"(\d+)\.\.(\d+)", arguments.seeds)
    if match is None:
        raise UserError(f"--seeds: a range such as 0..19 expected, got {arguments.seeds!r}")
    if not is_launched():
        return run_child("scripts.robust_scores", *sys.argv[1:]).returncode
    exit_with_launcher()
    settle_down()
    tables = [FEDSV, *(evaluator_table(text) for text in arguments.evaluator or DEFAULT)]
    pairs = []
    for seed, run in found(arguments.runs, arguments.name, range(int(match[1]), int(match[2]) + 1)):
        pairs.append(pair(run, seed, tables))
        sys.stderr.write(f"seed {seed} of {run.name}\n")
    sys.stdout.write(f"{table(pairs)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
