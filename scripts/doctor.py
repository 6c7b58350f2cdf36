"""`steelyard doctor`: can this experiment run here? One line per check, before anything is started."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploy.decoders import check_decoder
from deploy.endings import finished
from deploy.environment import process_environment
from deploy.launch import CHECK_TIMEOUT_S, check_roles
from deploy.prepare import server_half
from deploy.torchrun.rank import RANK0
from steelyard.bundle import write_text
from steelyard.config import Experiment, RosterEntry, load_experiment, to_json
from steelyard.data.deal import Deal, deal
from steelyard.errors import SteelyardError, UserError
from steelyard.process import last_words

MODEL_FLOATS = {
    "cnn28_large": 460_000,
    "resnet18": 11_300_000,
    "vgg16_bn": 14_800_000,
    "wrn28_10": 36_600_000,
}  # at most
SMALL_MODEL_FLOATS = 50_000  # at most, of every other network
PROCESS_BYTES = 150 * 2**20  # private memory of a process with torch imported
MODELS_HELD = 6  # by a process at once: state, gradients, momentum, update, global model, one to spare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("experiment", type=Path, help="the experiment file (TOML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where run directories would go")


def act(arguments: argparse.Namespace) -> int:
    """Run every check; returns 0 when all pass, 2 when one does not."""
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    dealt = cache(lambda: deal(experiment))
    checks: dict[str, Callable[[], str]] = {
        "versions": _versions,
        "data": lambda: _data(experiment, dealt()),
        "roles": lambda: _roles(experiment),
        "address": lambda: _address(experiment),
        "tensors": lambda: _tensors(experiment),
        "certificates": lambda: _certificates(experiment),
        "disk": lambda: _disk(experiment, arguments.out),
        "processes": lambda: _processes(experiment),
        "network": lambda: _network(experiment),
        "scoring": lambda: _scoring(experiment, dealt()),
    }
    failed = 0
    for name, check in checks.items():
        if failed and name == "scoring":
            continue  # nobody waits for what can't run
        try:
            print(f"ok    {name}: {check()}")
        except SteelyardError as error:
            failed += 1
            print(f"FAIL  {name}: {error}")
    return 2 if failed else 0


def _versions() -> str:
    try:
        found = ", ".join(f"{name} {version(name)}" for name in ("torch", "grpcio", "numpy", "protobuf"))
    except PackageNotFoundError as error:
        raise UserError(f"package {error} expected, it is not installed; `make setup` installs all") from None
    return f"Python {platform.python_version()}, {found}"


def _data(experiment: Experiment, dealt: Deal) -> str:
    sizes = sorted(len(shard) for shard in dealt.shards)
    sets = f"validation {len(dealt.validation)}, test {len(dealt.test)}, public {len(dealt.public)}"
    absent = f" ({len(experiment.clients.absent)} of them of absent clients)" if experiment.clients.absent else ""
    return f"{experiment.data.dataset}: {len(sizes)} shards{absent} of {sizes[0]} to {sizes[-1]} samples, {sets}"


def _roles(experiment: Experiment) -> str:
    check_roles(experiment)
    check_decoder(experiment)
    return f"attack {experiment.attack.get('name', 'none')} and the evaluators take their parameters"


def _address(experiment: Experiment) -> str:
    host, _, port = experiment.transport.address.rpartition(":")
    if host == RANK0:
        return f"{RANK0} is the node that torchrun chooses as the job starts (docs/clusters.md), so it was not tried"
    try:
        if int(port) >= 2**16:  # the system takes a larger one for another
            raise ValueError("a port below 65536 expected")
        found = socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: a run may just have ended there
            probe.bind(address)
    except (OSError, ValueError) as error:
        raise UserError(f"{experiment.transport.address} can't be bound: {error}; set [transport] address") from None
    return f"{experiment.transport.address} is free"


def _tensors(experiment: Experiment) -> str:
    """Whether the tensor plane and the devices can be had on this host, asked of a process that may load torch."""
    transport, placement = experiment.transport, experiment.placement
    placed = placement.server, experiment.scoring.device, *map(placement.client, experiment.clients.present)
    devices = set(placed) - {"cpu"}
    if not transport.is_collective and not devices:
        return f"{transport.tensors}, on the control plane's own port; every process computes on the CPU"
    command = [sys.executable, "-m", "steelyard.transport.check", transport.tensors, transport.interface]
    done = finished([*command, *sorted(devices)], transport.tensors, CHECK_TIMEOUT_S, process_environment())
    if done.returncode:
        raise UserError(last_words(done.stderr, "the check left no word"))
    return done.stdout.strip()


def _certificates(experiment: Experiment) -> str:
    folder = experiment.transport.certificates
    host = experiment.transport.address.rpartition(":")[0]
    if not folder:
        if host.strip("[]") not in ("127.0.0.1", "::1", "localhost"):
            raise UserError(
                f"{host} is beyond loopback: make certificates with `steelyard certs` and name their folder"
            )
        return "none needed on loopback: join tokens identify the clients"
    for role in ("server", *(f"client-{k}" for k in experiment.clients.present)):
        if not (Path(folder) / role / "cert.pem").exists():
            raise UserError(f"{role}'s certificate expected in {folder}; make certificates with `steelyard certs`")
    return f"{folder} has the server's and {len(experiment.clients.present)} clients'"


def model_bytes(name: str) -> int:
    """An upper estimate of a network's float32 state, without building it."""
    return 4 * MODEL_FLOATS.get(name, SMALL_MODEL_FLOATS)


def _disk(experiment: Experiment, out: Path) -> str:
    twins = 1 + experiment.compares_honest
    need = model_bytes(experiment.model.name) * (len(experiment.clients.present) + 1) * experiment.rounds * twins
    place = next(path for path in (out.resolve(), *out.resolve().parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"--out: a folder expected, {place} is a file")
    free = shutil.disk_usage(place).free
    if free < need:
        raise UserError(f"about {need / 2**20:.0f} MiB of recordings expected, {place} has {free / 2**20:.0f} MiB free")
    return f"at most about {need / 2**20:.0f} MiB of recordings, {free / 2**30:.0f} GiB free"


def _processes(experiment: Experiment) -> str:
    workers = experiment.scoring.workers
    count = len(experiment.clients.present) + 1 + (workers if workers > 1 else 0)
    need = count * (PROCESS_BYTES + MODELS_HELD * model_bytes(experiment.model.name))
    available = available_bytes()
    if available < need:
        raise UserError(
            f"about {need / 2**30:.1f} GiB for {count} processes expected, {available / 2**30:.1f} GiB are free"
        )
    return f"{count} processes of one thread each on {os.cpu_count()} cores, about {need / 2**30:.1f} GiB of memory"


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """The memory that new processes can have: what is free, and what the file cache would give back."""
    with contextlib.suppress(OSError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _network(experiment: Experiment) -> str:
    linked = experiment.network.linked(experiment.clients.present)
    kernel = f"netem is {'there' if has_netem() else 'not there'} in this kernel (docs/network.md)"
    if not linked:
        return f"no links needed; {kernel}"
    nbytes, deadline_s = model_bytes(experiment.model.name), experiment.protocol.round_deadline_s
    lines = [experiment.network.line_of(client) for client in linked]
    seconds = max(nbytes * 8e-6 * sum(1 / rate for rate in (line.up_mbit, line.down_mbit) if rate) for line in lines)
    if seconds > deadline_s:
        raise UserError(
            f"a round deadline of more than the {seconds:.0f} s that at most {nbytes * 1e-6:.1f} MB down and up take "
            f"on the slowest line expected, [protocol] round_deadline_s is {deadline_s:g}"
        )
    return f"{len(linked)} links, at most {seconds:.1f} s of transfers a round on the slowest; {kernel}"


def _scoring(experiment: Experiment, dealt: Deal) -> str:
    """How long scoring will take, measured on this host, so that a wait of days is no surprise."""
    clients, scoring = experiment.clients.present, experiment.scoring
    half = server_half(experiment, dealt.shape, tuple(RosterEntry(client=k, samples=1) for k in clients))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.json"
        write_text(path, to_json(half))
        command = [sys.executable, "-m", "server.forecast", str(path), str(scoring.examples or len(dealt.validation))]
        done = finished(command, "scoring", CHECK_TIMEOUT_S, process_environment())
    if done.returncode:
        raise UserError(last_words(done.stderr, "the forecast left no word"))
    found = json.loads(done.stdout)
    coalitions = int(found["coalitions"])
    if not coalitions:
        return "no evaluator asks for coalitions"
    at_once = min(scoring.workers, os.cpu_count() or 1) if scoring.device == "cpu" else 1
    a_round, twins = coalitions * found["seconds"] / at_once, 1 + experiment.compares_honest
    said = (
        f"up to {coalitions:,} coalitions a round of about {duration(found['seconds'])} each here, so "
        f"{duration(a_round)} a round and {duration(a_round * experiment.rounds * twins)} in {experiment.rounds} rounds"
        f"{' and their twins' if twins > 1 else ''}"
    )
    if any(table.get("seconds") for table in experiment.evaluators):
        said += ", less where an evaluator's `seconds` end it"
    return said


def duration(seconds: float) -> str:
    """Two digits of it, in the unit that a person would take."""
    for unit, size, least in (("days", 86400.0, 2), ("hours", 3600.0, 2), ("minutes", 60.0, 2), ("s", 1.0, 1)):
        if seconds >= least * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds * 1e3:.2g}'):g} ms"


def has_netem() -> bool:
    """Whether the kernel has the netem queueing discipline, built in or as a module; False where nothing says so."""
    modules = Path("/lib/modules") / platform.release()
    lists = (Path("/proc/modules"), modules / "modules.builtin", modules / "modules.dep")
    if any("sch_netem" in path.read_text(encoding="utf-8", errors="replace") for path in lists if path.exists()):
        return True
    config = Path("/proc/config.gz")
    return config.exists() and b"\nCONFIG_NET_SCH_NETEM=" in gzip.decompress(config.read_bytes())
