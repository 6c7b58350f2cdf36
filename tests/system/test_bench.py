"""`steelyard bench evaluation` at tiny sizes: its numbers are those of the engine, and its figures can be read."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from steelyard.benchmarks.estimators import errors, read_games, sampling_evaluators, shapley
from steelyard.benchmarks.evaluation import PUBLISHED, Case, path_errors, published, random_round, timings, utility_of
from steelyard.benchmarks.growth import GAMES, METHODS, growth
from steelyard.config import Shape
from steelyard.errors import UserError
from steelyard.scoring.coalitions import all_masks
from steelyard.scoring.games import glove_game
from steelyard.scoring.paths import PATHS

TINY = Case(model="cnn8", shape=Shape(channels=1, height=8, width=8, classes=10), examples=30, coalitions=2, clients=3)


def test_the_command_prints_and_draws(shell: Any) -> None:
    out = shell.folder / "figures"
    sizes = ("--models", "cnn8", "--repetitions", "1", "--images", "20", "--workers", "1", "--draws", "1")
    code, said, err = shell.steelyard("bench", "evaluation", *sizes, "--parts", "speed,estimators", "--out", str(out))
    assert (code, err) == (0, "")
    assert all(word in said for word in ("cores, 1 thread a process; torch 2.", "published loop", "im2col_bf16, 300"))
    assert "fedsv permutation" in said
    assert sorted(path.name for path in out.iterdir()) == ["estimators.svg", "speed-cnn8.svg"]
    for path in out.iterdir():
        assert ET.parse(path).getroot().tag.endswith("svg")  # noqa: S314 - our own figures


def test_a_part_that_is_none_is_the_users_mistake(shell: Any) -> None:
    code, _, err = shell.steelyard("bench", "evaluation", "--parts", "speed,taste")
    assert code == 2
    assert "--parts: speed, paths, estimators, growth expected, got 'taste'" in err


def test_the_published_loop_finds_the_engines_accuracies() -> None:
    material = random_round(TINY)
    masks = all_masks(3)[1:]
    game = utility_of(material, "plain", 30, workers=1).round(material.global_D, material.updates, material.samples)
    assert published(material, masks) == game.view("accuracy").values(masks).tolist()


def test_every_path_that_fits_is_timed_and_compared() -> None:
    timed = {timing.name: timing for timing in timings(TINY, (10, 30), 1, 1)}
    assert set(timed) == {PUBLISHED, *(f"{path}, {batch}" for path in PATHS for batch in (10, 30))}
    assert timed[PUBLISHED].ratios == (1.0, 1.0)
    assert all(timing.seconds > 0 and timing.processor_s is not None for timing in timed.values())
    compared = {found.path: found for found in path_errors(random_round(TINY), 10)}
    assert set(compared) == set(PATHS)
    assert compared["plain"].loss == (0.0, 0.0)
    assert 0 < compared["im2col_bf16"].loss[1] <= compared["im2col_bf16"].loss[0] < PATHS["im2col_bf16"][1].loss


def test_shapley_values_of_a_game_by_definition() -> None:
    game, values_n = glove_game(2, 3)
    assert shapley(game.values(all_masks(5))) == pytest.approx(values_n)


def test_errors_fall_with_calls_and_the_budget_is_kept() -> None:
    assert "fedsv permutation" in dict(sampling_evaluators())
    games = {"smooth": read_games(Path(__file__).parents[1] / "data" / "games")["smooth"]}
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
