"""Experiments as torchrun jobs: one rank per role, restarted as a group, with the scores of any other launcher."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public; the annotations forget it

from deploy.torchrun import board
from deploy.torchrun.job import failure
from deploy.torchrun.rank import experiment_of, rank_environment
from steelyard.errors import RunFailedError, UserError, WaitTimeoutError

pytestmark = pytest.mark.timeout(400)  # several waits, each bounded, on a loaded machine

JOB = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--max-restarts", "1")
ALONE = ("--set", "attack.compare_honest=false")


def rank_of(folder: Path) -> int:
    """The process that is the client of a role folder: the one that holds its log open; 0 when there is none yet."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text(encoding="utf-8").split("\0") if entry.name.isdigit() else []
            if "deploy.torchrun" in words and (entry / "fd/1").readlink() == folder / "log.txt":
                return int(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return 0


@pytest.mark.slow
def test_a_group_restarts_when_a_rank_is_killed_and_its_scores_are_those_of_any_run(
    undisturbed: Any, shell: Any
) -> None:
    slow = "network.faults=[{client=2, round=3, kind='slow_compute', factor=4}]"
    options = ("--out", str(shell.out), *ALONE, "--set", slow)
    job = shell.python(*JOB, "--nproc-per-node", "4", "-m", "deploy.torchrun", shell.experiment, *options)
    look = shell.look(shell.the_run())
    shell.wait_until(lambda: look.events("fetched", client=1), "the first model of client 1")
    victim = rank_of(look.run / "roles" / "client-1")
    os.kill(victim, signal.SIGSTOP)
    shell.wait_until(
        lambda: {e["client"] for e in look.events("received", round=len(look.events("round_opened")))} == {0, 2},
        "a round that waits for client 1 alone",
    )
    number = len(look.events("round_opened"))
    os.kill(victim, signal.SIGKILL)
    code, said, _ = shell.finish(job)
    assert (code, f"{look.run} is done\n" in said) == (0, True)
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models)
    assert len(look.events("server_started")) == 2, "the group started twice"
    assert len(look.events("received", round=number)) == 3, "what had arrived was not sent again"
    assert not shell.runs(victim)
    work, took = look.pace(client=2, number=3)
    assert took > 3.9 * work - 0.01, "a fault that is the client's own doing befalls a rank too"


@pytest.mark.slow
def test_the_command_runs_both_twins_as_jobs(undisturbed: Any, shell: Any) -> None:
    run = shell.run("--launcher", "torchrun")
    for each, other in ((run, undisturbed.run), (run / "honest", undisturbed.run / "honest")):
        assert shell.look(each).scores == shell.look(other).scores
        assert json.loads((each / "manifest.json").read_text(encoding="utf-8"))["launcher"] == "torchrun"


def test_too_few_ranks_are_a_mistake_told_in_one_line_and_tried_once(shell: Any) -> None:
    job = shell.python(
        *JOB, "--nproc-per-node", "2", "-m", "deploy.torchrun", shell.experiment, "--out", str(shell.out)
    )
    code, _, err = shell.finish(job)
    assert code == 1
    words = "4 ranks expected, the server and 3 clients, torchrun started 2; raise --nproc-per-node or --nnodes"
    assert f"steelyard: {words}\n" in err
    assert isinstance(failure(err, shell.out), UserError)
    assert not list(shell.out.glob("*/manifest.json"))


def test_a_rank_waits_for_the_next_run_as_long_as_rank_0_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves for good in the first of many rounds asks long before the next run begins."""
    host = "127.0.0.1"
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(board, "STEP_TIMEOUT_S", 2.0)
    lead, pause = board.Board(), threading.Event()
    with ThreadPoolExecutor(1) as rank:
        asked = rank.submit(lambda: board.Board().ask(1, "the honest twin"))
        for _ in range(30):
            lead.live()
            pause.wait(0.1)
        while not asked.done():
            lead.answer("the attacked run", "127.0.0.1:9", Path("roles"), [0], 2)
            pause.wait(0.1)
        step = asked.result()
        assert step is not None
        assert (step.id, step.client) == ("the attacked run", 0)
        with pytest.raises(WaitTimeoutError, match=r"told rank 1 of no server, and gave no sign of life for 2 s$"):
            rank.submit(lambda: board.Board().ask(1, "the attacked run")).result()


def test_a_job_that_ends_without_a_word_of_ours_can_be_resumed() -> None:
    error = failure("Signal 9 (SIGKILL) received by PID 7", Path("torchrun.txt"))
    assert isinstance(error, RunFailedError)
    assert "resume the run to go on" in str(error)


def test_a_job_that_a_signal_ends_says_which(shell: Any) -> None:
    """It is no bug, neither ours nor the user's, as torchrun's own exception would be told."""
    up, rank = shell.folder / "up", shell.folder / "rank.py"
    rank.write_text(f"import time\nopen({str(up)!r}, 'w').close()\ntime.sleep(100)\n", encoding="utf-8")
    options = ("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "1")
    job = shell.python("-m", "deploy.torchrun.job", *options, str(rank))
    shell.wait_until(up.exists, "the rank")
    job.terminate()
    code, _, err = shell.finish(job)
    assert (code, err.splitlines()[-1]) == (1, "steelyard: torchrun was ended by SIGTERM; resume the run to go on")


def test_a_rank_without_torchrun_says_what_it_needs(shell: Any) -> None:
    code, _, err = shell.finish(shell.python("-m", "deploy.torchrun", shell.experiment, env={"RANK": ""}))
    assert (code, err.count("\n")) == (2, 1)
    assert "a start by torchrun expected" in err


def test_ranks_are_counted_and_rank_0_goes_by_torchruns_name_for_its_host(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = ("-m", "deploy.torchrun", "--count", shell.experiment, "--set", "clients.absent=[1]")
    assert shell.finish(shell.python(*count))[:2] == (0, "3\n")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    for given, used in (("rank0:4711", "10.0.0.7:4711"), ("127.0.0.1:0", "127.0.0.1:0")):
        settings = argparse.Namespace(experiment=Path(shell.experiment), overrides=[f"transport.address={given}"])
        assert experiment_of(settings).transport.address == used


def test_a_rank_inherits_nothing_but_its_place_and_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "DNNL_VERBOSE"):
        monkeypatch.setenv(name, "7")
    job = {"WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1", "OTHER": "x"}
    gpus = {"CUDA_VISIBLE_DEVICES": "4,5"}
    client, server = (rank_environment({**job, **gpus, "RANK": rank}) for rank in ("3", "0"))
    assert (client["OMP_NUM_THREADS"], client["MKL_NUM_THREADS"], client["RANK"]) == ("1", "1", "3")
    assert not {"DNNL_VERBOSE", "OTHER"} & client.keys()
    assert client["CUDA_VISIBLE_DEVICES"] == "5", "ranks take the GPUs of their node in turn"
    assert server["CUDA_VISIBLE_DEVICES"] == "4,5", "the server spreads coalitions over all"
    assert "CUDA_VISIBLE_DEVICES" not in rank_environment({**job, "RANK": "1"})
