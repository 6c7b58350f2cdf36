"""The experiment file and its two halves, as frozen typed records.

One TOML file describes an experiment. `prepare` cuts it into a server half, which has no word of who attacks, and one
client half per client, which knows its own client alone. Plug-in tables (attack, evaluator) pass through as plain
tables: the process that owns the plug-in checks them against the parameter dataclass beside it. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from steelyard.config_checks import check_experiment
from steelyard.errors import UserError
from steelyard.network import NetworkConfig, Slowdown
from steelyard.parsing import NonNegative, NonNegativeFloat, Positive, PositiveFloat, parse
from steelyard.participation import Stay, stays
from steelyard.placement import PlacementConfig
from steelyard.transport.settings import TransportConfig

LAUNCHERS_KEYS = ("clients", "compare_honest", "knowledge", "collude")  # of [attack]; the rest is the attack's own
EVALUATORS: tuple[dict[str, Any], ...] = tuple(
    {"name": f"{kind}_{utility}", "kind": kind, "utility": utility}
    for kind in ("fedsv", "loo")
    for utility in ("accuracy", "loss")
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, and how it is dealt out. Sizes are numbers of samples.

    `samples_per_client` is the mean shard size (0: all that is left); `minimum_per_client` holds for every partition;
    `partition_seed` defaults to the experiment's seed. Validation, test and public sets are stratified by label and
    disjoint from every shard and from each other.
    """

    dataset: str = "digits"
    folder: str = ""
    partition: Literal["iid", "dirichlet", "labels", "quantity"] = "dirichlet"
    alpha: PositiveFloat = 0.3
    labels_per_client: Positive = 2
    partition_seed: NonNegative | None = None
    samples_per_client: NonNegative = 0
    minimum_per_client: Positive = 8
    validation: Positive = 300
    test: Positive = 400
    public: NonNegative = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network; "" picks the small CNN made for the data's image size."""

    name: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Local SGD of every client, each round."""

    epochs: Positive = 2
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 0.1
    momentum: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0


@dataclass(frozen=True, kw_only=True)
class ClientsConfig:
    """How many clients there are, and who takes part when.

    `absent` clients are dealt their shard and never take part: the same experiment without them. Each table of
    `schedule` names a client and its first round (`join`), the first one without it (`leave`) and the first one with it
    again (`return`); see `steelyard.participation`.
    """

    count: Positive = 10
    absent: tuple[NonNegative, ...] = ()
    schedule: tuple[dict[str, int], ...] = ()

    @property
    def present(self) -> tuple[int, ...]:
        """The clients that take part in some round, in order."""
        return tuple(client for client in range(self.count) if client not in self.absent)

    @property
    def stays(self) -> dict[int, Stay]:
        """In which rounds each of them takes part."""
        return stays(self.present, self.schedule)


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """The evaluation path: it decides the bits of every score, so the manifest names it and no run tunes it.

    `path` is the way to compute a coalition model's logits (docs/scoring.md has them all, with their error bounds);
    `inner_batch` is the number of validation samples per forward pass; `device` is what computes coalitions'
    utilities and the test accuracy. `workers` is the number of processes that share the coalitions; it changes no bit,
    so it is not part of the experiment's hash. `examples` of the validation samples (0: all), a stratified part drawn
    by the seed, are what judges coalitions.
    """

    path: Literal[
        "plain",
        "im2col",
        "folded",
        "winograd",
        "im2col_winograd",
        "folded_tf32",
        "im2col_bf16",
        "folded_bf16",
        "winograd_bf16",
    ] = "plain"
    inner_batch: Positive = 100
    device: Literal["cpu", "cuda"] = "cpu"
    workers: Positive = 1
    examples: NonNegative = 0


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """When a round opens, closes and counts; seconds.

    `quorum` is the number of updates that a round needs (0: all but a third, at least 1); `join_timeout_s` bounds the
    wait for clients; a client without a heartbeat for `lease_s` counts as gone for later rounds.
    """

    quorum: NonNegative = 0
    round_deadline_s: PositiveFloat = 120.0
    join_timeout_s: PositiveFloat = 120.0
    lease_s: PositiveFloat = 10.0
    max_void_rounds: NonNegative = 2


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """How much of every round is kept; `full` keeps the global model and every accepted update: any score replays."""

    level: Literal["full"] = "full"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment file, resolved: every default filled in."""

    name: str
    seed: NonNegative = 0
    rounds: Positive = 8
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    clients: ClientsConfig = field(default_factory=ClientsConfig)
    attack: dict[str, Any] = field(default_factory=dict)
    defence: dict[str, Any] = field(default_factory=dict)
    evaluators: tuple[dict[str, Any], ...] = EVALUATORS
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    @property
    def attackers(self) -> tuple[int, ...]:
        """The attacking clients' indices; empty when nobody attacks."""
        return tuple(self.attack.get("clients", (0,))) if self.attack else ()

    @property
    def compares_honest(self) -> bool:
        """Whether the run is paired with its honest twin."""
        return bool(self.attack) and bool(self.attack.get("compare_honest", True))

    @property
    def partition_seed(self) -> int:
        """The seed that deals out the data."""
        return self.seed if self.data.partition_seed is None else self.data.partition_seed

    def honest(self) -> Experiment:
        """The same experiment with nobody attacking, under the same seeds."""
        table = asdict(self)
        table["attack"] = {}
        return parse(Experiment, table, "honest twin")

    def attack_of(self, client: int) -> dict[str, Any]:
        """The attack's own table as handed to one client: its name and parameters, or honest."""
        if client not in self.attackers:
            return {"name": "honest"}
        return {k: v for k, v in self.attack.items() if k not in LAUNCHERS_KEYS}

    def knows_public(self, client: int) -> bool:
        """Whether a client is handed the public set: only an attacker whose declared knowledge is "public" is."""
        return client in self.attackers and self.attack.get("knowledge") == "public"

    def ring_of(self, client: int) -> tuple[int, ...]:
        """The colluding clients that a client is one of, in order; empty for everybody else."""
        return tuple(sorted(self.attackers)) if client in self.attackers and self.attack.get("collude") else ()

    def digest(self) -> str:
        """Names what decides the results: 10 hex digits of SHA-256 over it."""
        text = json.dumps(self.deciding(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def deciding(self) -> dict[str, Any]:
        """What decides the results, as a table: all but the rest.

        The rest: name, transport, data folder, the number of scoring workers, and of the devices all but their kind.
        """
        table = asdict(self)
        del table["name"], table["transport"]
        younger = {
            "defence": self.defence,
            "network": self.network != NetworkConfig(),
            "placement": self.placement.kinds,
        }
        table["placement"] = self.placement.kinds
        for section, counts in younger.items():  # at its default it is left out, so that older hashes stay
            if not counts:
                del table[section]
        del table["data"]["folder"]
        del table["scoring"]["workers"]
        if not self.scoring.examples:  # younger too
            del table["scoring"]["examples"]
        return table


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model must know of the data: image channels, height, width, and the number of classes."""

    channels: int
    height: int
    width: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class RosterEntry:
    """One client as the server knows it: its index, samples n_k and rounds, none of which it declares by itself.

    On loopback also the SHA-256 of its join token; beyond loopback the certificate names the client.
    """

    client: int
    samples: int
    token_sha256: str = ""
    stay: Stay = field(default_factory=Stay)


@dataclass(frozen=True, kw_only=True)
class ServerHalf:
    """The server's half of an experiment. It has no word of who attacks; a test holds it to that.

    Not even the experiment's name: people name an experiment after its attack. `clients` counts the absent ones too,
    who are not on the roster and whose values are 0 (0: there is nobody else). `training` is what a rule of `defence`
    that trains on the server's own samples does as a client would.
    """

    seed: int
    rounds: int
    shape: Shape
    model: ModelConfig
    roster: tuple[RosterEntry, ...]
    evaluators: tuple[dict[str, Any], ...]
    scoring: ScoringConfig
    protocol: ProtocolConfig
    transport: TransportConfig
    clients: NonNegative = 0
    device: str = "cpu"
    training: TrainingConfig = field(default_factory=TrainingConfig)
    defence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ring:
    """What a colluding client is told: the indices of all of them in order, the first one their leader; its seed."""

    clients: tuple[int, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class ClientHalf:
    """One client's half: its own index, seed, rounds and attack, and nothing of any other client's.

    `seed` is derived from the experiment's for this client alone, so that no client can redo another's shuffles. Only
    a colluding attacker has a `ring`. `slowdowns` say when its own processor is a slow one. For `patience_s`, and
    `transport.timeout_s` at least, it tries to reach a server that is gone.
    """

    client: int
    seed: int
    shape: Shape
    model: ModelConfig
    training: TrainingConfig
    attack: dict[str, Any]
    public: bool
    transport: TransportConfig
    stay: Stay = field(default_factory=Stay)
    ring: Ring | None = None
    slowdowns: tuple[Slowdown, ...] = ()
    device: str = "cpu"
    patience_s: NonNegativeFloat = 0.0


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply `key=value` overrides (dotted keys, TOML values; a bare word is a string).

    Raises:
        UserError: the file is missing, is no TOML, or something in it is unknown or out of range.
    """
    table = read_experiment(path)
    for override in overrides:
        _override(table, override)
    return make_experiment(table, str(path))


def read_experiment(path: Path) -> dict[str, Any]:
    """The table of an experiment file, unchecked.

    Raises:
        UserError: the file is missing or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"experiment file expected at {path}, there is none; experiments/ holds ready ones") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: a TOML file expected: {error}") from None


def make_experiment(table: Mapping[str, Any], where: str) -> Experiment:
    """An experiment from its table, every key checked; `where` names the table in an error.

    Raises:
        UserError: something in it is unknown or out of range.
    """
    experiment = parse(Experiment, table, where)
    check_experiment(experiment, where)
    return experiment


def load_half(kind: type[Any], path: Path) -> Any:
    """Read one role's half, as `prepare` wrote it.

    Raises:
        UserError: the file is missing or malformed.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"a role's configuration expected at {path}, there is none; make it with `steelyard prepare`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: a JSON file expected: {error}") from None
    return parse(kind, table, str(path))


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise UserError(f"--set: key=value expected, got {override!r}")
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {key}: {parent!r} is a value, not a table")
    table[last] = _override_value(text)


def _override_value(text: str) -> Any:
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return values["value"] if len(values) == 1 else text


def to_json(record: Any) -> str:
    """A configuration record as JSON text, keys in declaration order."""
    return json.dumps(asdict(record) if not isinstance(record, Mapping) else record, indent=1) + "\n"
