"""Scoring workers, real processes: one process's bits, and an error with its reason whatever happens to them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steelyard.bundle import hand_over
from steelyard.config import Shape
from steelyard.errors import RunFailedError, UserError, WaitTimeoutError
from steelyard.models import FlatModel
from steelyard.scoring.coalitions import all_masks
from steelyard.scoring.evaluation import Setup
from steelyard.scoring.pool import WorkerPool
from steelyard.scoring.utility import Utility

DIGITS = Shape(channels=1, height=8, width=8, classes=10)
DATA = {"images": np.zeros((2, 1, 8, 8), np.float32), "labels": np.zeros(2, np.int64)}
SETUP: dict[str, Any] = asdict(Setup(model="cnn8", shape=DIGITS, inner_batch=2, path="plain", device="cpu", worker=0))
ROUND: tuple[Any, ...] = ([np.zeros(9930, np.float32)] * 2, [1])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As every process of a run; the bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def utility(workers: int) -> Utility:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(40, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (40,), generator=generator)
    return Utility(FlatModel("cnn8", DIGITS), images, labels, inner_batch=16, path="im2col", workers=workers)


def round_of(seed: int) -> tuple[torch.Tensor, list[torch.Tensor], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    state = FlatModel("cnn8", DIGITS).initial_state(generator)
    return state, [0.05 * torch.randn(len(state), generator=generator) for _ in range(5)], [4, 1, 7, 2, 5]


def test_two_workers_give_the_bits_of_one_process_until_one_is_killed() -> None:
    told: list[tuple[int, int]] = []
    alone = [utility(1).round(*round_of(seed)) for seed in (1, 2)]
    with closing(utility(2)) as shared:
        games = [shared.round(*round_of(seed), progress=lambda *p: told.append(p)) for seed in (1, 2)]
        for rows in (all_masks(5)[::3], all_masks(5)[::-1]):  # both rounds in turns, some coalitions known already
            for ours, theirs in zip(games, alone, strict=True):
                assert ours.view("loss").values(rows).tolist() == theirs.view("loss").values(rows).tolist()
                assert np.array_equal(ours.view("accuracy").examples(rows), theirs.view("accuracy").examples(rows))
        assert told == [(i, 11) for i in range(1, 12)] * 2 + [(i, 21) for i in range(1, 22)] * 2
        assert shared._pool is not None
        processes = [worker.process for worker in shared._pool._workers]
        processes[1].kill()
        with pytest.raises(RunFailedError, match="scoring worker 1 ended by signal 9: it left no word"):
            shared.round(*round_of(3)).view("loss").values(all_masks(5))
        assert [process.poll() for process in processes] == [-9, -9], "nothing is left of the others"
        with pytest.raises(RunFailedError, match="ended before"):
            shared.round(*round_of(3)).view("loss").values(all_masks(5))


def test_workers_read_a_recorded_round_where_it_lies(tmp_path: Path) -> None:
    state, updates, samples = round_of(1)
    files = [hand_over(tmp_path / str(i), {"state": one.numpy()}) for i, one in enumerate((state, *updates))]
    expected = utility(1).round(state, updates, samples).view("loss").values(all_masks(5)[::4])
    with closing(utility(2)) as shared:
        game = shared.round(state, updates, samples, files=files)
        assert game.view("loss").values(all_masks(5)[::4]).tolist() == expected.tolist()
        assert shared._pool is not None
        assert list((shared._pool._folder / "round-1").iterdir()) == [], "nothing is written once more"
        with pytest.raises(ValueError, match="6 files expected, of global state and updates, got 5"):
            shared.round(state, updates, samples, files=files[:-1])


def test_a_worker_that_fails_says_why() -> None:
    with closing(WorkerPool({**SETUP, "model": "cnn9"}, DATA, 1)) as pool:
        pool.open("round 1", *ROUND)
        with pytest.raises(RunFailedError, match="worker 0 ended by exit code 2: unknown model 'cnn9'; did you mean"):
            list(pool.outcomes([b"\1"]))


def test_a_worker_that_hangs_is_not_waited_for_for_ever() -> None:
    with closing(WorkerPool(SETUP, DATA, 1, answer_s=0.2)) as pool:
        pool._workers[0].process.send_signal(signal.SIGSTOP)
        pool.open("round 1", *ROUND)
        with pytest.raises(WaitTimeoutError, match=r"scoring worker 0 gave no outcome for 0\.2 s, 2 are due"):
            list(pool.outcomes([b"\0", b"\1"]))


def test_a_worker_that_is_asked_nothing_for_rounds_goes_on_with_the_next() -> None:
    games = [round_of(seed) for seed in (1, 2, 3)]
    keys = (all_masks(5)[3:4], all_masks(5)[4:5], all_masks(5))
    expected = [utility(1).round(*game).view("loss").values(masks) for game, masks in zip(games, keys, strict=True)]
    with closing(utility(2)) as shared:
        assert shared._pool is not None
        idle = shared._pool._workers[1].process
        idle.send_signal(signal.SIGSTOP)
        for game, masks, values in zip(games, keys, expected, strict=True):
            if len(masks) > 1:
                idle.send_signal(signal.SIGCONT)
            assert shared.round(*game).view("loss").values(masks).tolist() == values.tolist()


STARTER = """
import json, signal, sys
import numpy as np
from steelyard.scoring.pool import WorkerPool
data = {"images": np.zeros((2, 1, 8, 8), np.float32), "labels": np.zeros(2, np.int64)}
pool = WorkerPool(json.loads(sys.argv[1]), data, 1)
print(*(worker.process.pid for worker in pool._workers), flush=True)
signal.pause()
"""


def test_workers_end_with_the_process_that_started_them(shell: Any) -> None:
    starter = shell.python("-c", STARTER, json.dumps(SETUP))
    assert starter.stdout is not None
    pids = [int(word) for word in starter.stdout.readline().split()]
    assert [shell.runs(pid) for pid in pids] == [True]
    starter.kill()
    shell.wait_until(lambda: not any(shell.runs(pid) for pid in pids), "the end of the workers")


@pytest.mark.slow  # test_every_evaluator.py has workers in a live run and in its replay too
def test_a_run_with_workers_is_the_same_run(undisturbed: Any, shell: Any) -> None:
    run = shell.run("--launcher", "inline", "--set", "scoring.workers=2")
    assert run.name == undisturbed.run.name, "workers are not part of what was asked"
    look = shell.look(run)
    assert (look.scores, look.models) == (undisturbed.scores, undisturbed.models)
    code, said, err = shell.steelyard("replay", str(run))
    assert (code, err) == (0, "")
    assert said.count("27 of 27 scores and 3 of 3 models are bit-equal to the live run") == 2


def test_a_missing_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    images, labels = torch.from_numpy(DATA["images"]), torch.from_numpy(DATA["labels"])
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"device = 'cuda': a CUDA device expected"):
            Utility(FlatModel("cnn8", DIGITS), images, labels, inner_batch=2, device="cuda", workers=workers)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_cuda_device_agrees_with_the_cpu(workers: int) -> None:
    images, labels = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 10
    values = []
    for device in ("cpu", "cuda"):
        model = FlatModel("cnn8", DIGITS)
        with closing(Utility(model, images, labels, inner_batch=16, device=device, workers=workers)) as made:  # type: ignore[arg-type]
            values.append(made.round(*round_of(1)).view("loss").values(all_masks(5)))
    assert values[1] == pytest.approx(values[0], rel=1e-5)
