"""`steelyard bench evaluation` at tiny sizes: its numbers are those of the engine, and its figures can be read."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.prepare import prepare
from scripts.bench import recorded_games
from steelyard import bundle
from steelyard.benchmarks.estimators import errors, read_games, sampling_evaluators, shapley
from steelyard.benchmarks.evaluation import PUBLISHED, _contenders, path_errors, timings, utility_of
from steelyard.benchmarks.growth import GAMES, METHODS, growth
from steelyard.benchmarks.published import PublishedLoop, published
from steelyard.benchmarks.rounds import Case, random_round
from steelyard.bundle import read_arrays
from steelyard.config import Experiment, ServerHalf, Shape, load_half
from steelyard.errors import RunFailedError, UserError
from steelyard.models import FlatModel
from steelyard.parsing import parse
from steelyard.recording import ClosedRound, Recordings
from steelyard.scoring.coalitions import all_masks
from steelyard.scoring.games import glove_game
from steelyard.scoring.paths import PATHS
from steelyard.scoring.replay import RoundScorer

GAME_FILES = Path(__file__).parents[1] / "data" / "games"
TINY = Case(model="cnn8", shape=Shape(channels=1, height=8, width=8, classes=10), examples=30, coalitions=2, clients=3)


def test_the_command_prints_and_draws(shell: Any) -> None:
    out = shell.folder / "figures"
    sizes = ("--models", "cnn8", "--repetitions", "1", "--images", "20", "--workers", "1", "--draws", "1")
    sizes += ("--batches", "20,7", "--paths", "plain,im2col_bf16", "--games", str(shell.folder))
    (shell.folder / "smooth.csv").symlink_to(GAME_FILES / "smooth.csv")
    code, said, err = shell.steelyard("bench", "evaluation", *sizes, "--parts", "speed,estimators", "--out", str(out))
    assert (code, err) == (0, "")
    assert all(
        word in said for word in ("cores, 1 thread a process; torch 2.", "published loop", "bf16, 20 ", "bf16, 7 ")
    )
    assert "fedsv permutation" in said
    assert sorted(path.name for path in out.iterdir()) == ["estimators.md", "estimators.svg", "speed-cnn8.svg"]
    for path in out.glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")  # noqa: S314 - our own figures


@pytest.mark.slow
def test_a_recorded_run_adds_two_games_to_the_table(shell: Any, tmp_path: Path) -> None:
    """Six clients, 64 coalitions: 40 calls sample them, more play them out."""
    run = shell.run("--launcher", "inline", "--set", "clients.count=6", "--set", "rounds=1", "--set", "attack={}")
    (tmp_path / "smooth.csv").symlink_to(GAME_FILES / "smooth.csv")
    out, options = shell.folder / "tables", ("--parts", "estimators", "--draws", "1", "--games", str(tmp_path))
    code, _, err = shell.steelyard("bench", "evaluation", *options, "--run", str(run), "--out", str(out))
    assert (code, err) == (0, "")
    lines = [line.split(" | ") for line in (out / "estimators.md").read_text().splitlines()]
    mine = [line for line in lines if line[:2] == ["| shapley regression", "recorded_loss"]]
    assert [cell for line in mine for cell in line[3:]] == ["exact", "exact", "exact |"]
    assert float(mine[0][2].split()[0]) > 0


def recorded(run: Path, clients: int) -> Path:
    """A run directory of one round that counts and one that does not, of random updates."""
    table = {
        "name": "small",
        "rounds": 2,
        "clients": {"count": clients},
        "data": {"partition": "iid", "samples_per_client": 20, "validation": 30, "test": 20},
    }
    prepare(parse(Experiment, table, "test"), run / "roles")
    half = load_half(ServerHalf, run / "roles" / "server" / "half.json")
    model, generator, recordings = FlatModel("", half.shape), torch.Generator().manual_seed(2), Recordings(run)
    received = tuple(range(clients))
    for number in (1, 2):
        closed = ClosedRound(round=number, received=received, missing=(), void=number == 2, reason="test")
        recordings.close(closed)
        state = model.initial_state(generator)
        bundle.write(recordings.global_file(number), model.layout.specs, bundle.raw(state.numpy()))
    for client in received:
        update = 0.1 * torch.randn(model.layout.size, generator=generator)
        bundle.write(recordings.update_file(1, client), model.layout.specs, bundle.raw(update.numpy()))
    return run


def test_a_recorded_round_is_two_games(tmp_path: Path) -> None:
    """The last round that counts, all its coalitions: leave-one-out from them is the scorer's own."""
    run = recorded(tmp_path, 6)
    games = recorded_games(run)
    assert {name: len(values) for name, values in games.items()} == {"recorded_accuracy": 64, "recorded_loss": 64}
    half = load_half(ServerHalf, run / "roles" / "server" / "half.json")
    data, table = read_arrays(run / "roles" / "server" / "data.safetensors"), {"kind": "loo", "utility": "loss"}
    with closing(RoundScorer(half, data, Recordings(run), [{"name": "loo", **table}])) as scorer:
        rows = scorer.rows(Recordings(run).closed_rounds()[0])
    loss = games["recorded_loss"]
    assert [row["value"] for row in rows] == [loss[63] - loss[63 - 2**k] for k in range(6)]


def test_a_recorded_round_of_few_clients_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a round with 6 to 12 clients expected in .*, its last one has 3"):
        recorded_games(recorded(tmp_path, 3))


def test_the_published_loop_finds_the_engines_accuracies() -> None:
    material = random_round(TINY)
    masks = all_masks(3)[1:]
    game = utility_of(material, "plain", 30, workers=1).round(material.global_D, material.updates, material.samples)
    assert published(material, masks) == game.view("accuracy").values(masks).tolist()


def test_a_published_loop_that_ends_is_an_error() -> None:
    loop = PublishedLoop(TINY)
    try:
        assert min(loop.time(all_masks(3)[1:], 2)) > 0
        loop._process.kill()
        with pytest.raises(RunFailedError, match=r"the published loop's process ended, exit code -9"):
            loop.time(all_masks(3)[1:], 1)
    finally:
        loop.close()


def test_every_path_that_fits_is_timed_and_compared() -> None:
    paths = [path for path, kind in PATHS.items() if "cpu" in kind.devices]
    told: dict[str, str] = {}
    timed = {timing.name: timing for timing in timings(TINY, list(PATHS), (10, 30), 1, 1, told)}
    assert list(told) == ["folded_tf32"]
    assert "made for cuda alone" in told["folded_tf32"]
    assert set(timed) == {PUBLISHED, *(f"{path}, {batch}" for path in paths for batch in (10, 30))}
    assert timed[PUBLISHED].ratios == (1.0, 1.0)
    assert all(timing.seconds > 0 and timing.processor_s is not None for timing in timed.values())
    told.clear()
    compared = {found.path: found for found in path_errors(random_round(TINY), 10, told)}
    assert list(told) == ["folded_tf32"]
    assert set(compared) == set(paths)
    assert compared["plain"].loss == (0.0, 0.0)
    assert 0 < compared["im2col_bf16"].loss[1] <= compared["im2col_bf16"].loss[0] < PATHS["im2col_bf16"].bound.loss


def test_workers_are_compared_with_the_faster_form_of_the_published_loop() -> None:
    paths = ["plain", "im2col_winograd"]  # each worker of another one would load torch anew
    timed = {timing.name: timing for timing in timings(TINY, paths, (10,), 2, 1, {})}
    loop = f"{PUBLISHED} x2"
    assert {name for name in timed if " x2" in name} == {loop, "im2col_winograd x2, 10"}
    ours, faster = timed["im2col_winograd x2, 10"], min(timed[loop].seconds, timed[PUBLISHED].seconds)
    assert ours.ratio == pytest.approx(faster / ours.seconds), "of one turn's wall times"
    assert timed[loop].ratio == pytest.approx(faster / timed[loop].seconds)


def test_every_path_but_plain_and_folded_has_a_turn_with_workers() -> None:
    contenders = {name: processes for name, _, _, processes in _contenders(list(PATHS), (10, 30), 2)}
    assert {name for name in contenders if contenders[name] == 2} == {
        f"{path} x2, 10" for path in PATHS if path not in {"plain", "folded"}
    }


def test_shapley_values_of_a_game_by_definition() -> None:
    game, values_n = glove_game(2, 3)
    assert shapley(game.values(all_masks(5))) == pytest.approx(values_n)


def test_errors_fall_with_calls_and_the_budget_is_kept() -> None:
    assert "fedsv permutation" in dict(sampling_evaluators())
    games = {"smooth": read_games(GAME_FILES)["smooth"]}
    few, many = (e for e in errors(games, (40, 400, 1024), 8) if e.evaluator == "fedsv permutation")
    assert (few.budget, many.budget) == (40, 400), "1024 calls leave nothing to sample"
    assert few.rmse > 2 * many.rmse > 0
    assert 40 <= few.calls < 60, "two antithetic pairs are the fewest that have a standard error"
    assert many.calls == pytest.approx(400, rel=0.1)


def test_growth_is_the_first_budget_that_comes_near() -> None:
    """10 players of equal rights: the budgets are 12, 15, 19, ...; what the layers need lies among the first few."""
    found = {(each.game, each.method): each.calls for each in growth(2, players=(10,))}
    assert set(found) == {(game, method) for game in GAMES for method in METHODS}
    assert 12 <= found["fixed size", "layers"][0] < 60


def test_a_folder_without_games_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="games as CSV files expected"):
        read_games(tmp_path)
