"""Decoders trained beforehand: the same updates as trained on the spot, and nobody is handed more than it may know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.app import _attack
from deploy.decoders import allowed_decoder
from deploy.prepare import client_folder, prepare
from scripts.main import main
from steelyard.config import ClientHalf, Experiment, load_experiment, load_half
from steelyard.data.deal import Deal, deal
from steelyard.decoder_store import FOLDER_VARIABLE, ROLE_FILE, file_digest, read_provenance
from steelyard.errors import UserError
from steelyard.models import FlatModel
from steelyard.seeding import torch_generator

TOML = """
name = "small"
seed = 4
[data]
samples_per_client = 30
validation = 40
test = 50
public = 20
[clients]
count = 3
[attack]
name = "decoder_samples"
clients = [1]
samples = 8
[attack.decoder]
kind = "conv_vae"
width = 4
steps = 8
"""


class Store:
    """The store and the experiment of this file's tests."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "small.toml"
        self.file.write_text(TOML)
        self.folder = folder / "decoders"
        self.by_source: dict[str, str] = {}

    def train(self, *sources: str) -> None:
        """Train of each source, side by side, through the command."""
        command = ["decoder", "train", str(self.file), "--out", str(self.folder), "--source"]
        with ThreadPoolExecutor(len(sources)) as pool:
            assert list(pool.map(main, [[*command, source] for source in sources])) == [0] * len(sources)
        self.by_source = {read_provenance(path).source: path.stem for path in self.folder.glob("*.safetensors")}
        assert set(self.by_source) == set(sources)

    def experiment(self, sha256: str, source: str, **changes: Any) -> Experiment:
        table = {"decoder_sha256": sha256, "decoder_source": source, **changes}
        table |= {"knowledge": "public"} if source == "public" and "knowledge" not in changes else {}
        settings = [f"attack.{key}={json.dumps(value)}" for key, value in table.items()]
        return load_experiment(self.file, settings)

    def allowed(self, experiment: Experiment) -> Path | None:
        dealt: Deal = deal(experiment)
        return allowed_decoder(experiment, dealt)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("store"))
    made.train("own", "public")
    return made


@pytest.fixture(autouse=True)
def _found_here(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store is found, and this process computes on one thread as a run's processes do: more change the bits."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(store.folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def first_update(roles: Path) -> torch.Tensor:
    """The attacker's update of round 1, made from its role folder alone."""
    folder = client_folder(roles, 1)
    half: ClientHalf = load_half(ClientHalf, folder / "half.json")
    start_D = FlatModel(half.model.name, half.shape).initial_state(torch_generator(1, "initial"))
    return _attack(half, folder).update(1, start_D).update_D


def test_what_is_stored_says_what_it_was_made_of(store: Store) -> None:
    for source, sha256 in store.by_source.items():
        path = store.folder / f"{sha256}.safetensors"
        assert file_digest(path) == sha256
        record = json.loads(path.with_suffix(".json").read_text())
        made_of = read_provenance(path)
        assert (made_of.source, made_of.client, made_of.dataset) == (source, 1, "digits")
        assert made_of.params == {
            "kind": "conv_vae",
            "latent": 8,
            "width": 4,
            "steps": 8,
            "batch_size": 64,
            "learning_rate": 0.003,
            "divergence": 0.004,
        }
        assert record["sha256"] == sha256
        assert record["data_sha256"] == made_of.data_sha256
        dealt = deal(store.experiment(sha256, source))
        assert record["samples"] == len(dealt.public if source == "public" else dealt.shards[1])
        assert record["final_loss"]["negative_bound"] > 0
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("source", ["own", "public"])
def test_updates_are_those_of_a_decoder_trained_on_the_spot(store: Store, source: str, tmp_path: Path) -> None:
    sha256 = store.by_source[source]
    handed = store.experiment(sha256, source)
    prepare(handed, tmp_path / "handed")
    on_the_spot = store.experiment("", source)
    prepare(on_the_spot, tmp_path / "spot")
    assert torch.equal(first_update(tmp_path / "handed"), first_update(tmp_path / "spot"))
    assert not list(client_folder(tmp_path / "handed", 1).glob("state/decoder-*")), "nothing was trained"
    assert list(client_folder(tmp_path / "spot", 1).glob("state/decoder-*"))


def test_the_attackers_folder_alone_gets_it(store: Store, tmp_path: Path) -> None:
    sha256 = store.by_source["own"]
    prepare(store.experiment(sha256, "own"), tmp_path / "roles")
    holders = [path.parent.name for path in (tmp_path / "roles").rglob(ROLE_FILE)]
    assert holders == ["client-1"]
    needle = (store.folder / f"{sha256}.safetensors").read_bytes()[-64:]
    for role in ("server", "client-0", "client-2"):
        files = [path.read_bytes() for path in (tmp_path / "roles" / role).rglob("*") if path.is_file()]
        assert not any(needle in data or sha256.encode() in data for data in files)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("public", {"knowledge": "own"}, 'a decoder of the public set needs knowledge = "public"'),
        ("own", {"decoder_source": "public", "knowledge": "public"}, "decoder_source = 'public' expected"),
        ("own", {"clients": [0]}, r"made of client 1's shard, so clients = \[1\] expected, got \[0\]"),
        ("own", {"clients": [0, 1]}, r"expected, got \[0, 1\]"),
        ("own", {"decoder.kind": "mlp"}, r"\[attack.decoder\] kind: 'conv_vae' expected"),
        (
            "own",
            {"decoder.steps": 9},
            "steps: 8 expected, as decoder_sha256 was trained, got 9",
        ),
        ("own", {"decoder_sha256": "abc"}, "64 lower-case hex digits expected, got 'abc'"),
        (
            "own",
            {"decoder_sha256": "0" * 64},
            "there is none; make it with `steelyard decoder",
        ),
        ("own", {"decoder_sha256": 7}, "a string expected, got 7"),
    ],
)
def test_the_boundary(store: Store, source: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    experiment = store.experiment(**{"sha256": store.by_source[source], "source": source, **changes})
    with pytest.raises(UserError, match=message):
        prepare(experiment, tmp_path / "roles")
    assert not (tmp_path / "roles").exists(), "nothing was written"


@pytest.mark.parametrize("source", ["own", "public"])
def test_another_deals_decoder_is_refused_since_its_data_overlap(store: Store, source: str) -> None:
    experiment = store.experiment(store.by_source[source], source)
    assert store.allowed(experiment) == store.folder / f"{store.by_source[source]}.safetensors"
    other = replace(experiment, data=replace(experiment.data, partition_seed=5))
    with pytest.raises(UserError, match=r"made of this deal's .* expected, it is of another deal"):
        store.allowed(other)


def test_a_damaged_file_is_refused_by_prepare_and_by_the_client(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = store.by_source["own"]
    experiment = store.experiment(sha256, "own")
    prepare(experiment, tmp_path / "roles")
    copy = tmp_path / "store"
    shutil.copytree(store.folder, copy)
    monkeypatch.setenv(FOLDER_VARIABLE, str(copy))
    handed = client_folder(tmp_path / "roles", 1) / ROLE_FILE
    for path in (copy / f"{sha256}.safetensors", handed):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(UserError, match=f"content of SHA-256 {sha256} expected, got"):
        store.allowed(experiment)
    with pytest.raises(UserError, match=f"content of SHA-256 {sha256} expected, got"):
        first_update(tmp_path / "roles")
    handed.unlink()
    with pytest.raises(UserError, match=r"decoder\.safetensors expected in the role folder"):
        first_update(tmp_path / "roles")


def test_a_reference_of_withheld_samples_needs_a_decoder_that_has_not_seen_them(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment(store.by_source["own"], "own", name="latent", reference="own")
    prepare(experiment, tmp_path / "roles")
    with pytest.raises(UserError, match="withholds samples from the decoder"):
        first_update(tmp_path / "roles")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--source own --client 3", "--client: an index below 3 expected, got 3"),
        ("--source public --set data.public=0", "--source public: a public set expected, there is none"),
    ],
)
def test_mistakes_on_the_command_line(
    store: Store, arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decoder", "train", str(store.file), *arguments.split()]) == 2
    assert capsys.readouterr().err.startswith(f"steelyard: {line}")


def test_a_mistake_in_the_decoders_table_is_told_by_the_child(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["decoder", "train", str(store.file), "--source", "own", "--set", "attack.decoder.kind=gan"]) == 2
    assert capfd.readouterr().err.startswith(
        "steelyard: [attack] decoder kind: one of 'mlp', 'conv_vae', 'dcgan' expected"
    )
