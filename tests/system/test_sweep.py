"""A tiny sweep as a person runs it: once from end to end, killed in the middle, and with a run that fails."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

pytestmark = pytest.mark.timeout(2000)  # waits are bounded one by one, on a loaded machine

BASE = """
name = "base"
rounds = 1
[data]
samples_per_client = 30
alpha = 0.5
validation = 30
test = 30
[clients]
count = 3
[training]
epochs = 1
[[evaluators]]
name = "fedsv_accuracy"
kind = "fedsv"
utility = "accuracy"
[[evaluators]]
name = "loo_loss"
kind = "loo"
utility = "loss"
"""
SWEEP = """
name = "tiny"
base = "base.toml"
jobs = 2
launcher = "inline"
set = { "transport.tensors" = "memory" }
grid = { seed = "1000..1001" }
variants = [
    { name = "flip", attack = { name = "label_flip" } },
    { name = "rider", attack = { name = "free_rider", clients = [1] } },
]
primary = { variant = "flip", direction = "less" }
contrasts = [{ variant = "rider", against = "flip", evaluator = "loo_loss" }]
"""
PATIENCE_S = 900.0  # for one whole sweep, beside whatever else the machine does
NOT_THE_SAME_TWICE = ("seconds", "bytes")


def written(folder: Path, sweep: str = SWEEP) -> str:
    (folder / "base.toml").write_text(BASE, encoding="utf-8")
    (folder / "tiny.toml").write_text(sweep, encoding="utf-8")
    return str(folder / "tiny.toml")


def table(shell: Any) -> list[dict[str, str]]:
    with (shell.out / "sweeps" / "tiny" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in NOT_THE_SAME_TWICE} for row in rows]


def swept(shell: Any, sweep: str, *arguments: str) -> tuple[int, str, str]:
    """A sweep run to its end: exit code, stdout, stderr."""
    process = shell.start("sweep", sweep, "--out", str(shell.out), *arguments)
    found: tuple[int, str, str] = shell.finish(process, PATIENCE_S)
    return found


def total(shell: Any, run: str, evaluator: str, client: str) -> float:
    return sum(float(v) for _, k, e, v in shell.look(shell.out / run).scores if (k, e) == (client, evaluator))


def test_a_sweep_from_end_to_end(shell: Any) -> None:
    sweep = written(shell.folder)
    code, said, err = swept(shell, sweep)
    assert (code, err) == (0, "")
    assert "tiny: 6 runs, 0 of them done already, 2 at once" in said
    assert [f"{n}/6" in said for n in range(1, 7)] == [True] * 6

    rows = table(shell)
    assert [(row["seed"], row["variant"], row["evaluator"]) for row in rows] == [
        (seed, variant, evaluator)
        for seed in ("1000", "1001")
        for variant in ("flip", "rider")
        for evaluator in ("fedsv_accuracy", "loo_loss")
    ]
    assert [row["client"] for row in rows[:4]] == ["0", "0", "1", "1"]
    assert len({row["honest_run"] for row in rows}) == 2, "one twin per seed"
    for row in rows:
        honest, attacked = (total(shell, row[run], row["evaluator"], row["client"]) for run in ("honest_run", "run"))
        assert (float(row["honest"]), float(row["attacked"])) == pytest.approx((honest, attacked))
        assert float(row["difference"]) == pytest.approx(attacked - honest)

    folder = shell.out / "sweeps" / "tiny"
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text in said
    gain = sum(
        float(row["difference"]) for row in rows if (row["variant"], row["evaluator"]) == ("flip", "fedsv_accuracy")
    )
    assert f"flip minus honest, fedsv_accuracy: {gain / 2:+.4f} [" in text
    assert "| rider - flip   | loo_loss       |" in text
    ET.parse(folder / "intervals.svg")  # noqa: S314 - our own file

    code, said, err = swept(shell, sweep)
    assert (code, err) == (0, "")
    assert "tiny: 6 runs, 6 of them done already" in said
    assert text in said
    check_that_runs_made_otherwise_are_told(shell, sweep)


def check_that_runs_made_otherwise_are_told(shell: Any, sweep: str) -> None:
    """Continues a finished sweep as if one of its runs had been made by another torch, and then of other data."""
    own, other = (next(shell.out.glob(f"base-{name}-*/manifest.json")) for name in ("flip", "rider"))
    manifest = json.loads(own.read_text(encoding="utf-8"))
    ours = manifest["versions"]["torch"]
    manifest["versions"]["torch"] = "1.0"
    own.write_text(json.dumps(manifest), encoding="utf-8")
    title = f"flip seed={manifest['experiment']['seed']}"
    code, said, err = swept(shell, sweep)
    assert (code, err) == (0, "")
    assert f"done with other torch (1.0, here {ours}): {title}\n" in said
    assert "MIXED: torch, see below." in said
    assert f"| torch | {ours}" in said
    assert {row["made"].count("torch 1.0") for row in table(shell) if row["run"] == own.parent.name} == {1}

    shutil.rmtree(other.parent)
    manifest["data"]["sha256"] = "f" * 64
    own.write_text(json.dumps(manifest), encoding="utf-8")
    for arguments in ((), ("--table-only",)):
        code, _, err = swept(shell, sweep, *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert f"ffffffffff of {title}, {own.parent}" in err
    assert not other.parent.exists(), "nothing ran"
    for path in shell.out.glob("*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["data"]["sha256"] = "f" * 64
        path.write_text(json.dumps(manifest), encoding="utf-8")
    code, _, err = swept(shell, sweep)
    assert (code, err.count("\n")) == (2, 1)
    assert "of what is to be had here. Put the right data in place" in err


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_table(shell: Any) -> None:
    sweep = written(shell.folder)
    assert swept(shell, sweep)[0] == 0
    undisturbed = table(shell)
    shell.folder.joinpath("runs").rename(shell.folder / "undisturbed")

    killed = shell.start("sweep", sweep, "--out", str(shell.out))
    shell.wait_until(lambda: finished(shell.out), "the first finished run")
    children = shell.wait_until(lambda: shell.children_of(killed.pid), "a run under way")
    killed.send_signal(signal.SIGKILL)
    shell.finish(killed)
    shell.wait_until(lambda: not any(map(shell.runs, children)), "the end of every process of the sweep")
    done = finished(shell.out)
    assert len(done) < 6

    code, said, err = swept(shell, sweep)
    assert (code, err) == (0, "")
    assert f"{len(done)} of them done already" in said
    assert table(shell) == undisturbed


@pytest.mark.slow
def test_ctrl_c_ends_every_run_and_says_how_to_go_on(shell: Any) -> None:
    sweep = written(shell.folder)
    launcher = shell.start("sweep", sweep, "--out", str(shell.out))
    shell.wait_until(lambda: list(shell.out.glob("*/events.jsonl")), "a run under way")
    children = shell.children_of(launcher.pid)
    launcher.send_signal(signal.SIGINT)
    code, _, err = shell.finish(launcher, PATIENCE_S)
    assert code == 130
    assert f"every process was ended. To go on: steelyard sweep {sweep} --out {shell.out}" in err
    assert not any(map(shell.runs, children))


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(shell: Any) -> None:
    # Nobody can deal 3 clients more samples than there are: this point of the grid fails, twin first.
    text = SWEEP.replace("}\nvariants", ', "data.samples_per_client" = [30, 9000] }\nvariants')
    sweep = written(shell.folder, text.replace('"less"', '"less", at = { "data.samples_per_client" = 30 }'))
    code, said, err = swept(shell, sweep, "--table-only")
    assert (code, said) == (2, "")
    assert "finished runs of sweep tiny expected" in err
    code, said, err = swept(shell, sweep)
    assert code == 1
    assert "steelyard: 6 of 12 runs failed: honest data.samples_per_client=9000 seed=1000: " in err
    assert "flip data.samples_per_client=9000 seed=1001: its honest run failed" in err
    assert "4 of 8 variant runs done" in said
    assert len(table(shell)) == 8
    code, said, err = swept(shell, sweep, "--table-only")
    assert (code, err) == (0, "")
    assert "4 of 8 variant runs done" in said


def finished(out: Path) -> list[Path]:
    """Run directories whose manifest says DONE."""
    manifests = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*/manifest.json")}
    return [run for run, manifest in manifests.items() if manifest["status"] == "DONE"]
