"""The `[network]` section: which line each client has, and which faults befall whom in which round. Torch-free.

Faults are part of the experiment, by (client, round), so the honest twin meets the same ones. Lines and faults can keep
an update from arriving in time, so they belong to the experiment's hash. Nothing here runs anything: the launcher puts
a link (`deploy/link/`) between a client and the server, and `deploy/faults.py` has the faults happen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Literal

from steelyard.errors import UserError
from steelyard.links import PROFILES, Profile, ProfileName
from steelyard.parsing import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Range
from steelyard.participation import Stay, listed

FaultKind = Literal["crash", "restart", "pause", "slow_compute", "partition", "reset"]
SECONDS = ("restart", "pause", "partition")  # kinds that last, and must say how long
REPEATED = ("pause", "slow_compute", "partition", "reset")  # kinds that may befall a client in several rounds in a row
LONGEST_SLOWDOWN_S = 600.0  # what one update can be slowed down by


@dataclass(frozen=True, kw_only=True)
class LineConfig:
    """A line: a named profile (docs/network.md), and figures that take the place of the profile's."""

    profile: ProfileName = "none"
    latency_ms: NonNegativeFloat | None = None
    jitter_ms: NonNegativeFloat | None = None
    up_mbit: NonNegativeFloat | None = None
    down_mbit: NonNegativeFloat | None = None
    stall_every_s: NonNegativeFloat | None = None
    stall_s: NonNegativeFloat | None = None
    reset_every_mb: NonNegativeFloat | None = None

    @property
    def line(self) -> Profile:
        """The figures that hold."""
        own = {field.name: getattr(self, field.name) for field in fields(Profile)}
        return Profile(**{**asdict(PROFILES[self.profile]), **{k: v for k, v in own.items() if v is not None}})


@dataclass(frozen=True, kw_only=True)
class ClientLine(LineConfig):
    """One client's own line, a `[[network.clients]]` table; nothing of the default line goes into it."""

    client: NonNegative


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What befalls a client in a round, a `[[network.faults]]` table.

    Attributes:
        client: whom.
        round: in which round.
        rounds: in how many rounds in a row (pause, slow_compute, partition, reset).
        kind: `crash` kills the process for good, `restart` starts it again after `seconds`, `pause` stops it and goes
            on with it after `seconds`, `partition` lets nothing pass for `seconds`, `reset` breaks its connections,
            `slow_compute` has its updates take `factor` times as long.
        at: the moment, while the model comes down ("fetch") or the update goes up ("upload").
        fraction: of the model's or the update's bytes, after which it happens.
        seconds: for how long.
        factor: of slow_compute.
    """

    client: NonNegative
    round: Positive
    rounds: Positive = 1
    kind: FaultKind
    at: Literal["upload", "fetch"] = "upload"
    fraction: Annotated[float, Range(0.05, 0.95)] = 0.5  # what else passes, heartbeats and headers, counts too
    seconds: PositiveFloat | None = None
    factor: Annotated[float, Range(1, 1000)] | None = None

    @property
    def needs_link(self) -> bool:
        """Whether a link has to catch the client at its moment."""
        return self.kind != "slow_compute"

    @property
    def covered(self) -> range:
        """The rounds in which it happens."""
        return range(self.round, self.round + self.rounds)


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """What a client is told of its own slow processor: its updates of some rounds take `factor` times as long."""

    first: Positive
    last: Positive
    factor: PositiveFloat

    def seconds(self, number: int, spent: float) -> float:
        """How long to wait after an update of a round that took `spent` seconds."""
        return min((self.factor - 1.0) * spent, LONGEST_SLOWDOWN_S) if self.first <= number <= self.last else 0.0


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(LineConfig):
    """Every client's line, by default this section's own, and the fault plan."""

    clients: tuple[ClientLine, ...] = ()
    faults: tuple[Fault, ...] = ()

    def line_of(self, client: int) -> Profile:
        """The figures of a client's line."""
        return next((own.line for own in self.clients if own.client == client), self.line)

    def linked(self, clients: Sequence[int]) -> tuple[int, ...]:
        """Those of some clients that need a link: their line is not a bare one, or a fault has to catch them."""
        caught = {fault.client for fault in self.faults if fault.needs_link}
        return tuple(client for client in clients if client in caught or self.line_of(client) != Profile())

    def slowdowns_of(self, client: int) -> tuple[Slowdown, ...]:
        """When and how much a client computes more slowly."""
        return tuple(
            Slowdown(first=fault.covered[0], last=fault.covered[-1], factor=fault.factor or 1.0)
            for fault in self.faults
            if fault.kind == "slow_compute" and fault.client == client
        )


def check_network(network: NetworkConfig, stays: Mapping[int, Stay], rounds: int, tensors: str, where: str) -> None:
    """Check what no single field can say.

    Args:
        network: the section.
        stays: the rounds of the clients that take part.
        rounds: the number of rounds.
        tensors: the tensor plane; a link can shape only what passes through it.
        where: what to call the section in an error.

    Raises:
        UserError: a client that does not take part or has two lines, a fault with keys that its kind lacks or does not
            have, outside its client's rounds, or at once with another; or a link on a plane that would pass it by.
    """
    seen: set[int] = set()
    for own in network.clients:
        if own.client not in stays or own.client in seen:
            raise UserError(f"{where} clients client: one of {listed(stays)}, each once, expected, got {own.client}")
        seen.add(own.client)
    taken: dict[tuple[int, int, bool], str] = {}
    for fault in network.faults:
        _check_fault(fault, stays, rounds, f"{where} faults")
        for number in fault.covered:
            place = (fault.client, number, fault.needs_link)
            if place in taken:
                raise UserError(
                    f"{where} faults: one fault for a client in a round expected, client {fault.client} has "
                    f"{taken[place]} and {fault.kind} in round {number}"
                )
            taken[place] = fault.kind
    if network.linked(tuple(stays)) and tensors != "grpc":
        raise UserError(
            f"{where}: a line or a fault needs transport.tensors = 'grpc', {tensors!r} passes a link by; "
            "leave the section out or change the plane"
        )


def _check_fault(fault: Fault, stays: Mapping[int, Stay], rounds: int, where: str) -> None:
    if fault.client not in stays:
        raise UserError(f"{where} client: one of {listed(stays)} expected, got {fault.client}")
    where = f"{where} client {fault.client} {fault.kind}"
    if fault.rounds > 1 and fault.kind not in REPEATED:
        raise UserError(f"{where} rounds: 1 expected, it can happen once, got {fault.rounds}")
    outside = [number for number in fault.covered if number > rounds or not stays[fault.client].covers(number)]
    if outside:
        raise UserError(f"{where} round: rounds in which client {fault.client} takes part expected, got {outside[0]}")
    for key, kinds in (("seconds", SECONDS), ("factor", ("slow_compute",))):
        value = getattr(fault, key)
        if fault.kind in kinds and value is None:
            raise UserError(f"{where}: key {key!r} is missing; add it")
        if fault.kind not in kinds and value is not None:
            raise UserError(f"{where} {key}: no such key expected, only {', '.join(kinds)} has it, got {value:g}")
