"""Rounds that the server settles under a defence: what is carried survives a kill, and scoring by rule and by mean."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from deploy.prepare import prepare, server_folder
from server.ledger import Ledger
from server.settlement import Settlement
from steelyard.bundle import raw, read_arrays, write
from steelyard.config import Experiment, ServerHalf, load_half
from steelyard.data.deal import deal
from steelyard.errors import UserError
from steelyard.parsing import parse
from steelyard.recording import ClosedRound, Recordings, read_vector
from steelyard.scoring.replay import RoundScorer
from steelyard.seeding import torch_generator

ROUNDS = 4
TABLE: dict[str, Any] = {
    "name": "defended",
    "rounds": ROUNDS,
    "clients": {"count": 4},
    "data": {"partition": "iid", "samples_per_client": 20, "validation": 30, "test": 30},
    "evaluators": [{"name": "fedsv_loss", "kind": "fedsv", "utility": "loss"}],
}


def server(folder: Path, defence: dict[str, Any], **changes: Any) -> tuple[ServerHalf, dict[str, Any]]:
    experiment = parse(Experiment, {**TABLE, "defence": defence, **changes}, "test")
    prepare(experiment, folder)
    half: ServerHalf = load_half(ServerHalf, server_folder(folder) / "half.json")
    return half, read_arrays(server_folder(folder) / "data.safetensors")


def settle(half: ServerHalf, data: dict[str, Any], run: Path, number: int) -> None:
    """One start of the server, which settles one round; round 3 misses client 1, round 2 is void."""
    recordings = Recordings(run)
    with closing(Ledger(run)) as ledger, closing(Settlement(half, data, recordings, ledger)) as settlement:
        settlement.write_initial_model()
        received = (0, 2, 3) if number == 3 else (0, 1, 2, 3)
        for client in received:
            size = sum(spec.nbytes // 4 for spec in settlement.specs)
            update = 0.05 * torch.randn(size, generator=torch_generator(0, "update", number, client))
            write(recordings.update_file(number, client), settlement.specs, raw(update.numpy()))
        closed = ClosedRound(round=number, received=received, missing=(), void=number == 2, reason="test")
        settlement.settle(closed)


def models(run: Path) -> list[bytes]:
    recordings = Recordings(run)
    return [np.array(read_vector(recordings.global_file(t))).tobytes() for t in range(1, ROUNDS + 2)]


@pytest.mark.parametrize(
    "defence",
    [
        {"name": "norm_clipping"},
        {"name": "centred_clipping", "tau": 1.0},
        {"name": "foolsgold"},
        {"name": "fldetector", "window": 2},
        {"name": "fltrust", "root": 20},
        {"name": "flame", "pre": ["nnm"]},
    ],
    ids=lambda table: str(table["name"]),
)
def test_a_killed_server_goes_on_with_the_same_bits(
    defence: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, data = server(tmp_path / "roles", defence)
    for number in range(1, ROUNDS + 1):
        settle(half, data, tmp_path / "run", number)
    before: Callable[..., None] = Ledger.settle

    def die(*_: Any) -> None:
        raise RuntimeError("killed after the checkpoint, before the round counts as settled")

    for number in range(1, ROUNDS + 1):
        monkeypatch.setattr(Ledger, "settle", die)
        with pytest.raises(RuntimeError, match="killed"):
            settle(half, data, tmp_path / "other", number)
        monkeypatch.setattr(Ledger, "settle", before)
        settle(half, data, tmp_path / "other", number)
    assert models(tmp_path / "run") == models(tmp_path / "other")

    def values(run: Path) -> list[list[str]]:
        return [line.split(",")[:4] for line in (run / "scores.csv").read_text("utf-8").splitlines()]

    assert values(tmp_path / "run") == values(tmp_path / "other")


def test_a_round_is_worth_what_the_rule_made_of_it_and_by_the_mean_what_the_mean_would_have(tmp_path: Path) -> None:
    table = {"name": "median"}
    half, data = server(tmp_path / "roles", table)
    settle(half, data, tmp_path / "run", 1)
    recordings = Recordings(tmp_path / "run")
    closed = ClosedRound(round=1, received=(0, 1, 2, 3), missing=(), void=False, reason="test")
    totals = {}
    for name, defence in (("same", table), ("mean", {**table, "scoring": "mean"}), ("plain", {})):
        with closing(RoundScorer(half, data, recordings, None, defence)) as scorer:
            totals[name] = [row["value"] for row in scorer.rows(closed)]
    assert totals["mean"] == totals["plain"] != totals["same"]
    with closing(RoundScorer(half, data, recordings, None, table)) as scorer:
        recorded = scorer.read(closed)
        game = scorer.played(closed, recorded).view("loss")
        labels = torch.from_numpy(data["validation_labels"].copy())
        states = (recorded.global_D, scorer.join(closed).next_D)
        value = [float(functional.cross_entropy(_logits(scorer, state), labels)) for state in states]
    assert sum(totals["same"]) == pytest.approx(value[0] - value[1], abs=1e-5), "FedSV adds up to the round's gain"
    assert game.players == 4


def _logits(scorer: RoundScorer, state: torch.Tensor) -> torch.Tensor:
    scorer.model.load(state)
    scorer.model.module.eval()
    with torch.inference_mode():
        return scorer.model(scorer._validation[0])


def test_the_root_set_is_the_servers_alone_and_takes_no_sample_from_anybody(tmp_path: Path) -> None:
    plain = deal(parse(Experiment, TABLE, "test"))
    rooted = deal(parse(Experiment, {**TABLE, "defence": {"name": "fltrust", "root": 40}}, "test"))
    assert len(rooted.root) == 40
    assert len(plain.root) == 0
    for ours, theirs in zip((*rooted.shards, rooted.validation), (*plain.shards, plain.validation), strict=True):
        assert np.array_equal(ours.indices, theirs.indices), "drawn last, it changes no other set"
    others = np.concatenate([part.indices for part in (*rooted.shards, rooted.validation, rooted.test)])
    assert not np.isin(rooted.root.indices, others).any()
    half, data = server(tmp_path / "roles", {"name": "fltrust", "root": 40})
    assert data["root_images"].shape == (40, 1, 8, 8)
    for client in range(4):
        keys = read_arrays(tmp_path / "roles" / f"client-{client}" / "data.safetensors").keys()
        assert not any("root" in key for key in keys)
    with pytest.raises(UserError, match="a root set expected among the server's data"):
        RoundScorer(half, {k: v for k, v in data.items() if "root" not in k}, Recordings(tmp_path / "run"))


def test_the_digest_of_an_experiment_without_a_defence_is_what_it_was() -> None:
    plain = parse(Experiment, TABLE, "test")
    named = parse(Experiment, {**TABLE, "defence": {"name": "mean"}}, "test")
    assert plain.digest() == parse(Experiment, {**TABLE, "defence": {}}, "test").digest() != named.digest()
    assert named.honest().defence == {"name": "mean"}, "the twin is defended too"
