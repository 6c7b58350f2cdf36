"""An experiment's containers as the text of a compose file: server, clients, a link before each, and their networks.

Valid for `docker compose` and docker-compose 1.29 alike, and a pure function of its arguments. Client k shares one
network with link k alone, and link k another one with the server, so that a client reaches the server through its link
and nobody else. No network leads out, and not even the host has an address on them. Knows no engine. Torch-free.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from deploy.containers.images import OFFICIAL_BASE
from deploy.environment import DETERMINISM, OTHERS, THREADS
from steelyard.errors import UserError
from steelyard.parsing import Positive

PORT = 7400
SERVER_NAME = "server"  # by this name clients dial it, and its certificate says it
USER = "10001:10001"  # as in the Dockerfile; a launcher that is not root puts itself here, to own what it mounts
SERVED = "served"  # the part of the run directory that the server writes
SUBNET_PREFIX = 29  # two ends, and the two addresses that every network loses
Network = ipaddress.IPv4Network


@dataclass(frozen=True, kw_only=True)
class Box:
    """What containers may have; none of it changes a result.

    Attributes:
        subnets: the private range that their networks are cut from, two of 8 addresses for each client.
        memory_mib: the most memory of each server and client.
        gpu: give every server and client one NVIDIA GPU.
    """

    subnets: str = "10.83.0.0/16"
    memory_mib: Positive = 4096
    gpu: bool = False


def compose_text(clients: Sequence[int], box: Box, taken: Iterable[Network] = ()) -> str:
    """The compose file of a run.

    Variables of it, with their defaults: STEELYARD_RUN (.), the folder with roles/ and served/; STEELYARD_TAG (latest)
    of the images; STEELYARD_USER; and for building STEELYARD_SOURCE (.) and STEELYARD_BASE.

    Args:
        clients: the indices of those that take part.
        box: what containers may have.
        taken: subnets that other networks have already.

    Raises:
        UserError: the range is none, or too small.
    """
    free = _subnets(box.subnets, len(clients), tuple(taken))
    near = {client: next(free) for client in clients}
    far = {client: next(free) for client in clients}
    parts = [_HEAD, _environment(), "services:\n", _server(far, box)]
    for at, client in enumerate(clients):
        parts.append(_link(client, near[client], far[client], build=at == 0))
        parts.append(_client(client, near[client], box, build=at == 0))
    parts.append("networks:\n")
    parts += [_network(f"near-{client}", near[client]) for client in clients]
    parts += [_network(f"far-{client}", far[client]) for client in clients]
    return "\n".join(parts)


def link_address(subnet: Network) -> str:
    """A link's address on either of its networks; the first one is nobody's, but engines reserve it for a gateway."""
    return str(subnet[2])


def end_address(subnet: Network) -> str:
    """The address of a link's other end: of the client on the near network, of the server on the far one."""
    return str(subnet[3])


def _subnets(text: str, clients: int, taken: tuple[Network, ...]) -> Iterator[Network]:
    try:
        whole = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise UserError(f"--subnets: an IPv4 range such as 10.83.0.0/16 expected, got {text!r}: {error}") from None
    if not whole.is_private:
        raise UserError(f"--subnets: a private range expected, {text} is not; take one within 10.0.0.0/8")
    if whole.prefixlen > SUBNET_PREFIX:
        raise UserError(f"--subnets: a range of at least 8 addresses expected, got {text}")
    found = [net for net in whole.subnets(new_prefix=SUBNET_PREFIX) if not any(net.overlaps(other) for other in taken)]
    if len(found) < 2 * clients:
        raise UserError(
            f"--subnets: {2 * clients} free networks of 8 addresses for {clients} clients expected, {text} has "
            f"{len(found)}; name a larger or another range"
        )
    return iter(found)


_HEAD = """\
# Made by `steelyard compose`; docs/containers.md says how to use it, and which wall each line is.
x-walls: &walls
  user: "${STEELYARD_USER:-10001:10001}"
  read_only: true
  tmpfs: ["/tmp:size=64m,mode=1777"]
  cap_drop: ["ALL"]
  security_opt: ["no-new-privileges:true"]
  sysctls: {net.ipv4.ip_forward: "0"}
  dns: ["127.0.0.1"]
  restart: "no"
  logging: {driver: json-file, options: {max-size: "16m", max-file: "2"}}
"""


def _environment() -> str:
    lines = [f'  {name}: "{value}"\n' for name, value in {**THREADS, **DETERMINISM, **OTHERS}.items()]
    return "x-environment: &environment\n" + "".join(lines)


def _server(far: dict[int, Network], box: Box) -> str:
    networks = "".join(f"      far-{client}: {{ipv4_address: {end_address(net)}}}\n" for client, net in far.items())
    return f"""\
  server:
    <<: *walls
    image: "steelyard-server:${{STEELYARD_TAG:-latest}}"
{_build("server")}    command: ["/role", "--run", "/{SERVED}"]
    environment: *environment
    volumes:
      - {_mount("roles/server", "/role", writable=False)}
      - {_mount(SERVED, f"/{SERVED}", writable=True)}
    networks:
{networks}    mem_limit: {box.memory_mib}m
    pids_limit: {512 + 16 * len(far)}
    healthcheck:
      test: {_check("listens")}
      interval: 2s
      timeout: 20s
      start_period: 24h
{_gpu(box)}"""


def _link(client: int, near: Network, far: Network, *, build: bool) -> str:
    command = ["/role", "--listen", f"{link_address(near)}:{PORT}", "--target", f"{end_address(far)}:{PORT}"]
    return f"""\
  link-{client}:
    <<: *walls
    image: "steelyard-link:${{STEELYARD_TAG:-latest}}"
{_build("link") if build else ""}    command: {json.dumps(command)}
    volumes:
      - {_mount(f"roles/link-{client}", "/role", writable=True)}
    networks:
      near-{client}: {{ipv4_address: {link_address(near)}}}
      far-{client}: {{ipv4_address: {link_address(far)}}}
    mem_limit: 256m
    pids_limit: 32
"""


def _client(client: int, near: Network, box: Box, *, build: bool) -> str:
    command = ["/role", "--server", f"{SERVER_NAME}:{PORT}"]
    return f"""\
  client-{client}:
    <<: *walls
    image: "steelyard-client:${{STEELYARD_TAG:-latest}}"
{_build("client") if build else ""}    command: {json.dumps(command)}
    environment: *environment
    volumes:
      - {_mount(f"roles/client-{client}", "/role", writable=False)}
      - {_mount(f"roles/client-{client}/state", "/role/state", writable=True)}
    networks:
      near-{client}: {{ipv4_address: {end_address(near)}}}
    extra_hosts: ["{SERVER_NAME}:{link_address(near)}"]
    depends_on:
      server: {{condition: service_healthy}}
      link-{client}: {{condition: service_started}}
    mem_limit: {box.memory_mib}m
    pids_limit: 256
{_gpu(box)}"""


def _build(role: str) -> str:
    return f"""\
    build:
      context: "${{STEELYARD_SOURCE:-.}}"
      dockerfile: deploy/containers/Dockerfile
      target: {role}
      args: {{BASE: "${{STEELYARD_BASE:-{OFFICIAL_BASE}}}"}}
"""


def _mount(source: str, target: str, *, writable: bool) -> str:
    read_only = "" if writable else ", read_only: true"
    return f'{{type: bind, source: "${{STEELYARD_RUN:-.}}/{source}", target: {target}{read_only}}}'


def _check(what: str) -> str:
    return json.dumps(["CMD", "python3", "/app/healthcheck.py", what, str(PORT)])


def _gpu(box: Box) -> str:
    if not box.gpu:
        return ""
    return """\
    deploy:
      resources:
        reservations:
          devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]
"""


def _network(name: str, subnet: Network) -> str:
    return f"""\
  {name}:
    driver: bridge
    internal: true
    driver_opts: {{com.docker.network.bridge.inhibit_ipv4: "true"}}
    ipam: {{config: [{{subnet: {subnet}}}]}}
"""
