"""Attackers that collude: what each is handed, what the others and the server are not, and what one can do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from client.app import _attack, check
from client.attacks import Attack, make_attack
from client.attacks.base import Ally, Resources
from deploy.prepare import client_folder, client_half, prepare, server_folder
from steelyard.bundle import read_arrays
from steelyard.config import ClientHalf, Experiment, Ring, ServerHalf, load_experiment, load_half, to_json
from steelyard.data.deal import deal
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.parsing import parse
from steelyard.seeding import derive_seed, torch_generator
from steelyard.training import train

TABLE: dict[str, Any] = {
    "name": "sybils",
    "rounds": 2,
    "seed": 5,
    "clients": {"count": 4},
    "data": {"samples_per_client": 20, "partition": "labels", "validation": 30, "test": 30},
}
ATTACK: dict[str, Any] = {"name": "sybil", "clients": [3, 1], "collude": True}


def experiment(**attack: Any) -> Experiment:
    return parse(Experiment, {**TABLE, "attack": {**ATTACK, **attack}}, "test")


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colluding") / "roles"
    prepare(experiment(), folder)
    return folder


def half_of(folder: Path, client: int) -> ClientHalf:
    half: ClientHalf = load_half(ClientHalf, client_folder(folder, client) / "half.json")
    return half


def attack_of(folder: Path, client: int) -> Attack:
    return _attack(half_of(folder, client), client_folder(folder, client))


def global_state(folder: Path) -> torch.Tensor:
    half = half_of(folder, 0)
    return FlatModel(half.model.name, half.shape).initial_state(torch_generator(1, "initial"))


def test_a_colluding_attacker_holds_its_allies_shards_and_the_leaders_seed(roles: Path) -> None:
    dealt = deal(experiment())
    for client, ally in ((1, 3), (3, 1)):
        assert half_of(roles, client).ring == Ring(clients=(1, 3), seed=derive_seed(5, "client", 1))
        arrays = read_arrays(client_folder(roles, client) / "data.safetensors")
        assert set(arrays) == {"images", "labels", f"ally_{ally}_images", f"ally_{ally}_labels"}
        for name, shard in (("", dealt.shards[client]), (f"ally_{ally}_", dealt.shards[ally])):
            assert (arrays[f"{name}images"] == shard.images).all()
            assert (arrays[f"{name}labels"] == shard.labels).all()


def test_without_collude_an_attacker_is_handed_nothing_of_the_others(tmp_path: Path) -> None:
    alone = experiment(name="label_flip", collude=False)
    assert alone.attackers == (3, 1)
    prepare(alone, tmp_path)
    for client in range(4):
        assert half_of(tmp_path, client).ring is None
        assert set(read_arrays(client_folder(tmp_path, client) / "data.safetensors")) == {"images", "labels"}


def test_nobody_else_is_handed_a_trace_of_it(roles: Path, tmp_path: Path) -> None:
    """Honest clients' and the server's folders are those of the honest twin, but for tokens and their hashes."""
    prepare(experiment().honest(), tmp_path)
    for name in ("client-0/half.json", "client-0/data.safetensors", "client-2/half.json", "client-2/data.safetensors"):
        assert (roles / name).read_bytes() == (tmp_path / name).read_bytes()
    data = [server_folder(folder) / "data.safetensors" for folder in (roles, tmp_path)]
    assert data[0].read_bytes() == data[1].read_bytes()
    halves: list[ServerHalf] = [load_half(ServerHalf, server_folder(f) / "half.json") for f in (roles, tmp_path)]
    texts = []
    for half in halves:
        text = to_json(half)
        for entry in half.roster:
            text = text.replace(entry.token_sha256, "")
        texts.append(text)
    assert texts[0] == texts[1]
    for word in ("collude", '"ring"', "ally_", "sybil"):
        assert word not in texts[0]


def test_the_honest_twin_is_that_of_attackers_who_do_not_collude() -> None:
    twins = [experiment(name=name, collude=c).honest() for name, c in (("sybil", True), ("label_flip", False))]
    assert twins[0] == twins[1]
    assert twins[0].digest() == twins[1].digest()
    assert [client_half(twins[0], deal(twins[0]).shape, k).ring for k in range(4)] == [None] * 4
    assert experiment().attack_of(1) == {"name": "sybil"}, "what is the launcher's is not handed on"


def test_copies_are_the_leaders_honest_update_bit_for_bit(roles: Path, tmp_path: Path) -> None:
    prepare(experiment().honest(), tmp_path)
    global_D = global_state(roles)
    for round_ in (1, 2):
        honest = attack_of(tmp_path, 1).update(round_, global_D).update_D
        copies = [attack_of(roles, client).update(round_, global_D).update_D for client in (1, 3)]
        assert torch.equal(copies[0], honest)
        assert torch.equal(copies[1], honest)
        assert not torch.equal(attack_of(tmp_path, 3).update(round_, global_D).update_D, honest)


def ring_of(resources: Resources, shards: dict[int, list[int]], client: int) -> Resources:
    """The resources of one of a ring; each shard is a range [start, end) of the resources' own samples."""
    held = {k: (resources.images[slice(*cut)], resources.labels[slice(*cut)]) for k, cut in shards.items()}
    allies = tuple(Ally(client=k, images=x, labels=y) for k, (x, y) in held.items() if k != client)
    return Resources(
        model=resources.model,
        images=held[client][0],
        labels=held[client][1],
        public=None,
        training=resources.training,
        seed=100 + client,
        folder=resources.folder / str(client),
        client=client,
        allies=allies,
        leader_seed=100 + min(shards),
    )


@pytest.fixture
def resources(roles: Path, tmp_path: Path) -> Resources:
    half, data = half_of(roles, 0), read_arrays(client_folder(roles, 0) / "data.safetensors")
    return Resources(
        model=FlatModel(half.model.name, half.shape),
        images=torch.from_numpy(data["images"].copy()),
        labels=torch.from_numpy(data["labels"].copy()),
        public=None,
        training=half.training,
        seed=1,
        folder=tmp_path,
    )


def test_a_split_deals_every_sample_of_the_leader_to_one_identity(resources: Resources, roles: Path) -> None:
    shards = {2: [0, 8], 4: [8, 10], 7: [10, 16]}
    global_D = global_state(roles)
    for place, client in enumerate(shards):
        own = ring_of(resources, shards, client)
        result = make_attack({"name": "sybil", "send": "split"}, own).update(1, global_D)
        part = torch.arange(8)[place::3]
        plain = train(
            own.model,
            global_D,
            resources.images[part],
            resources.labels[part],
            own.training,
            torch_generator(100 + client, "train", 1),
        )
        assert torch.equal(result.update_D, plain)
        assert result.notes["samples"] == [3, 3, 2][place]


def test_a_split_of_too_little_is_a_clear_mistake(resources: Resources) -> None:
    own = ring_of(resources, {0: [0, 2], 1: [2, 9], 2: [9, 14]}, 1)
    with pytest.raises(UserError, match="a sample of client 0 for each of 3 identities expected, it has 2; name fewer"):
        make_attack({"name": "sybil", "send": "split"}, own)
    make_attack({"name": "sybil", "send": "copy"}, own)


def test_pooled_shards_are_in_client_order_and_alone_its_own(resources: Resources) -> None:
    own = ring_of(resources, {1: [4, 8], 3: [0, 4], 5: [8, 12]}, 3)
    images, labels = own.pooled(torch.tensor([True, False, False, True]))
    order = [4, 5, 6, 7, 0, 3, 8, 9, 10, 11]
    assert torch.equal(images, resources.images[order])
    assert torch.equal(labels, resources.labels[order])
    keep = torch.arange(len(resources.labels)) % 2 == 0
    assert torch.equal(resources.pooled(keep)[0], resources.images[::2])


def test_a_colluding_synthesizers_decoder_knows_the_labels_of_all(resources: Resources, roles: Path) -> None:
    order = resources.labels.sort().indices
    ordered = Resources(**{**vars(resources), "images": resources.images[order], "labels": resources.labels[order]})
    n = len(order)
    own = ring_of(ordered, {0: [0, 4], 1: [n - 4, n]}, 0)
    lone = Resources(**{**vars(own), "allies": (), "leader_seed": None, "folder": own.folder / "lone"})
    table = {"name": "decoder_samples", "samples": 8, "decoder": {"hidden": 16, "steps": 20}}
    made = []
    for handed in (own, lone):
        notes = make_attack(table, handed).update(1, global_state(roles)).notes
        made.append({pair.split(":")[0] for pair in str(notes["labels"]).split(",")})
    first, last = (str(int(ordered.labels[i])) for i in (0, -1))
    assert made[1] == {first}, "its own label"
    assert last in made[0], "its ally's label, which it lacks"


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("clients = [0]\ncollude = true", "[attack] collude = true: at least two clients expected, got [0]"),
        ("collude = true", "[attack] collude = true: at least two clients expected, got [0]"),
        ("clients = [0, 1]\ncollude = 'yes'", "[attack] collude: true or false expected, got 'yes'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, lines: str, line: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(f"name = 'x'\n[attack]\nname = 'sybil'\n{lines}\n")
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    assert str(caught.value) == f"{path} {line}"


def test_sybils_that_do_not_collude_are_noticed_before_round_0(tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"collude": False}, "sybil needs allies; set collude = true"),
        ({"send": "all"}, "sybil send: one of 'copy', 'split' expected, got 'all'"),
    ]
    for changes, complaint in mistakes:
        lone = experiment(**changes)
        path.write_text(to_json(client_half(lone, deal(lone).shape, 1)))
        with pytest.raises(UserError, match=complaint):
            check(path)
    path.write_text(to_json(client_half(experiment(), deal(experiment()).shape, 1)))
    check(path)
