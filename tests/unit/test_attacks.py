"""Attacks as a client runs them: by hand-computable numbers, the same bits after a crash, clear mistakes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.attacks import ATTACKS, Resources, check, make_attack
from client.attacks.latent import withheld
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.seeding import torch_generator
from steelyard.training import train

QUICK: dict[str, Any] = {"samples": 8, "decoder": {"hidden": 16, "steps": 20}}


def test_every_attack_has_defaults_and_every_variant_is_tried(tables: list[dict[str, Any]]) -> None:
    for name in ATTACKS:
        check({"name": name}, public=True, colludes=True)
    assert {table["name"] for table in tables} == set(ATTACKS) - {"sybil"}, "which test_collusion tries"


def test_the_documents_name_every_parameter_and_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.split("## A first look")[0].splitlines() if row.startswith("| `")}
    assert set(rows) <= set(ATTACKS)
    for name in set(rows) - {"latent", "decoder_samples"}:  # these point to their file
        params = check({"name": name}, public=True)
        for key, value in vars(params).items():
            if (key, value) != ("source", "public"):
                shown = f'"{value}"' if isinstance(value, str) else f"{value:g}"
                assert re.search(rf"`{key}`\)? [^`]*{re.escape(shown)}|\(`{key}` {shown}", rows[name]), (
                    name,
                    key,
                    shown,
                )


def test_a_restart_and_a_round_done_twice_give_the_same_bits(
    table: dict[str, Any], resources: Resources, states: list[torch.Tensor]
) -> None:
    before = torch.random.get_rng_state()
    straight = make_attack(table, resources)
    expected = [straight.update(t + 1, state).update_D for t, state in enumerate(states)]
    assert len({tuple(update[:50].tolist()) for update in expected[1:]}) == 3  # the rounds differ

    crashing = replace(resources, folder=resources.folder / "crashing", model=FlatModel("cnn8", resources.shape))
    for t, state in enumerate(states):
        for _ in range(2):  # each round is done, lost and done again by a process started anew
            assert torch.equal(make_attack(table, crashing).update(t + 1, state).update_D, expected[t])
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_seed_gives_another_update(
    table: dict[str, Any], resources: Resources, states: list[torch.Tensor]
) -> None:
    first, other = (make_attack(table, replace(resources, seed=s, folder=resources.folder / str(s))) for s in (7, 8))
    for attack in (first, other):
        attack.update(1, states[0])
    assert not torch.equal(first.update(2, states[1]).update_D, other.update(2, states[1]).update_D)


def test_memory_keeps_the_round_before_and_prunes_older_ones(resources: Resources, states: list[torch.Tensor]) -> None:
    attack = make_attack({"name": "free_rider"}, resources)
    for t, state in enumerate(states):
        attack.update(t + 1, state)
        kept = sorted(path.name for path in resources.folder.iterdir())
        assert kept == [f"attack-{r:06d}.safetensors" for r in (t, t + 1) if r]


def test_honest_is_the_federations_own_training(resources: Resources, states: list[torch.Tensor]) -> None:
    update = make_attack({"name": "honest"}, resources).update(3, states[0]).update_D
    generator = torch_generator(7, "train", 3)
    plain = train(resources.model, states[0], resources.images, resources.labels, resources.training, generator)
    assert torch.equal(update, plain)


def test_label_flip_is_honest_training_on_mirrored_labels(resources: Resources, states: list[torch.Tensor]) -> None:
    mirrored = replace(resources, labels=9 - resources.labels)
    flipped = make_attack({"name": "label_flip"}, resources).update(1, states[0]).update_D
    assert torch.equal(flipped, make_attack({"name": "honest"}, mirrored).update(1, states[0]).update_D)


def test_noise_of_scale_zero_is_honest(resources: Resources, states: list[torch.Tensor]) -> None:
    honest = make_attack({"name": "honest"}, resources).update(1, states[0]).update_D
    for target in ("inputs", "update"):
        table = {"name": "random_noise", "target": target, "scale": 0}
        assert torch.equal(make_attack(table, resources).update(1, states[0]).update_D, honest)


def test_noise_on_the_update_has_the_asked_size(resources: Resources, states: list[torch.Tensor]) -> None:
    honest = make_attack({"name": "honest"}, resources).update(1, states[0]).update_D
    table = {"name": "random_noise", "target": "update", "scale": 2.0}
    noise = make_attack(table, resources).update(1, states[0]).update_D - honest
    assert float(noise.std() / honest.square().mean().sqrt()) == pytest.approx(2, rel=0.05)  # 9,930 draws


def test_free_rider_sends_nothing_or_the_step_it_saw(resources: Resources, states: list[torch.Tensor]) -> None:
    nothing = make_attack({"name": "free_rider", "send": "nothing"}, resources)
    assert not nothing.update(1, states[0]).update_D.any()
    assert not nothing.update(2, states[1]).update_D.any()
    assert not list(resources.folder.glob("attack-*")), "nothing is kept that nothing needs"
    rider = make_attack({"name": "free_rider"}, replace(resources, folder=resources.folder / "rider"))
    assert not rider.update(1, states[0]).update_D.any()
    assert torch.equal(rider.update(2, states[1]).update_D, states[1] - states[0])
    assert torch.equal(rider.update(4, states[3]).update_D, states[3] - states[1])  # round 3 was missed


def test_free_riders_noise_fades_from_the_first_step_it_saw(resources: Resources) -> None:
    table = {"name": "free_rider", "send": "nothing", "noise": 3.0, "decay": 2.0}
    size = resources.model.layout.size
    notes = {}
    # round 1 is void, so round 2 shows no step; then steps of -0.5 and of 7.5: only the first one counts
    for t, value in ((1, 0.0), (2, 0.0), (3, -0.5), (4, 7.0)):
        result = make_attack(table, resources).update(t, torch.full((size,), value))
        notes[t] = result.notes["noise_std"]
        assert float(result.update_D.std()) == pytest.approx(notes[t], rel=0.05)
    assert notes == {1: 0.0, 2: 0.0, 3: 3 * 0.5 / 9, 4: 3 * 0.5 / 16}


def test_latent_falls_back_to_its_own_samples_in_the_first_round(
    resources: Resources, states: list[torch.Tensor]
) -> None:
    attack = make_attack({"name": "latent", **QUICK, "steps": 2}, resources)
    assert attack.update(1, states[0]).notes["reference"] == "own"
    assert attack.update(2, states[1]).notes["reference"] == "previous_step"
    assert attack.update(3, states[1]).notes["reference"] == "own"  # a void round: there was no step


def test_latent_makes_what_its_decoder_can(resources: Resources, states: list[torch.Tensor]) -> None:
    made = {}
    for source in ("own", "public"):
        table = {"name": "latent", **QUICK, "samples": 30, "steps": 2, "decoder_source": source}
        result = make_attack(table, resources).update(1, states[0])
        counts = dict(pair.split(":") for pair in str(result.notes["labels"]).split(","))
        made[source] = {int(label) for label in counts}
        assert sum(int(count) for count in counts.values()) == 30
        assert result.notes["end_objective"] < result.notes["start_objective"]
    assert made["own"] <= {0, 1, 2, 3}
    assert made["public"] == {4, 5, 6, 7, 8, 9}  # the shard holds about ten of each of the others


def test_withheld_samples_are_every_fourth_of_a_label(resources: Resources) -> None:
    marks = withheld(replace(resources, labels=torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 0, 0])))
    assert marks.nonzero().flatten().tolist() == [3, 9]
    assert withheld(replace(resources, labels=torch.tensor([5, 5]))).tolist() == [False, True]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "name: one of honest, latent"),
        ({"name": "latnet"}, "did you mean 'latent'"),
        ({"name": "latent", "sampels": 3}, "did you mean 'samples'"),
        ({"name": "latent", "samples": 0}, ">= 1 expected, got 0"),
        ({"name": "latent", "reference": "validation"}, "one of 'previous_step', 'own', 'decoder', 'public' expected"),
        ({"name": "latent", "weights": {"task": -1.0}}, "weights task: >= 0 expected, got -1.0"),
        ({"name": "honest", "samples": 3}, "unknown key 'samples'"),
        ({"name": "free_rider", "send": "all"}, "'nothing', 'previous_step' expected"),
    ],
)
def test_mistakes_in_the_table_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(table, public=True)


def test_knowledge_that_the_client_lacks_is_named(resources: Resources) -> None:
    lacking = replace(resources, public=None)
    for table in ({"decoder_source": "public"}, {"reference": "public"}):
        with pytest.raises(UserError, match=r"needs the public set.*knowledge"):
            make_attack({"name": "latent", **QUICK, **table}, lacking)
    single = replace(resources, images=resources.images[:1], labels=resources.labels[:1])
    with pytest.raises(UserError, match="at least 2 samples"):
        make_attack({"name": "latent", **QUICK, "reference": "own"}, single)
