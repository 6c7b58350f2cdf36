"""A defence on live processes: over gRPC and in one process the same bits, and a replay finds them again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steelyard.report.records import read_metrics

DEFENCE = '{name = "centred_clipping", tau = 0.2, pre = ["nnm"]}'
SETTINGS = (
    "--set",
    f"defence={DEFENCE}",
    "--set",
    "clients.count=4",
    "--set",
    "attack.compare_honest=false",
    "--set",
    "rounds=2",
)


@pytest.mark.slow  # the rules, their states and their scores have fast tests of their own
def test_a_defended_run_has_the_same_bits_over_any_launcher_and_replays(shell: Any) -> None:
    run = shell.run(*SETTINGS)
    look = shell.look(run)
    scores, models = look.scores, look.models
    folders = sorted((run / "roles").iterdir())
    told = {folder.name for folder in folders if "centred_clipping" in (folder / "half.json").read_text("utf-8")}
    assert told == {"server"}, "no client is told of the defence"
    metrics = read_metrics(run)
    assert all(set(row.suspicion) == set(row.due) == set(row.weights) == {0, 1, 2, 3} for row in metrics)
    assert max(max(row.suspicion.values()) for row in metrics) > 1.0, "something was clipped"
    states = [path.parent.name for path in sorted(run.glob("recordings/*/defence.safetensors"))]
    assert states == ["round-0002"], "the last settled round's alone"

    code, said, err = shell.steelyard("replay", str(run))
    assert (code, err) == (0, "")
    assert "24 of 24 scores and 2 of 2 models are bit-equal to the live run" in said
    code, said, err = shell.steelyard("replay", str(run), "--defence", DEFENCE)
    assert (code, err) == (0, "")
    live = [(row.round, k, row.weights[k], row.suspicion[k]) for row in metrics for k in sorted(row.weights)]
    judged = [line.rsplit(",", 5) for line in (run / "defences-replayed.csv").read_text("utf-8").splitlines()[1:]]
    assert [(int(t), int(k), float(w), float(s)) for _, t, k, w, _, s in judged] == live
    replayed = (run / "scores-replayed.csv").read_text("utf-8").splitlines()[1:]
    assert len(replayed) == 24

    shell.run("--force", "--launcher", "inline", "--set", "transport.tensors=memory", *SETTINGS)
    again = shell.look(run)
    assert (again.scores, again.models) == (scores, models)
    plain = json.loads((run / "manifest.json").read_text("utf-8"))["experiment"]["defence"]
    assert plain["tau"] == 0.2


def test_a_mistake_in_the_table_is_told_before_anything_runs(shell: Any) -> None:
    code, _, err = shell.finish(shell.start_run("--set", 'defence={name = "krum", f = 2}'))
    assert code == 2
    assert "N >= 2f + 3 expected, that is at least 7 updates for f = 2, got 3" in err
    assert not shell.out.exists()
