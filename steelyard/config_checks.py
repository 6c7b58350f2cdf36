"""What no single field of an experiment can say: checks across its tables, each with a line that names its table.

Sections that have a module of their own bring their check with them; it is called from here. Torch-free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steelyard.defence import defence_config
from steelyard.errors import UserError
from steelyard.network import check_network
from steelyard.participation import check_rounds, check_schedule
from steelyard.placement import check_placement
from steelyard.transport.settings import check_transport

if TYPE_CHECKING:
    from steelyard.config import Experiment

MAX_NAME = 100  # with a hash behind it, still a file name everywhere


def check_experiment(experiment: Experiment, where: str) -> None:
    """Check an experiment whose fields are checked one by one already; `where` names it in an error.

    Raises:
        UserError: tables that do not go together.
    """
    name, quorum = experiment.name, experiment.protocol.quorum
    if not name or not name.replace("-", "").replace("_", "").isalnum() or len(name) > MAX_NAME:
        raise UserError(
            f"{where} name: up to {MAX_NAME} letters, digits, - and _ expected (it names a folder), got {name!r}"
        )
    _check_clients(experiment, f"{where} [clients]")
    if quorum > (count := len(experiment.clients.present)):
        raise UserError(f"{where} [protocol] quorum: at most the {count} clients expected, got {quorum}")
    if (examples := experiment.scoring.examples) > (validation := experiment.data.validation):
        raise UserError(
            f"{where} [scoring] examples: at most [data] validation = {validation} expected, got {examples}"
        )
    check_rounds(experiment.clients.stays, experiment.rounds, quorum, f"{where} [clients] schedule")
    tensors = experiment.transport.tensors
    check_network(experiment.network, experiment.clients.stays, experiment.rounds, tensors, f"{where} [network]")
    names = [table.get("name") for table in experiment.evaluators]
    if not names:
        raise UserError(f"{where} [[evaluators]]: at least one expected, got none; a run is there to be scored")
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise UserError(f"{where} [[evaluators]]: each needs a `name` of its own, got {', '.join(map(repr, names))}")
    transport = experiment.transport
    check_transport(transport, f"{where} [transport]")
    check_placement(
        experiment.placement,
        clients=experiment.clients.present,
        nccl=transport.tensors == "nccl",
        one_host=not transport.certificates,
        where=f"{where} [placement]",
    )
    defence_config(experiment.defence, f"{where} [defence]")
    if experiment.attack:
        _check_attack(experiment, f"{where} [attack]")


def _check_clients(experiment: Experiment, where: str) -> None:
    """Who is absent and who comes and goes."""
    clients = experiment.clients
    absent = list(clients.absent)
    if len(set(absent)) != len(absent) or any(client >= clients.count for client in absent):
        raise UserError(f"{where} absent: indices below {clients.count}, each once, expected, got {absent}")
    if not clients.present:
        raise UserError(f"{where} absent: at least one client that takes part expected, all {clients.count} are absent")
    check_schedule(clients.present, clients.schedule, experiment.rounds, f"{where} schedule")


def _check_attack(experiment: Experiment, where: str) -> None:
    """The launcher's own keys of the attack's table; the client's process checks the others."""
    attack, count = experiment.attack, experiment.clients.count
    if not isinstance(attack.get("name"), str):
        raise UserError(f"{where} name: a string expected, got {attack.get('name')!r}")
    attackers = attack.get("clients", [0])
    if not isinstance(attackers, list) or any(type(k) is not int or not 0 <= k < count for k in attackers):
        raise UserError(f"{where} clients: a list of indices below {count} expected, got {attackers!r}")
    if not attackers or len(set(attackers)) != len(attackers):
        raise UserError(
            f"{where} clients: at least one and each once expected, got {attackers!r}; "
            "leave out [attack] if nobody attacks"
        )
    if absent := [client for client in attackers if client in experiment.clients.absent]:
        raise UserError(f"{where} clients: clients that take part expected, {absent} are absent; leave them out of one")
    for key in ("compare_honest", "collude"):
        if not isinstance(attack.get(key, True), bool):
            raise UserError(f"{where} {key}: true or false expected, got {attack[key]!r}")
    if attack.get("collude") and len(attackers) < 2:
        raise UserError(f"{where} collude = true: at least two clients expected, got {attackers!r}")
    knowledge = attack.get("knowledge", "own")
    if knowledge not in ("own", "public"):
        raise UserError(f"{where} knowledge: 'own' or 'public' expected, got {knowledge!r}")
    if knowledge == "public" and not experiment.data.public:
        raise UserError(f"{where} knowledge = 'public' needs a public set: set [data] public to its size")
