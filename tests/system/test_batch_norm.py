"""A large network with batch normalization on colour images, as processes over gRPC: its bits by run and by replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.bundle import read_arrays
from steelyard.recording import Recordings

LIMIT_S = 600.0  # for one command
EXPERIMENT = """
name = "normalized"
seed = 1
rounds = 2
[data]
dataset = "cifar10"
folder = "{folder}"
partition = "iid"
samples_per_client = 24
validation = 16
test = 20
[model]
name = "resnet18"
[training]
epochs = 1
batch_size = 8
learning_rate = 0.05
[clients]
count = 4
[protocol]
round_deadline_s = 600
join_timeout_s = 600
lease_s = 120
[transport]
timeout_s = 300
[[evaluators]]
name = "loo_accuracy"
kind = "loo"
utility = "accuracy"
[[evaluators]]
name = "loo_loss"
kind = "loo"
utility = "loss"
"""


def finish(process: Any) -> str:
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (0, ""), out
    return str(out)


@pytest.mark.slow
@pytest.mark.timeout(1300)  # half a minute of work; the bounds are for a loaded machine
def test_resnet18_runs_and_replays_to_the_same_bits(shell: Any, make_cifar: Callable[[int], Path]) -> None:
    experiment = shell.folder / "normalized.toml"
    experiment.write_text(EXPERIMENT.format(folder=make_cifar(14)), encoding="utf-8")
    finish(shell.start("run", str(experiment), "--out", str(shell.out)))
    (run,) = shell.out.glob("normalized-*")
    look = shell.look(run)
    assert [event["received"] for event in look.events("round_closed")] == [[0, 1, 2, 3]] * 2
    assert len(set(look.models)) == 2
    assert any(float(value) for _, _, name, value in look.scores if name == "loo_loss")

    recordings = Recordings(run)
    models = [read_arrays(recordings.global_file(number)) for number in (1, 2, 3)]
    means, variances = ([model[f"1.running_{of}"] for model in models] for of in ("mean", "var"))
    assert (means[0] == 0).all()
    assert (variances[0] == 1).all()
    for of_round in (means, variances):
        assert not np.array_equal(of_round[1], of_round[2]), "statistics go on from round to round"
    assert min(values.min() for model in models for name, values in model.items() if name.endswith("running_var")) >= 0
    assert not [name for name in models[0] if "num_batches" in name]

    said = finish(shell.start("replay", str(run)))
    assert "16 of 16 scores and 2 of 2 models are bit-equal to the live run" in said
