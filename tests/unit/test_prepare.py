"""Role folders: each holds its own role's things and no other's, down to the bytes."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.prepare import client_folder, prepare, server_folder
from steelyard.bundle import raw, read_arrays
from steelyard.certificates import write_certificates
from steelyard.config import ClientHalf, Experiment, ServerHalf, load_half
from steelyard.data.deal import Deal
from steelyard.errors import UserError
from steelyard.parsing import parse

EXPERIMENT: dict[str, Any] = {
    "name": "latent-attack",
    "clients": {"count": 3},
    "data": {"samples_per_client": 30, "validation": 40, "test": 50, "public": 20},
    "attack": {"name": "latent", "clients": [1], "knowledge": "public", "samples": 31337},
}


def experiment(**changes: Any) -> Experiment:
    return parse(Experiment, {**EXPERIMENT, **changes}, "test")


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Deal]:
    folder = tmp_path_factory.mktemp("prepared") / "roles"
    return folder, prepare(experiment(), folder)


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_folder_per_role_and_nothing_else(roles: tuple[Path, Deal]) -> None:
    folder, _ = roles
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    client_files = {f"client-{k}/{name}" for k in range(3) for name in ("half.json", "data.safetensors", "token")}
    assert files == {"server/half.json", "server/data.safetensors"} | client_files


def test_every_sets_bytes_lie_in_the_folders_that_may_have_it_alone(roles: tuple[Path, Deal]) -> None:
    folder, dealt = roles
    held = {path.name: contents(path) for path in folder.iterdir()}
    owners = {f"client-{k}": shard for k, shard in enumerate(dealt.shards)}
    sets = [(shard, {owner}) for owner, shard in owners.items()]
    sets += [(dealt.validation, {"server"}), (dealt.test, {"server"}), (dealt.public, {"client-1"})]
    for shard, expected in sets:
        images = bytes(raw(shard.images))
        assert {name for name, data in held.items() if images in data} == expected
        some_image = bytes(raw(shard.images[len(shard) // 2]))
        assert {name for name, data in held.items() if some_image in data} == expected


def test_what_a_role_reads_is_what_was_dealt(roles: tuple[Path, Deal]) -> None:
    folder, dealt = roles
    server = read_arrays(server_folder(folder) / "data.safetensors")
    assert set(server) == {"validation_images", "validation_labels", "test_images", "test_labels"}
    assert np.array_equal(server["validation_images"], dealt.validation.images)
    for k, shard in enumerate(dealt.shards):
        client = read_arrays(client_folder(folder, k) / "data.safetensors")
        assert np.array_equal(client["images"], shard.images)
        assert np.array_equal(client["labels"], shard.labels)
        assert ("public_images" in client) == (k == 1)


def test_the_server_knows_hashes_of_tokens_and_no_token(roles: tuple[Path, Deal]) -> None:
    folder, dealt = roles
    half: ServerHalf = load_half(ServerHalf, server_folder(folder) / "half.json")
    tokens = [(client_folder(folder, k) / "token").read_text() for k in range(3)]
    assert len(set(tokens)) == 3
    for entry, token, shard in zip(half.roster, tokens, dealt.shards, strict=True):
        assert entry.token_sha256 == hashlib.sha256(token.encode()).hexdigest()
        assert entry.samples == len(shard)
        assert token.encode() not in contents(server_folder(folder))
    for k, token in enumerate(tokens):
        holders = [path.name for path in folder.iterdir() if token.encode() in contents(path)]
        assert holders == [f"client-{k}"]


def test_the_servers_folder_has_no_word_of_the_attack(roles: tuple[Path, Deal]) -> None:
    everything = contents(server_folder(roles[0]))
    for word in (b"attack", b"latent", b"31337", b"knowledge", b"public"):
        assert word not in everything


def test_an_honest_clients_folder_has_no_word_of_it_either(roles: tuple[Path, Deal]) -> None:
    folder, _ = roles
    half = json.loads((client_folder(folder, 0) / "half.json").read_text())
    assert half["attack"] == {"name": "honest"}
    for word in (b"latent", b"31337", b"knowledge"):
        assert word not in contents(client_folder(folder, 0))
        assert (word in contents(client_folder(folder, 1))) == (word != b"knowledge")
    seeds = {load_half(ClientHalf, client_folder(folder, k) / "half.json").seed for k in range(3)}
    assert len(seeds) == 3


def test_other_users_of_the_host_can_read_no_folder_and_no_token(roles: tuple[Path, Deal]) -> None:
    folder, _ = roles
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*/token")} == {0o600}


def test_the_same_experiment_is_dealt_alike_and_gets_tokens_of_its_own(
    roles: tuple[Path, Deal], tmp_path: Path
) -> None:
    folder, _ = roles
    prepare(experiment(), tmp_path / "again")
    for name in ("server/data.safetensors", "client-1/data.safetensors", "client-1/half.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "again/client-1/token").read_text() != (folder / "client-1/token").read_text()


@pytest.mark.parametrize("taken", ["server", "client-7"])
def test_a_place_with_roles_in_it_is_refused_and_left_alone(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    with pytest.raises(UserError, match="an empty place for role folders expected"):
        prepare(experiment(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def test_too_few_examples_to_judge_on_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two of each label at least.*got 15$"):
        prepare(experiment(scoring={"examples": 15}), tmp_path / "roles")
    assert not (tmp_path / "roles").exists()


def test_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a place for role folders expected at"):
        prepare(experiment(), tmp_path / "file")


def test_with_certificates_there_are_no_tokens_and_each_role_gets_its_own_key(tmp_path: Path) -> None:
    write_certificates(tmp_path / "certs", 3, [])
    roles = tmp_path / "roles"
    prepare(experiment(transport={"certificates": str(tmp_path / "certs")}), roles)
    half: ServerHalf = load_half(ServerHalf, roles / "server/half.json")
    assert [entry.token_sha256 for entry in half.roster] == [""] * 3
    assert not list(roles.rglob("token"))
    keys = sorted((tmp_path / "certs").rglob("*key*.pem"))
    assert len(keys) == 5, "the authority's, the server's and three clients'"
    for key in keys:
        holders = [path.name for path in roles.iterdir() if key.read_bytes() in contents(path)]
        assert holders == ([key.parent.name] if key.parent.name != "certs" else []), "the authority's goes nowhere"


def test_missing_certificates_are_noticed_before_anything_is_written(tmp_path: Path) -> None:
    write_certificates(tmp_path / "certs", 2, [])
    lacking = experiment(transport={"certificates": str(tmp_path / "certs")})
    with pytest.raises(UserError, match=r"there is no .*client-2; make them with `steelyard certs`"):
        prepare(lacking, tmp_path / "roles")
    assert not (tmp_path / "roles").exists()
