"""`steelyard replay`: recompute every score of a run from its recordings and compare it with the live one, exactly.

With `--evaluator`, other evaluators score the recorded rounds too; their rows go to scores-replayed.csv beside
scores.csv, which no replay ever writes. With `--defence`, another rule judges the recorded updates as if it had been
there all along, though it changes no model: its weights and suspicions go to defences-replayed.csv, and the run's
evaluators score the coalitions that it would have joined. The work runs in a child process with the environment of a
run's processes, since thread counts and library settings of the caller's shell could change a bit: `python -m
scripts.replay` is that child.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
import tomllib
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.endings import run_child
from deploy.launch import read_manifest, status
from deploy.prepare import server_folder
from steelyard.bundle import read_arrays, write_text
from steelyard.config import ServerHalf, load_half
from steelyard.csv_rows import Row as LiveRow
from steelyard.csv_rows import read_rows
from steelyard.errors import UserError
from steelyard.process import exit_with_launcher, run_main, settle_down
from steelyard.recording import ROLES, ClosedRound, Recordings
from steelyard.report.records import REPLAYED
from steelyard.sweep import value_text

if TYPE_CHECKING:
    from steelyard.scoring.replay import RoundScorer

Row = dict[str, Any]
Key = tuple[str, str, str]

SHOWN = 5  # complaints of one kind; the rest are counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("run", type=Path, help="a run directory; its honest twin is replayed too")
    parser.add_argument(
        "--evaluator",
        action="append",
        default=[],
        metavar="NAME",
        help="score the recorded rounds with this one too: a kind, or a table such as "
        '\'{kind = "shapley", utility = "loss", calls = 200}\'; may be given several times',
    )
    parser.add_argument(
        "--defence",
        action="append",
        default=[],
        metavar="NAME",
        help="judge the recorded updates by this rule too: its name, or a [defence] table such as "
        "'{name = \"krum\", f = 2}'; may be given several times",
    )
    parser.add_argument("--no-scores", action="store_true", help="with --defence: weights and suspicions alone")


def act(arguments: argparse.Namespace) -> int:
    """Replay in a child process; returns 0 when every value is equal to the last bit, else 1."""
    if not status(arguments.run):
        raise UserError(f"a run directory expected, {arguments.run} has no manifest.json")
    tables = [evaluator_table(text) for text in arguments.evaluator]
    judged = {"defences": [defence_table(text) for text in arguments.defence], "scores": not arguments.no_scores}
    try:
        asked = [json.dumps(tables), json.dumps(judged)]
    except TypeError as error:  # TOML has dates and times, too
        raise UserError(
            f"--evaluator, --defence: numbers, strings, lists and tables expected as parameters: {error}"
        ) from None
    return run_child("scripts.replay", str(arguments.run), *asked).returncode


def evaluator_table(text: str) -> Row:
    """An `[[evaluators]]` table from the command line: a kind, or an inline TOML table.

    `utility` defaults to accuracy, `name` to KIND_UTILITY. The child checks the rest.

    Raises:
        UserError: neither a word nor an inline table.
    """
    table: Row = {"kind": text.strip()}
    if text.strip().startswith("{"):
        try:
            table = dict(tomllib.loads(f"table = {text}")["table"])
        except (ValueError, RecursionError) as error:
            raise UserError(f"--evaluator: a kind or an inline TOML table expected, got {text!r}: {error}") from None
    table.setdefault("utility", "accuracy")
    table.setdefault("name", f"{table.get('kind')}_{table['utility']}")
    return table


def defence_table(text: str) -> Row:
    """A `[defence]` table from the command line: a rule's name, or an inline TOML table.

    Raises:
        UserError: neither a word nor an inline table.
    """
    if not text.strip().startswith("{"):
        return {"name": text.strip()}
    try:
        return dict(tomllib.loads(f"table = {text}")["table"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"--defence: a rule or an inline TOML table expected, got {text!r}: {error}") from None


def replay(run: Path, tables: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Recompute one run's scores and the models they rest on; print what was found.

    Args:
        run: the run directory.
        tables: evaluators to score the recorded rounds with besides.

    Returns:
        Whether nothing is missing among the run's files, and every live value and every aggregated model is equal, bit
        for bit. Of a run that goes on, the round that closed last need not be scored yet.
    """
    from steelyard.scoring.replay import RoundScorer

    half: ServerHalf = load_half(ServerHalf, server_folder(run / ROLES) / "half.json")
    data = read_arrays(server_folder(run / ROLES) / "data.safetensors")
    recordings = Recordings(run)
    live = _live_rows(run)
    _refuse_live_names(tables, live)
    scored = {int(number) for number, _, _ in live}
    launched = status(run)  # "" where the server was started by hand
    finished = launched == "DONE" or (not launched and len(scored) == half.rounds)
    lacking = lacks(run, half.rounds, scored, finished=finished)
    if not finished:
        go_on = "; --resume goes on with it" if launched else ""
        print(f"{run}: this run is not finished: {len(scored)} of {half.rounds} rounds are scored{go_on}")
    with contextlib.closing(RoundScorer(half, data, recordings, [*half.evaluators, *tables])) as scorer:
        rounds = recordings.closed_rounds() if recordings.closed(1) else []
        if not finished and rounds and str(rounds[-1].round) not in {number for number, _, _ in live}:
            rounds.pop()
        equal = _compare(run, scorer, rounds, live, {str(table["name"]) for table in tables})
    for line in lacking:
        print(line)
    return equal and not lacking


def lacks(run: Path, rounds: int, scored: Container[int], *, finished: bool) -> list[str]:
    """What is missing of a run's rounds and of its twin, a line each.

    Args:
        run: the run directory.
        rounds: how many the experiment has.
        scored: the rounds in scores.csv.
        finished: whether all of them should be there.
    """
    recordings = Recordings(run)
    path = run / "metrics.csv"
    measured = {row.whole("round") for row in read_rows(path, ("round",))} if path.exists() else set()
    last, lines = recordings.last_closed(), []
    if lost := recordings.lost_rounds():
        lines.append(f"{_no_closing(recordings, lost[0])}, so rounds {lost[0]} to {last} were not replayed")
    if finished and last < rounds:
        lines.append(f"{recordings.folder}: {rounds} closed rounds of a finished run expected, got {last}")
    for name, there in (("scores.csv", scored), ("metrics.csv", measured)):
        due = range(1, last + 1 if finished else last)  # of a run that goes on, the last one may not be settled yet
        if missing := [str(t) for t in due if t not in there]:
            lines.append(f"{run / name}: rows of every closed round expected, none of round {', '.join(missing)}")
    attack = read_manifest(run)["experiment"]["attack"] if status(run) else {}  # by hand there is no twin
    if attack and attack.get("compare_honest", True) and not (run / "honest").exists():
        lines.append(
            f"{run / 'honest'}: a link to the honest twin expected, as the manifest has one; it was not replayed"
        )
    return lines


def judge(run: Path, table: Mapping[str, Any], *, scores: bool) -> None:
    """Judge a run's recorded updates by another rule, and score its coalitions; add both to the run's replayed files.

    The rule sees the recorded rounds in order and carries its own state; the models stay those of the run.
    """
    from steelyard.report.judged import JUDGED, judged_rows
    from steelyard.scoring.replay import RoundScorer

    half: ServerHalf = load_half(ServerHalf, server_folder(run / ROLES) / "half.json")
    data, recordings = read_arrays(server_folder(run / ROLES) / "data.safetensors"), Recordings(run)
    label = value_text(dict(table))
    if lost := recordings.lost_rounds():
        raise UserError(_no_closing(recordings, lost[0]))
    weighed: list[Row] = []
    scored: list[Row] = []
    with contextlib.closing(RoundScorer(half, data, recordings, None if scores else [], table)) as scorer:
        for closed in recordings.closed_rounds():
            recorded, joined = scorer.read(closed), scorer.join(closed)
            weighed += judged_rows(label, closed.round, recorded.clients, joined.verdict)
            scored += [{**row, "evaluator": f"{row['evaluator']}@{label}"} for row in scorer.rows(closed)]
    if not weighed:
        raise UserError(f"{run}: a round with updates expected, there is none to judge")
    _add(run / JUDGED, weighed, "defence")
    print(f"{run / JUDGED}: {len(weighed)} rows of {label}")
    if scored:
        _add(run / REPLAYED, scored)
        print(f"{run / REPLAYED}: {len(scored)} rows of coalitions joined by {label}")


def _no_closing(recordings: Recordings, number: int) -> str:
    return f"{recordings.place(number)}/closed.json: expected, since a later round closed; it is missing"


def _compare(
    run: Path,
    scorer: RoundScorer,
    rounds: Sequence[ClosedRound],
    live: Mapping[Key, LiveRow],
    added: Container[str],
) -> bool:
    import torch

    from steelyard.recording import read_vector

    equal = models = 0
    rows: list[Row] = []
    recomputed: set[Key] = set()
    for closed in rounds:
        next_D = scorer.join(closed).next_D
        recorded = Recordings(run).global_file(closed.round + 1)
        models += torch.equal(next_D, torch.from_numpy(read_vector(recorded).copy()))
        for row in scorer.rows(closed, spent=_spent(live, closed)):
            if row["evaluator"] in added:
                rows.append(row)
                continue
            key = (str(row["round"]), str(row["client"]), row["evaluator"])
            recomputed.add(key)
            equal += key in live and live[key]["value"] == repr(row["value"])
        print(f"  round {closed.round}: {equal} of {len(recomputed)} values equal so far", flush=True)
    total = len(recomputed)
    print(f"{run}: {equal} of {total} scores and {models} of {len(rounds)} models are bit-equal to the live run")
    scored, replayed = {number for number, _, _ in live}, {str(closed.round) for closed in rounds}
    _complain(run, "a row expected, none there", [key for key in recomputed - set(live) if key[0] in scored])
    last = Recordings(run).last_closed()
    _complain(run, "no row expected", [k for k in set(live) - recomputed if k[0] in replayed or int(k[0]) > last])
    if rows:
        _add(run / REPLAYED, rows)
        print(f"{run / REPLAYED}: {len(rows)} rows of {', '.join(dict.fromkeys(row['evaluator'] for row in rows))}")
    return equal == total == len(live) and models == len(rounds)


def _complain(run: Path, what: str, keys: Collection[Key]) -> None:
    """Print a line for each round and evaluator of some rows of scores.csv, as far as a person would read on."""
    clients: dict[tuple[int, str], list[int]] = {}
    for number, client, evaluator in keys:
        clients.setdefault((int(number), evaluator), []).append(int(client))
    for (round_, name), own in sorted(clients.items())[:SHOWN]:
        who = ", ".join(map(str, sorted(own)))
        print(f"{run / 'scores.csv'}: {what}: round {round_}, {name}, client {who}")
    if len(clients) > SHOWN:
        print(f"{run / 'scores.csv'}: {what}: the same of {len(clients) - SHOWN} more rounds and evaluators")


def _spent(live: Mapping[Key, LiveRow], closed: ClosedRound) -> dict[str, int]:
    """The calls that each evaluator made when the round was live."""
    rows = ((name, row) for (number, _, name), row in live.items() if number == str(closed.round) and "calls" in row)
    return {name: row.whole("calls") for name, row in rows}


def _refuse_live_names(tables: Sequence[Mapping[str, Any]], live: Mapping[Key, LiveRow]) -> None:
    taken = {name for _, _, name in live}
    for table in tables:
        if table["name"] in taken:
            raise UserError(
                f"--evaluator: a name that the run has not scored live expected, got {table['name']!r}; "
                'give it another one: \'{name = "...", kind = "..."}\''
            )


def _add(path: Path, rows: Sequence[Mapping[str, Any]], key: str = "evaluator") -> None:
    """Rewrite a replayed file: rows of the same evaluators (or defences) are replaced, others stay."""
    new = {row[key] for row in rows}
    kept = [row for row in read_rows(path, (key,)) if row[key] not in new] if path.exists() else []
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    writer.writerows({key: repr(v) if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _live_rows(run: Path) -> dict[Key, LiveRow]:
    path = run / "scores.csv"
    if not path.exists():
        raise UserError(f"live scores expected in {path}, there are none yet; let the run settle a round first")
    live: dict[Key, LiveRow] = {}
    for row in read_rows(path, ("round", "client", "evaluator", "value")):
        key = (str(row.whole("round")), str(row.whole("client")), row["evaluator"])
        if key in live:
            raise row.wrong("one row per round, client and evaluator", f"another one of {', '.join(key)}")
        live[key] = row
    return live


def _refuse_damaged(run: Path, *, rows: bool, judged: bool) -> None:
    """Refuse damaged files of earlier replays now: found when lines are to be added, they would cost all the work."""
    from steelyard.report.judged import JUDGED

    for name, key, is_due in ((REPLAYED, "evaluator", rows), (JUDGED, "defence", judged)):
        if is_due and (run / name).exists():
            try:
                list(read_rows(run / name, (key,)))
            except UserError as error:
                raise UserError(f"{error} (lines are to be added to it: mend it or move it away)") from None


def _child() -> int:
    exit_with_launcher()
    settle_down()
    run, tables, judged = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    equal = True
    both = (run, run / "honest") if (run / "honest").exists() else (run,)
    rows = bool(tables or (judged["defences"] and judged["scores"]))
    for each in both:
        _refuse_damaged(each, rows=rows, judged=bool(judged["defences"]))
    for each in both:
        if not judged["defences"] or tables:
            equal = replay(each, tables) and equal
        for table in judged["defences"]:
            judge(each, table, scores=judged["scores"])
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(run_main(_child))
