"""`steelyard run --launcher compose` as a person starts it: the same bits, nothing left, going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.containers.project import project_name

ROOT = Path(__file__).parents[2]
PATIENCE_S = 1500.0  # bounds every command of a test, on a machine that has much else to do; never what a test measures
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE_S + 100)]
# A busy machine must not decide who takes part; neither figure changes a score of a run in which everybody does.
UNHURRIED = ("--set", "protocol.join_timeout_s=900", "--set", "protocol.round_deadline_s=900")
TINY = """
name = "tiny"
seed = 3
rounds = 4
[data]
samples_per_client = 40
validation = 30
test = 40
[clients]
count = 2
[attack]
name = "label_flip"
compare_honest = false
[protocol]
join_timeout_s = 300.0
round_deadline_s = 900.0
lease_s = 150.0
[[evaluators]]
name = "fedsv_loss"
kind = "fedsv"
utility = "loss"
"""


class Command:
    """Starts steelyard commands, and ends those that still run by their ids."""

    def __init__(self, engine: Any, wait_until: Callable[..., Any]) -> None:
        self.engine = engine
        self.wait_until = wait_until
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.main", *arguments],
            cwd=ROOT,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def left_of(self, run: Path) -> list[str]:
        """The containers and networks of a run that are there."""
        networks = [net.name for net in self.engine.client.networks.list() if net.name.startswith(project_name(run))]
        return [*self.engine.states(project_name(run)), *networks]


@pytest.fixture
def steelyard(engine: Any, tag: str, wait_until: Callable[..., Any], tmp_path: Path) -> Iterator[Command]:
    assert tag
    made = Command(engine, wait_until)
    yield made
    for log in sorted(tmp_path.rglob("roles/*/log.txt")):  # pytest shows it where the test failed
        print(f"--- {log.relative_to(tmp_path)}", *log.read_text(encoding="utf-8").splitlines()[-12:], sep="\n")
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_quickstart_gives_the_bits_of_local_processes(
    steelyard: Command, numbers_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    runs = {}
    for launcher in ("local", "compose"):
        out = tmp_path / launcher
        arguments = ("run", "experiments/quickstart.toml", *UNHURRIED, "--launcher", launcher, "--out", str(out))
        code, said, err = steelyard.run(*arguments)
        assert (code, err) == (0, "")
        runs[launcher] = next(out.glob("quickstart-*"))
    assert runs["local"].name == runs["compose"].name, "how a run is launched is no part of its hash"
    assert len(numbers_of(runs["local"])) == 8 * (10 * 4 + 1)
    for twin in (".", "honest"):
        assert numbers_of(runs["compose"] / twin) == numbers_of(runs["local"] / twin)
    summary = json.loads((runs["compose"] / "summary.json").read_text(encoding="utf-8"))
    assert "containers, enforced by the kernel" in summary["boundary"]
    assert "containers, enforced by the kernel" in said
    assert not [path for path in runs["compose"].rglob("*") if path.is_symlink() and path.name != "honest"]
    assert (runs["compose"] / "roles" / "client-3" / "log.txt").read_text(encoding="utf-8").count("submitted") == 8
    assert steelyard.left_of(runs["compose"]) == []


def test_a_run_whose_launcher_is_killed_or_interrupted_goes_on(
    steelyard: Command, numbers_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY, encoding="utf-8")
    code, _, err = steelyard.run("run", str(experiment), "--out", str(tmp_path / "local"))
    assert code == 0, err
    undisturbed = next((tmp_path / "local").glob("tiny-*"))
    run = tmp_path / "boxed" / undisturbed.name
    launcher = steelyard.start("run", str(experiment), "--out", str(run.parent), "--launcher", "compose")
    steelyard.wait_until((run / "metrics.csv").exists, "the first round")
    launcher.kill()
    steelyard.wait_until(lambda: not steelyard.left_of(run), "the end of its containers")
    launcher = steelyard.start("run", "--resume", str(run), "--launcher", "compose")
    steelyard.wait_until(lambda: "server" in steelyard.engine.states(project_name(run)), "the server")
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(PATIENCE_S) == 130
    assert steelyard.left_of(run) == []
    code, _, err = steelyard.run("run", "--resume", str(run))
    assert code == 2, "its roles were prepared for containers"
    assert "resume it with --launcher compose" in err
    code, _, err = steelyard.run("run", "--resume", str(run), "--launcher", "compose")
    assert code == 0, err
    assert numbers_of(run) == numbers_of(undisturbed)


def test_a_killed_server_is_told_and_the_run_goes_on(
    steelyard: Command, numbers_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY.replace("rounds = 4", "rounds = 30"), encoding="utf-8")
    launcher = steelyard.start("run", str(experiment), "--out", str(tmp_path), "--launcher", "compose")
    run = steelyard.wait_until(lambda: next(tmp_path.glob("tiny-*/metrics.csv"), None), "the first round").parent
    steelyard.engine.containers(project_name(run))["server"].kill()
    _, err = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 1
    assert err == "steelyard: the server's container was ended by SIGKILL; resume the run to go on\n"
    assert steelyard.left_of(run) == []
    settled = len(numbers_of(run))
    assert settled > 0, "what was settled is in its place"
    code, _, err = steelyard.run("run", "--resume", str(run), "--launcher", "compose")
    assert code == 0, err
    assert len(numbers_of(run)) == 30 * (2 + 1)


def test_a_mistake_that_ends_every_client_ends_the_run(steelyard: Command, tmp_path: Path) -> None:
    """The containers have no GPU, which each client finds by itself; the server would wait for them all the while."""
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    runs = ("run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path), "--launcher", "compose", *UNHURRIED)
    code, said, err = steelyard.run(*runs, "--set", 'placement.clients=["cuda:0"]')
    words = "[placement] clients = 'cuda:0': a CUDA device expected, torch sees 0 here"
    assert (code, err.count("steelyard: ")) == (2, 1)
    assert err.splitlines()[-1].startswith(f"steelyard: {words}")
    assert said.count("ended early") == 2
    (run,) = tmp_path.glob("tiny-*")
    assert steelyard.left_of(run) == []


def test_a_mistake_of_the_experiments_is_told_in_one_line(steelyard: Command, tmp_path: Path) -> None:
    code, _, err = steelyard.run(
        "run", "experiments/quickstart.toml", "--out", str(tmp_path), "--launcher", "compose", "--subnets", "8.8.8.0/24"
    )
    assert (code, err) == (
        2,
        "steelyard: --subnets: a private range expected, 8.8.8.0/24 is not; take one within 10.0.0.0/8\n",
    )
