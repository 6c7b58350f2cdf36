"""Experiment files, overrides, digests and the two halves."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.prepare import client_half, server_half
from steelyard.config import (
    ClientHalf,
    DataConfig,
    Experiment,
    RosterEntry,
    ServerHalf,
    Shape,
    load_experiment,
    load_half,
    to_json,
)
from steelyard.errors import UserError
from steelyard.parsing import parse

SHAPE = Shape(channels=1, height=8, width=8, classes=10)
FULL = """
name = "full"
seed = 3
rounds = 2
[data]
public = 50
[clients]
count = 3
[attack]
name = "latent"
clients = [1]
knowledge = "public"
compare_honest = true
samples = 32
objective = { margin = 0.25 }
[[evaluators]]
name = "a"
kind = "fedsv"
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "experiment.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def loaded(folder: Path, text: str, *overrides: str) -> Experiment:
    return load_experiment(written(folder, text), overrides)


def mistake(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


def test_a_name_alone_is_an_experiment(tmp_path: Path) -> None:
    assert loaded(tmp_path, 'name = "x"') == Experiment(name="x")


def test_what_the_file_says_is_what_comes_out(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, FULL)
    assert (experiment.seed, experiment.rounds, experiment.clients.count, experiment.data.public) == (3, 2, 3, 50)
    assert experiment.evaluators == ({"name": "a", "kind": "fedsv"},)
    assert (experiment.attackers, experiment.compares_honest, experiment.partition_seed) == ((1,), True, 3)


WRONG_FILES: list[tuple[str | bytes, str]] = [
    (b"", "FILE: key 'name' is missing; add it"),
    (b"\x7fELF\x00\xff", "FILE: a TOML file expected: "),
    ("name = ", "FILE: a TOML file expected: Invalid value"),
    ("name = 'a'\nname = 'b'", "FILE: a TOML file expected: Cannot overwrite a value"),
    ("a = " + "[" * 20_000, "FILE: a TOML file expected: "),
    ("seed = " + "9" * 5000, "FILE: a TOML file expected: "),
    ("rouns = 3", "FILE: unknown key 'rouns'; did you mean 'rounds'? known: name, seed, rounds"),
    ("rounds = true", "FILE rounds: an integer expected, got True"),
    ("rounds = 0", "FILE rounds: >= 1 expected, got 0"),
    ("seed = -1", "FILE seed: >= 0 expected, got -1"),
    ("data = 3", "FILE data: a table expected, got 3"),
    ("[data]\nalpha = nan", "FILE data alpha: a finite number of at most 64 bits expected, got nan"),
    ("[data]\nalpha = 0", "FILE data alpha: > 0 expected, got 0"),
    (
        "[data]\npartition = 'dirichelt'",
        "FILE data partition: one of 'iid', 'dirichlet', 'labels', 'quantity' expected",
    ),
    ("[clients]\ncount = 0", "FILE clients count: >= 1 expected, got 0"),
    (
        "[data]\nvalidation = 50\n[scoring]\nexamples = 51",
        "FILE [scoring] examples: at most [data] validation = 50 expected, got 51",
    ),
    ("[scoring]\nexamples = -1", "FILE scoring examples: >= 0 expected, got -1"),
    ("[protocol]\nquorum = 11", "FILE [protocol] quorum: at most the 10 clients expected, got 11"),
    ("[protocol]\nround_deadline_s = 0", "FILE protocol round_deadline_s: > 0 expected, got 0"),
    ("evaluators = []", "FILE [[evaluators]]: at least one expected, got none; a run is there to be scored"),
    ("evaluators = 3", "FILE evaluators: a list expected, got 3"),
    ("[[evaluators]]\nkind = 'loo'", "FILE [[evaluators]]: each needs a `name` of its own, got None"),
    ("[[evaluators]]\nname = 3", "FILE [[evaluators]]: each needs a `name` of its own, got 3"),
    ("evaluators = [{name='a'}, {name='a'}]", "FILE [[evaluators]]: each needs a `name` of its own, got 'a', 'a'"),
    ("[attack]\nclients = [1]", "FILE [attack] name: a string expected, got None"),
    ("[attack]\nname = 'x'\nclients = 1", "FILE [attack] clients: a list of indices below 10 expected, got 1"),
    ("[attack]\nname = 'x'\nclients = [10]", "FILE [attack] clients: a list of indices below 10 expected, got [10]"),
    ("[attack]\nname = 'x'\nclients = [-1]", "FILE [attack] clients: a list of indices below 10 expected, got [-1]"),
    (
        "[attack]\nname = 'x'\nclients = [true]",
        "FILE [attack] clients: a list of indices below 10 expected, got [True]",
    ),
    (
        "[attack]\nname = 'x'\nclients = [1, 1]",
        "FILE [attack] clients: at least one and each once expected, got [1, 1]",
    ),
    ("[attack]\nname = 'x'\nclients = []", "FILE [attack] clients: at least one and each once expected, got []"),
    ("[attack]\nname = 'x'\ncompare_honest = 'no'", "FILE [attack] compare_honest: true or false expected, got 'no'"),
    ("[attack]\nname = 'x'\nknowledge = 'all'", "FILE [attack] knowledge: 'own' or 'public' expected, got 'all'"),
    ("[attack]\nname = 'x'\nknowledge = 'public'", "FILE [attack] knowledge = 'public' needs a public set: set [data]"),
    ("[attack]\nname = 'x'\nwhen = 2024-01-01", "FILE attack.when: a finite number, a string, true or false, a list"),
]


@pytest.mark.parametrize(("text", "line"), WRONG_FILES, ids=lambda value: str(value[:50]))
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str | bytes, line: str) -> None:
    if isinstance(text, str) and "name = 'a'" not in text and not text.startswith("name"):
        text = f"name = 'x'\n{text}"
    assert mistake(written(tmp_path, text)).startswith(line)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "-", "x" * 101])
def test_a_name_that_makes_no_folder(tmp_path: Path, name: str) -> None:
    assert mistake(written(tmp_path, f"name = '{name}'")).startswith("FILE name: up to 100 letters, digits, - and _")


def test_no_file_a_folder_and_a_file_for_a_folder(tmp_path: Path) -> None:
    assert mistake(tmp_path / "none.toml") == (
        "experiment file expected at FILE, there is none; experiments/ holds ready ones"
    )
    assert mistake(tmp_path).startswith("FILE: a TOML file expected: ")
    assert mistake(written(tmp_path, "") / "x.toml").startswith("FILE: a TOML file expected: ")


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("seed=5", ("seed",), 5),
        ("data.alpha=1", ("data", "alpha"), 1.0),
        ("data.partition=iid", ("data", "partition"), "iid"),
        (" data.partition = iid ", ("data", "partition"), "iid"),
        ('data.partition="iid"', ("data", "partition"), "iid"),
        ("data.folder=/data/my files", ("data", "folder"), "/data/my files"),
        ("data.folder=a=b", ("data", "folder"), "a=b"),
        ("data.folder=", ("data", "folder"), ""),
        ("data.folder=a\nb = 3", ("data", "folder"), "a\nb = 3"),
        ("data.folder='a'\nb = 3", ("data", "folder"), "'a'\nb = 3"),
        ("transport.chunk_bytes=1_000", ("transport", "chunk_bytes"), 1000),
        ("evaluators=[{name='z', kind='loo'}]", ("evaluators",), ({"name": "z", "kind": "loo"},)),
        ("attack.samples=8", ("attack",), {"name": "latent", "samples": 8}),
        ("attack.objective.margin=0.5", ("attack",), {"name": "latent", "objective": {"margin": 0.5}}),
    ],
)
def test_an_override_sets_what_it_names(tmp_path: Path, override: str, place: tuple[str, ...], value: Any) -> None:
    found: Any = loaded(tmp_path, "name = 'x'\n[attack]\nname = 'latent'", override)
    for name in place:
        found = getattr(found, name)
    assert found == value


def test_the_last_override_wins_and_the_file_loses(tmp_path: Path) -> None:
    assert loaded(tmp_path, "name = 'x'\nseed = 1", "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--set: key=value expected, got 'seed'"),
        ("=3", "--set: key=value expected, got '=3'"),
        ("", "--set: key=value expected, got ''"),
        ("seed.x=3", "--set seed.x: 'seed' is a value, not a table"),
        ("evaluators.0.name=x", "--set evaluators.0.name: 'evaluators' is a value, not a table"),
        ("data.alhpa=1", "FILE data: unknown key 'alhpa'; did you mean 'alpha'?"),
        ("dta.alpha=1", "FILE: unknown key 'dta'; did you mean 'data'?"),
        ("data..alpha=1", "FILE data: unknown key ''"),
        ("data=3", "FILE data: a table expected, got 3"),
        ("rounds=two", "FILE rounds: an integer expected, got 'two'"),
        ("data.alpha=nan", "FILE data alpha: a finite number of at most 64 bits expected, got nan"),
        ("attack.compare_honest=False", "FILE [attack] compare_honest: true or false expected, got 'False'"),
    ],
)
def test_a_bad_override_is_one_line(tmp_path: Path, override: str, line: str) -> None:
    path = written(tmp_path, "name = 'x'\nseed = 1\n[[evaluators]]\nname = 'a'\n[attack]\nname = 'y'")
    assert mistake(path, override).startswith(line)


def leaves(record: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf field by its dotted name, with the whole record in which that field alone has another value."""
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if dataclasses.is_dataclass(value):
            for name, changed in leaves(value):
                yield f"{item.name}.{name}", dataclasses.replace(record, **{item.name: changed})
        else:
            yield item.name, dataclasses.replace(record, **{item.name: another(value)})


def another(value: Any) -> Any:
    if isinstance(value, dict):
        return {**value, "name": "another"}
    if isinstance(value, tuple):
        return (*value, "another" if value and isinstance(value[0], str) else {"name": "another"})
    return value + "x" if isinstance(value, str) else (value or 0) + 1


IN_NO_RESULT = ("name", "data.folder", "scoring.workers", "placement.server")


@pytest.mark.parametrize(("name", "changed"), list(leaves(Experiment(name="x"))), ids=lambda value: str(value)[:40])
def test_the_digest_names_all_but_name_transport_and_folder(name: str, changed: Experiment) -> None:
    assert changed != Experiment(name="x")
    ignored = name in IN_NO_RESULT or name.startswith("transport.")
    assert (changed.digest() == Experiment(name="x").digest()) == ignored


def test_the_digest_does_not_tell_an_integer_from_the_float_it_becomes(tmp_path: Path) -> None:
    assert (
        loaded(tmp_path, "name='x'\n[data]\nalpha=1").digest()
        == loaded(tmp_path, "name='x'\n[data]\nalpha=1.0").digest()
    )


def test_the_digest_is_ten_hex_digits_that_last() -> None:
    assert int(Experiment(name="x").digest(), 16) >= 0
    assert len(Experiment(name="x").digest()) == 10


def test_the_honest_twin_differs_in_the_attack_alone(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, FULL)
    twin = experiment.honest()
    assert twin == dataclasses.replace(experiment, attack={})
    assert (twin.attackers, twin.compares_honest) == ((), False)
    assert twin.digest() == loaded(tmp_path, FULL, "attack.samples=64", "name=other").honest().digest()
    assert twin.digest() != experiment.digest()
    assert twin.honest() == twin


def test_a_resolved_experiment_survives_json(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, FULL)
    assert parse(Experiment, json.loads(to_json(experiment)), "manifest") == experiment


def test_an_attacker_is_handed_its_own_parameters_and_others_are_honest(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, FULL)
    assert experiment.attack_of(1) == {"name": "latent", "samples": 32, "objective": {"margin": 0.25}}
    assert experiment.attack_of(0) == experiment.attack_of(2) == {"name": "honest"}
    assert [experiment.knows_public(k) for k in range(3)] == [False, True, False]


def test_without_declared_knowledge_nobody_gets_the_public_set(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, FULL, "attack.knowledge=own")
    assert not any(experiment.knows_public(k) for k in range(3))


def test_client_0_attacks_where_no_client_is_named_and_compares_unless_told_not_to() -> None:
    experiment = Experiment(name="x", attack={"name": "latent"})
    assert (experiment.attackers, experiment.compares_honest) == ((0,), True)
    assert not Experiment(name="x", attack={"name": "latent", "compare_honest": False}).compares_honest
    assert Experiment(name="x").attackers == ()


def test_the_partition_has_a_seed_of_its_own_if_it_is_given_one() -> None:
    assert Experiment(name="x", seed=4).partition_seed == 4
    assert Experiment(name="x", seed=4, data=DataConfig(partition_seed=0)).partition_seed == 0


def test_the_servers_half_has_no_word_of_the_attack(tmp_path: Path) -> None:
    """Not even by the experiment's name, which people give after the attack."""
    experiment = loaded(tmp_path, FULL, "name=latent-attack-of-client-1", "attack.samples=31337")
    roster = tuple(RosterEntry(client=k, samples=9, token_sha256="0" * 64) for k in range(3))
    text = to_json(server_half(experiment, SHAPE, roster))
    for word in ("attack", "latent", 'samples": 31337', "objective", "margin", "knowledge", "compare_honest", "public"):
        assert word not in text
    assert text == to_json(server_half(experiment.honest(), SHAPE, roster))


def test_a_clients_half_tells_nothing_of_the_others(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, FULL)
    honest, attacker = (client_half(experiment, SHAPE, k) for k in (0, 1))
    assert honest == client_half(experiment.honest(), SHAPE, 0)
    assert (attacker.attack["name"], attacker.public) == ("latent", True)
    assert len({honest.seed, attacker.seed, experiment.seed}) == 3
    assert attacker.seed == client_half(experiment.honest(), SHAPE, 1).seed, "twins shuffle alike"


def test_both_halves_survive_their_files(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, FULL)
    server = server_half(experiment, SHAPE, (RosterEntry(client=0, samples=9),))
    client = client_half(experiment, SHAPE, 1)
    for kind, half in ((ServerHalf, server), (ClientHalf, client)):
        path = tmp_path / "half.json"
        path.write_text(to_json(half))
        assert load_half(kind, path) == half


@pytest.mark.parametrize(
    ("contents", "line"),
    [
        (b"", "HALF: a JSON file expected: "),
        (b"\xff\xfe", "HALF: a JSON file expected: "),
        (b"{", "HALF: a JSON file expected: "),
        (b"[" * 100_000, "HALF: a JSON file expected: "),
        (b"[]", "HALF: a table expected, got []"),
        (b"3", "HALF: a table expected, got 3"),
        (b"{}", "HALF: key 'client' is missing; add it"),
        (b'{"sever": 3}', "HALF: unknown key 'sever'; did you mean 'seed'?"),
    ],
)
def test_a_malformed_half_is_one_line(tmp_path: Path, contents: bytes, line: str) -> None:
    path = tmp_path / "half.json"
    path.write_bytes(contents)
    with pytest.raises(UserError) as caught:
        load_half(ClientHalf, path)
    assert str(caught.value).replace(str(path), "HALF").startswith(line)
    assert "\n" not in str(caught.value)


def test_a_missing_half_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is none; make it with `steelyard prepare`"):
        load_half(ServerHalf, tmp_path / "half.json")
    with pytest.raises(UserError, match="a JSON file expected"):
        load_half(ServerHalf, tmp_path)


def test_a_number_in_a_half_must_be_one(tmp_path: Path) -> None:
    half = json.loads(to_json(client_half(Experiment(name="x"), SHAPE, 0)))
    half["training"]["learning_rate"] = math.nan
    path = tmp_path / "half.json"
    path.write_text(json.dumps(half))
    with pytest.raises(UserError, match="training learning_rate: a finite number of at most 64 bits expected, got nan"):
        load_half(ClientHalf, path)
