"""The sweep file: which runs it asks for, in which order, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.launch import Options, read_manifest
from deploy.sweep import run_cells, share
from steelyard.errors import RunFailedError, UserError
from steelyard.parsing import parse
from steelyard.sweep import HONEST, Sweep, SweepConfig, apply, load_sweep, points_at, resolve

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "name": "base",
    "rounds": 2,
    "clients": {"count": 3},
    "attack": {"name": "latent", "clients": [0], "samples": 8},
}
VARIANTS = [{"name": "latent"}, {"name": "flip", "attack": {"name": "label_flip", "clients": [1]}}]


def made(base: dict[str, Any] | None = None, **table: Any) -> Sweep:
    config = parse(SweepConfig, {"name": "s", "base": "base.toml", "variants": VARIANTS, **table}, "s.toml")
    return resolve(config, base or BASE, "s.toml")


def refused(words: str, **table: Any) -> None:
    with pytest.raises(UserError, match=words):
        made(**table)


def test_every_variant_runs_under_every_seed_behind_one_twin() -> None:
    sweep = made(grid={"seed": "1000..1002"})
    assert sweep.seeds == (1000, 1001, 1002)
    assert [(cell.variant, cell.seed) for cell in sweep.cells[:3]] == [(HONEST, 1000), ("latent", 1000), ("flip", 1000)]
    assert len(sweep.cells) == 9
    twins = {cell.run for cell in sweep.cells if cell.variant == HONEST}
    assert {cell.honest for cell in sweep.cells} == twins
    assert len(twins) == 3


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_shares_of_a_sweep_are_all_of_it_and_no_twin_is_in_two(parts: int) -> None:
    sweep = made(grid={"seed": "1000..1002"})
    shares = [share(sweep.runs, part, parts) for part in range(1, parts + 1)]
    assert sorted(cell.run for cells in shares for cell in cells) == sorted(cell.run for cell in sweep.runs)
    twins = [{cell.honest for cell in cells} for cells in shares]
    assert sum(map(len, twins)) == len(set.union(*twins)) == 3
    assert sorted(map(len, shares)) == {1: [9], 2: [3, 6], 3: [3, 3, 3], 5: [0, 0, 3, 3, 3]}[parts]


def test_names_of_run_directories_are_those_of_single_runs() -> None:
    twin, latent, flip = made().cells
    assert twin.run == f"honest-{latent.experiment.honest().digest()}"
    assert latent.run == f"base-latent-{latent.experiment.digest()}"
    assert (latent.watched, flip.watched) == ((0,), (1,))


def test_a_variant_takes_the_bases_attack_or_its_own() -> None:
    _, latent, flip = made(set={"attack.samples": 16}).cells
    assert latent.experiment.attack == {"name": "latent", "clients": [0], "samples": 16}
    assert flip.experiment.attack == {"name": "label_flip", "clients": [1]}


def test_a_variant_without_an_attack_is_compared_with_the_unattacked_base() -> None:
    quick = {"name": "quick", "attack": {}, "set": {"training.epochs": 1}}
    twin, cell = made(variants=[quick]).cells
    assert (cell.experiment.attack, cell.experiment.training.epochs) == ({}, 1)
    assert cell.honest == twin.run
    assert twin.experiment.training.epochs == 2
    assert cell.watched == (0,)


def test_what_an_attacked_variant_sets_its_twin_has_too() -> None:
    twin, cell = made(variants=[{"name": "quick", "set": {"training.epochs": 1}}]).cells
    assert (twin.experiment.training.epochs, twin.experiment.attack) == (1, {})
    assert cell.experiment.attack["name"] == "latent"


def test_keys_may_be_dotted_or_nested() -> None:
    dotted, nested = made(grid={"data.alpha": [0.1, 0.3]}), made(grid={"data": {"alpha": [0.1, 0.3]}})
    assert dotted.cells == nested.cells
    assert dotted.points == ({"data.alpha": 0.1}, {"data.alpha": 0.3})
    assert [cell.title for cell in dotted.cells][1] == "latent data.alpha=0.1 seed=0"


def test_a_table_in_the_grid_takes_the_place_of_the_bases_and_set_adds_to_it() -> None:
    base = {**BASE, "defence": {"name": "krum", "f": 2}}
    sweep = made(base, grid={"defence": [{"name": "multi_krum"}, {"name": "krum"}]})
    assert [cell.experiment.defence for cell in sweep.cells[::3]] == [{"name": "multi_krum"}, {"name": "krum"}]
    assert made(base, set={"defence": {"f": 1}}).cells[0].experiment.defence == {"name": "krum", "f": 1}


def test_a_twin_is_shared_by_grid_points_that_differ_in_the_attack_alone() -> None:
    sweep = made(variants=[{"name": "latent"}], grid={"attack.samples": [4, 8]})
    assert [cell.variant for cell in sweep.cells] == [HONEST, "latent", "latent"]


def test_grid_points_share_the_run_of_a_variant_that_they_do_not_change() -> None:
    sweep = made(grid={"attack.samples": [4, 8]})
    flips = [cell for cell in sweep.cells if cell.variant == "flip"]
    assert [cell.point["attack.samples"] for cell in flips] == [4, 8]
    assert len({cell.run for cell in flips}) == 1
    assert [cell.variant for cell in sweep.runs] == [HONEST, "latent", "flip", "latent"]


def test_overrides_leave_the_table_as_it_was() -> None:
    table = {"data": {"alpha": 0.3}}
    assert apply(table, {"data.alpha": 0.1, "data": {"test": 9}}) == {"data": {"alpha": 0.1, "test": 9}}
    assert table == {"data": {"alpha": 0.3}}
    with pytest.raises(UserError, match=r"set seed\.x: 'seed' is a value"):
        apply({"seed": 1}, {"seed.x": 2})


def test_an_empty_table_overrides_too() -> None:
    assert apply(BASE, {"attack": {}})["attack"] == {}
    (twin, cell) = made(variants=[{"name": "quick", "set": {"attack": {}, "training.epochs": 1}}]).cells
    assert (twin.experiment.attack, cell.experiment.attack) == ({}, {})


def test_the_primary_contrast_picks_its_grid_point_and_evaluator() -> None:
    sweep = made(
        grid={"data.alpha": [0.1, 0.3]},
        primary={"variant": "latent", "evaluator": "loo_loss", "at": {"data.alpha": 0.3}},
    )
    assert sweep.evaluator == "loo_loss"
    assert made().evaluator == "fedsv_accuracy"


def test_grid_points_are_picked_by_values_and_by_parts_of_tables() -> None:
    krum, mean = {"name": "krum", "f": 2, "neighbours": 3}, {"name": "mean", "pre": ["nnm"]}
    sweep = made(grid={"data": {"alpha": [0.1]}, "defence": [krum, mean]})
    assert points_at(sweep, {"defence": {"name": "krum", "f": 2}}) == [{"data.alpha": 0.1, "defence": krum}]
    assert points_at(sweep, {"data.alpha": 0.1, "defence": mean}) == [{"data.alpha": 0.1, "defence": mean}]
    assert len(points_at(sweep, {"data": {"alpha": 0.1}})) == 2
    assert points_at(sweep, {"defence": {"name": "krum", "f": 1}}) == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"girds": {}}, "unknown key 'girds'"),
        ({"variants": []}, "at least one .*variants"),
        ({"variants": [{"name": "honest"}]}, "names of their own expected, none 'honest'"),
        ({"variants": [{"name": "a b"}]}, "letters, digits"),
        ({"variants": [{"name": "a"}, {"name": "b"}]}, "b seed=0 and a seed=0 are the same experiment"),
        ({"variants": [{"name": "a", "attack": {}}]}, "a seed=0 and honest seed=0 are the same experiment"),
        ({"variants": [{"name": "a", "set": {"attack.compare_honest": False}}]}, "pairs every attack"),
        ({"variants": [{"name": "a", "set": {"data.alhpa": 1}}]}, "variant a data: unknown key 'alhpa'"),
        ({"grid": {"seed": "9..1"}}, "a range that counts up"),
        ({"grid": {"seed": [1, 1]}}, "different integers"),
        ({"set": {"seed": 3}}, "s.toml set: seeds in .grid. expected"),
        ({"variants": [{"name": "a", "set": {"seed": 3}}]}, "variant a: seeds in .grid. expected"),
        ({"grid": {f"attack.k{i}": list(range(10)) for i in range(6)}}, "at most 100000 points expected, got 1000000"),
        ({"grid": {"data.alpha": 0.3}}, "data.alpha: a list of different values"),
        ({"grid": {"data.alpha": [0.3, 0.3]}}, "data.alpha: a list of different values"),
        ({"primary": {"variant": "ltaent"}}, "one of flip, honest, latent expected, got 'ltaent'"),
        ({"primary": {"variant": "flip", "against": "flip"}}, "a variant against another"),
        ({"primary": {"variant": "flip", "evaluator": "x"}}, "evaluator: one of fedsv_accuracy"),
        ({"primary": {"variant": "flip", "direction": "up"}}, "direction: one of 'greater', 'less'"),
        ({"primary": {"variant": "flip"}, "grid": {"data.alpha": [0.1, 0.3]}}, "pick one of 2 points"),
        ({"contrasts": [{"variant": "honest"}]}, "a variant against another"),
        ({"contrasts": [{"variant": "flip", "against_at": {"data.alpha": 0.1}}]}, "a variant against another"),
        (
            {"contrasts": [{"variant": "flip", "against": "flip", "against_at": {"data.alpha": 0.1}}]},
            "against_at: values of grid keys that pick one of 1 points expected, .* which picks 0",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(table: dict[str, Any], words: str) -> None:
    refused(words, **table)


def test_the_base_is_found_beside_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("name = 'base'\n[attack]\nname = 'label_flip'\n")
    (tmp_path / "s.toml").write_text("name = 's'\nbase = 'base.toml'\n[[variants]]\nname = 'flip'\n")
    assert len(load_sweep(tmp_path / "s.toml").cells) == 2
    with pytest.raises(UserError, match="sweep file expected at"):
        load_sweep(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*/**/*.toml")), ids=lambda path: path.stem)
def test_every_committed_sweep_names_runs(path: Path) -> None:
    sweep = load_sweep(path)
    assert len(sweep.cells) > len(sweep.seeds)


def test_a_bug_in_one_cell_is_told_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"samples_per_client": 20, "validation": 30, "test": 30}
    sweep = made({**BASE, "data": data}, grid={"seed": [1, 2]}, variants=[VARIANTS[0]])
    twins = [cell for cell in sweep.cells if cell.variant == HONEST]

    def conduct(_roles: Path, run: Path, *_others: Any) -> None:
        if run.name == twins[0].run:
            raise ZeroDivisionError("by zero")
        raise RunFailedError("a reason of its own")

    outcomes = run_cells(twins, Options(out=tmp_path, checked=True, conduct=conduct), 1, lambda _outcome: None)
    bug, other = (outcome.reason for outcome in outcomes)
    assert bug.startswith("a bug: ZeroDivisionError: by zero (")
    assert other == "a reason of its own"
    assert [read_manifest(tmp_path / cell.run)["reason"] for cell in twins] == [bug, other]
    trace = capsys.readouterr().err
    assert trace.startswith(f"{twins[0].title}: Traceback ")
    assert trace.endswith("ZeroDivisionError: by zero\n")
