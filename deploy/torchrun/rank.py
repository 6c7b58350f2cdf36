"""What each rank of a torchrun job does: rank 0 is the launcher and runs the server, rank k the k-th client.

    torchrun --standalone --nproc-per-node 11 -m deploy.torchrun experiments/quickstart.toml
    torchrun ... -m deploy.torchrun --roles DIR       role folders that `steelyard prepare` wrote; no twin, no summary

With an experiment file rank 0 prepares the role folders inside the run directory, which all nodes must share; with
`--roles` every node needs the folders of its own ranks alone. A client's rank forks its client for every run, the
honest twin's being the first. Whatever rank dies, torchrun restarts the group, and the run goes on from its recordings.
Torch-free at import; imports neither side.
"""

from __future__ import annotations

import argparse
import os
import runpy
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from deploy.endings import ServerKilledError
from deploy.environment import process_environment
from deploy.launch import Options, run_experiment
from deploy.local import Process, run_server
from deploy.prepare import client_folder, server_folder
from deploy.torchrun.board import NOBODY, Board
from steelyard.config import Experiment, ServerHalf, load_experiment, load_half
from steelyard.errors import SteelyardError, UserError
from steelyard.network import Fault
from steelyard.process import LAUNCHER, exit_with_launcher, is_launched, last_words

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
RANK0 = "rank0"
GPUS = "CUDA_VISIBLE_DEVICES"


class Lines:
    """A view that prints what is said."""

    def begin(self, experiment: Experiment, run: Path, honest: Path | None) -> None:
        """Announce a run."""
        twin = f", to be compared with {honest}" if honest else ""
        self.say(f"{run}: server and {len(experiment.clients.present)} clients, {experiment.rounds} rounds{twin}")

    def poll(self) -> None:
        """Nothing to show."""

    def say(self, line: str) -> None:
        """Print one line."""
        print(line, flush=True)


def main() -> int:
    """Be the rank that torchrun's environment names."""
    parser = argparse.ArgumentParser(prog="torchrun ... -m deploy.torchrun", description="One rank of an experiment.")
    parser.add_argument("experiment", type=Path, nargs="?", help="the experiment file (TOML)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where run directories go, on a shared folder")
    parser.add_argument("--force", action="store_true", help="throw away what is there and run again")
    parser.add_argument("--roles", type=Path, help="prepared role folders instead of an experiment file")
    parser.add_argument(  # torchrun takes --run for an abbreviation of one of its own options
        "--into", type=Path, metavar="RUN", help="with --roles: the run directory (default: DIR/server/run)"
    )
    parser.add_argument("--count", action="store_true", help="print how many ranks the experiment takes, and no more")
    arguments = parser.parse_args()
    if (arguments.experiment is None) == (arguments.roles is None):
        raise UserError("either an experiment file or --roles DIR expected")
    if arguments.count:
        print(1 + len(_clients(arguments)))
        return 0
    if missing := [name for name in TORCHRUN if name not in os.environ]:
        raise UserError(
            f"a start by torchrun expected, which sets {missing[0]}: torchrun OPTIONS -m deploy.torchrun ..."
        )
    _become_a_process_of_the_run()
    exit_with_launcher()
    rank = int(os.environ["RANK"])
    if rank:
        return _take_part(rank, arguments.roles)
    return _lead(arguments)


def rank_environment(outer: dict[str, str]) -> dict[str, str]:
    """The environment of a rank: that of every process of a run, torchrun's five names, and the GPUs it may see.

    Where the job is given several GPUs (Slurm does so by CUDA_VISIBLE_DEVICES), the server sees all of its node and
    each client one, in turn.
    """
    own = {**process_environment(), **{name: outer[name] for name in TORCHRUN}}
    if outer.get(GPUS):
        visible = outer[GPUS].split(",")
        own[GPUS] = outer[GPUS] if outer["RANK"] == "0" else visible[int(outer["LOCAL_RANK"]) % len(visible)]
    return own


def _become_a_process_of_the_run() -> None:
    """Start anew under the run's own environment, unless that is this one's: no torch was imported yet."""
    if not is_launched():
        environment = rank_environment(dict(os.environ)) | {LAUNCHER: str(os.getppid())}
        command = [sys.executable, "-m", "deploy.torchrun", *sys.argv[1:]]
        os.execve(sys.executable, command, environment)  # noqa: S606 - there is no shell to need


def _lead(arguments: argparse.Namespace) -> int:
    """Rank 0: prepare, run the server, tell the others where it listens, and summarize."""

    def stop(_signal: int, _frame: FrameType | None) -> None:  # torchrun ends the group: leave all in order
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    board = Board()
    board.raise_failure()
    try:
        if arguments.roles:
            if link := next(arguments.roles.glob("link-*"), None):
                raise UserError(
                    f"roles without lines expected, {link} is one; [network] needs launcher local or compose"
                )
            run = arguments.into or server_folder(arguments.roles) / "run"
            _conduct(board, arguments.roles, run, _clients(arguments), lambda: None)
        else:
            run = _run_experiment(board, arguments)
    except ServerKilledError:
        raise  # a new attempt goes on from the recordings
    except SteelyardError as error:
        board.fail(error)
        raise
    board.finish()
    print(f"{run} is done", flush=True)
    return 0


def _clients(arguments: argparse.Namespace) -> list[int]:
    """The clients that take part, in order."""
    if arguments.roles:
        half: ServerHalf = load_half(ServerHalf, server_folder(arguments.roles) / "half.json")
        return [entry.client for entry in half.roster]
    return list(load_experiment(arguments.experiment, arguments.overrides).clients.present)


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """The experiment of a command line; the host `rank0` in its address is rank 0's own, as torchrun names it."""
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    host, _, port = experiment.transport.address.rpartition(":")
    if host != RANK0:
        return experiment
    transport = replace(experiment.transport, address=f"{os.environ['MASTER_ADDR']}:{port}")
    return replace(experiment, transport=transport)


def _run_experiment(board: Board, arguments: argparse.Namespace) -> Path:
    experiment = experiment_of(arguments)

    def conduct(
        roles: Path,
        run: Path,
        clients: Iterable[int],
        poll: Callable[[], None],
        _say: Callable[[str], None],
        faults: Sequence[Fault],
    ) -> None:
        assert not faults, "without links there are none; refused before"
        _conduct(board, roles, run, list(clients), poll)

    _check_ranks(len(experiment.clients.present))
    force = arguments.force and board.forces()
    options = Options(out=arguments.out, launcher="torchrun", force=force, conduct=conduct)
    return run_experiment(experiment, options, Lines())


def _conduct(board: Board, roles: Path, run: Path, clients: list[int], poll: Callable[[], None]) -> None:
    """Run the server of one prepared experiment to its end; the other ranks come by themselves."""
    ranks = _check_ranks(len(clients))
    listening: list[str] = []
    name = secrets.token_hex(8)

    def invite(address: str) -> Iterable[Process]:
        listening.append(address)
        return ()

    def look() -> None:
        poll()
        board.live()
        for address in listening:
            board.answer(name, address, roles, clients, ranks)

    run_server(roles, run, invite, look, lambda _line: None)


def _check_ranks(clients: int) -> int:
    """The number of ranks, which must do for the server and every client."""
    ranks = int(os.environ["WORLD_SIZE"])
    if ranks < clients + 1:
        raise UserError(
            f"{clients + 1} ranks expected, the server and {clients} clients, torchrun started {ranks}; "
            "raise --nproc-per-node or --nnodes"
        )
    return ranks


def _take_part(rank: int, roles: Path | None) -> int:
    """Rank k: wait to be told of a server, have the client run, and wait for the next one."""
    board, after = Board(), ""
    while (step := board.ask(rank, after)) is not None and step.client != NOBODY:
        folder = client_folder(roles or Path(step.roles), step.client)
        if not folder.exists():
            raise UserError(
                f"rank {rank}: a role folder expected at {folder}, there is none on this node; put the run directories "
                "on a folder that all nodes share (--out), or hand each node its own with --roles"
            )
        code = _run_client(folder, step.address)
        if code > 0:
            words = last_words((folder / "log.txt").read_text(encoding="utf-8", errors="replace"))
            raise SystemExit(f"steelyard: rank {rank} ({folder.name}) ended with code {code}: {words}")
        if code < 0:
            raise SystemExit(f"steelyard: rank {rank} ({folder.name}) was ended by signal {-code}")
        after = step.id
    return 0


def _run_client(folder: Path, address: str) -> int:
    """Fork the client of a role folder, which writes to its log and ends with this rank; returns its exit code.

    A fork finds torch loaded, and takes gRPC and its threads with it when it ends.
    """
    with (folder / "log.txt").open("ab") as log:
        rank, child = os.getpid(), os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    code: object = 1
    try:
        os.environ[LAUNCHER] = str(rank)
        exit_with_launcher(signal.SIGKILL)
        sys.argv = ["client", str(folder.resolve()), "--server", address]
        runpy.run_module("client", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - the log has it; above this there is the rank's own code
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)
