"""From an experiment to a finished run directory: prepare, run the honest twin, run, summarize. Torch-free.

The launcher alone writes manifest, summary and report and knows who attacks. A directory has its final name from the
start; its manifest says RUNNING, DONE or FAILED, so whatever was interrupted is seen and can be continued.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from deploy.containers.boxes import prepare_boxed
from deploy.containers.run import LOCK, run_containers
from deploy.decoders import check_decoder
from deploy.endings import failure_in_one
from deploy.forks import Fork, keep_up, start
from deploy.local import Process, end_all, run_local
from deploy.prepare import client_half, prepare, server_half
from deploy.provenance import provenance, revision
from deploy.torchrun.job import run_torchrun
from steelyard.bundle import write_text
from steelyard.config import Experiment, RosterEntry, Shape, to_json
from steelyard.errors import UserError, WaitTimeoutError
from steelyard.network import Fault
from steelyard.parsing import differing, parse
from steelyard.process import in_a_line, last_words
from steelyard.recording import ROLES
from steelyard.report.html import write_picture, write_report
from steelyard.report.origin import check_data, data_of, made
from steelyard.report.summary import summarize, write_summary

Launcher = Literal["local", "inline", "torchrun", "compose"]
UNFINISHED = f"{ROLES}.part"
CHECK_TIMEOUT_S = 300.0  # importing torch takes seconds, minutes on a busy machine
BOUNDARY = "separate processes of one user: an audit hook on opened files is the proof, the system does not enforce it"
BOUNDARIES = {
    "inline": "none: all roles shared one process (--launcher inline), which is for debugging and parity only",
    "compose": "containers, enforced by the kernel: each role saw its own folder and code alone, a client reached the "
    "server through its own link and nobody else, and no way led out",
}


class Conduct(Protocol):
    """Runs prepared role folders to their end, as `run_local` does."""

    def __call__(
        self,
        roles: Path,
        run: Path,
        clients: Iterable[int],
        poll: Callable[[], None],
        say: Callable[[str], None],
        faults: Sequence[Fault],
        /,
    ) -> None:
        """`faults` are those that the launcher makes happen, by a link; what clients do by themselves is not theirs."""


CONDUCTS: dict[str, Conduct] = {"local": run_local, "torchrun": run_torchrun, "compose": run_containers}


class View(Protocol):
    """Shows a person how a run goes on."""

    def begin(self, experiment: Experiment, run: Path, honest: Path | None) -> None:
        """A run starts or goes on; `honest` is the finished twin to compare with, if any."""

    def poll(self) -> None:
        """Called several times a second while the run goes on."""

    def say(self, line: str) -> None:
        """One line for the person."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run, which changes no result: where to, by which launcher, and the inline launcher's order of clients.

    `checked` says that the roles have validated their halves already, as a sweep has them do once for all its runs.
    `conduct` runs prepared roles in the launcher's place, as `run_local` does.
    """

    out: Path
    launcher: Launcher = "local"
    order: tuple[int, ...] = ()
    force: bool = False
    checked: bool = False
    conduct: Conduct | None = None


def run_experiment(experiment: Experiment, options: Options, view: View) -> Path:
    """Run an experiment and its honest twin; what is finished is not run again, what was interrupted goes on.

    Returns:
        The run directory, DONE.

    Raises:
        UserError: the experiment can't be run as it stands.
        RunFailedError: a run failed; its manifest says why.
    """
    if experiment.transport.tensors == "memory" and options.launcher != "inline":
        raise UserError("transport.tensors = 'memory' lives in one process; add --launcher inline")
    if experiment.scoring.path == "folded_tf32" and experiment.placement.kinds and options.launcher == "inline":
        raise UserError(
            "[scoring] path 'folded_tf32' allows TF32 to its whole process, which clients on a GPU share here: "
            "processes of their own expected; leave out --launcher inline, or set path = 'folded'"
        )
    if experiment.network.linked(experiment.clients.present) and options.launcher in ("inline", "torchrun"):
        raise UserError(
            "[network] needs a launcher that puts lines between roles: local or compose; leave out --launcher "
            f"{options.launcher}"
        )
    run = options.out / f"{experiment.name}-{experiment.digest()}"
    if not options.force and status(run) == "DONE":
        view.say(f"{run} is DONE already{_by_other_source(run, experiment)}; --force runs it again")
        return run
    if not options.checked:
        check_roles(experiment)
    check_decoder(experiment)
    honest = None
    if experiment.compares_honest:
        twin = experiment.honest()
        honest = options.out / f"honest-{twin.digest()}"
        if options.force or status(honest) != "DONE":
            _run_one(twin, honest, None, options, view)
        elif words := _by_other_source(honest, twin):
            view.say(f"the honest twin is {honest}, DONE already{words}; --force runs both again")
    _run_one(experiment, run, honest, options, view)
    return run


def _by_other_source(run: Path, experiment: Experiment) -> str:
    """Words for a finished run that other code made, or "": the experiment's digest knows no code.

    Raises:
        UserError: other data made it, which the digest does not know either.
    """
    manifest = read_manifest(run)
    before = manifest["experiment"].get("data", {}).get("folder", "")
    if _place(before) != _place(experiment.data.folder):
        raise UserError(
            f"{run} was made with [data] folder = {before!r}, not {experiment.data.folder!r}; "
            "name another place with --out, or run it anew with --force"
        )
    theirs, ours = made(manifest)["revision"], revision()
    return f", but of other source code (revision {theirs}, here {ours})" if theirs != ours else ""


def _place(folder: str) -> Path | None:
    return Path(folder).expanduser().resolve() if folder else None


def status(run: Path) -> str:
    """What a run directory's manifest says: RUNNING, DONE, FAILED, or "" where there is none."""
    return str(read_manifest(run)["status"]) if (run / "manifest.json").exists() else ""


def boundary_of(manifest: dict[str, Any]) -> str:
    """What kept a run's roles apart, for a person."""
    return BOUNDARIES.get(manifest["launcher"], BOUNDARY)


def read_manifest(run: Path) -> dict[str, Any]:
    """A run directory's manifest; it has a status and an experiment.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = run / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"a run directory expected, {run} has no manifest.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: a run's manifest expected: {error}; `steelyard run --force` runs it anew") from None
    if not isinstance(manifest, dict) or not {"status", "experiment"} <= manifest.keys():
        raise UserError(
            f"{path}: a run's manifest with status and experiment expected; `steelyard run --force` runs it anew"
        )
    return manifest


def check_roles(*experiments: Experiment) -> None:
    """Have each kind of role validate its own half, in a process of its own: plug-ins check their parameters there.

    Halves of several experiments that differ in nothing but the seed, which no plug-in checks, are validated once.

    Raises:
        UserError: what the first role that refused its half said.
    """
    halves = list(dict.fromkeys(half for each in experiments for half in _bare_halves(replace(each, seed=0)).items()))
    at_once = max(2, os.cpu_count() or 1)
    for first in range(0, len(halves), at_once):
        _check_halves(halves[first : first + at_once])


def _check_halves(halves: Sequence[tuple[str, str]]) -> None:
    """Check halves side by side, each given as its role's module and its text."""
    with tempfile.TemporaryDirectory() as folder:
        checks: list[subprocess.Popen[bytes] | Fork] = []
        logs = [Path(folder) / f"{module}-{at}.log" for at, (module, _) in enumerate(halves)]
        try:
            for (module, text), log in zip(halves, logs, strict=True):
                half = log.with_suffix(".json")
                write_text(half, text)
                checks.append(start(module, half, ["--check"], log))
            codes = [check.wait(CHECK_TIMEOUT_S) for check in checks]
        except subprocess.TimeoutExpired:
            raise WaitTimeoutError(f"a role did not check its half within {CHECK_TIMEOUT_S:g} s") from None
        finally:
            for check in checks:
                check.kill()
                check.wait()
        for (module, _), code, log in zip(halves, codes, logs, strict=True):
            if code:
                raise UserError(f"{module}: {last_words(log.read_text(encoding='utf-8', errors='replace'))}")


def _bare_halves(experiment: Experiment) -> dict[str, str]:
    """Both kinds of half without data: enough for a role to check its plug-ins' parameters."""
    shape = Shape(channels=1, height=1, width=1, classes=1)
    clients = experiment.clients.present
    who = experiment.attackers[0] if experiment.attackers else clients[0]
    server = server_half(experiment, shape, tuple(RosterEntry(client=k, samples=1) for k in clients))
    return {"server": to_json(server), "client": to_json(client_half(experiment, shape, who))}


def _run_one(experiment: Experiment, run: Path, honest: Path | None, options: Options, view: View) -> None:
    with _locked(run):
        if options.force:
            _clear(run)
        manifest = _begin(experiment, run, honest, options.launcher, view.say)
        if honest is not None:
            _link_twin(run, honest)
        before, started = manifest.get("seconds", 0.0), time.monotonic()
        try:
            view.begin(experiment, run, honest)
            _launch(experiment, run, options, view)
            manifest["seconds"] = round(before + time.monotonic() - started, 3)
            _write_manifest(run, {**manifest, "status": "RUNNING"})
            summary = summarize(run, honest, experiment.attackers, boundary=boundary_of(manifest))
            write_summary(run, summary)
            write_report(run, summary)
            write_picture(summary, run / "values.svg")
        except BaseException as error:
            # Ctrl-C, an output without a reader, and errors alike leave a directory that says so and can be continued.
            reason = "interrupted" if isinstance(error, KeyboardInterrupt | BrokenPipeError) else in_a_line(error)
            seconds = round(before + time.monotonic() - started, 3)
            try:
                _write_manifest(run, {**manifest, "seconds": seconds, "status": "FAILED", "reason": reason})
            except OSError as full:  # the reason matters more, and a run that is not DONE can go on
                view.say(f"{run / 'manifest.json'} does not say that the run failed: {full}")
            raise
        _write_manifest(run, {**manifest, "status": "DONE"})


def _launch(experiment: Experiment, run: Path, options: Options, view: View) -> None:
    roles = run / ROLES
    if conduct := options.conduct or CONDUCTS.get(options.launcher):
        faults = tuple(fault for fault in experiment.network.faults if fault.needs_link)
        conduct(roles, run, experiment.clients.present, view.poll, view.say, faults)
        return
    order = ["--order", ",".join(map(str, options.order))] if options.order else []
    with tempfile.NamedTemporaryFile() as said:
        log = Path(said.name)
        process = start("deploy.inline", roles, ["--run", str(run), *order], log)
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                view.poll()
        except BaseException:
            end_all([Process("inline", process, log)])
            raise
        if code := process.poll():
            raise failure_in_one(code, log.read_text(encoding="utf-8", errors="replace"), run / "inline.txt")


def _begin(
    experiment: Experiment, run: Path, honest: Path | None, launcher: Launcher, say: Callable[[str], None]
) -> dict[str, Any]:
    """Prepare the role folders, or find them as an interrupted run left them, and write the manifest.

    Raises:
        UserError: they cannot be prepared, or the data is not what the honest twin was made of.
    """
    path = run / "manifest.json"
    now = provenance()
    keep_up(now["revision"])
    manifest = read_manifest(run) if path.exists() and (run / ROLES).exists() else None
    if manifest is not None and (changed := _changed(manifest["experiment"], experiment)):
        recorded = (run / "recordings").glob("round-*/*")
        if not any(path.name == "closed.json" or path.name.startswith("client-") for path in recorded):
            manifest = None  # nothing to lose, e.g. refused for that setting
        else:
            say(f"{run} goes on with {', '.join(changed)} as it began; --force begins anew")
    if manifest is not None:
        if (boxed := launcher == "compose") != (manifest["launcher"] == "compose"):
            raise UserError(
                f"{run} was begun {'outside' if boxed else 'in'} containers, whose roles dial otherwise; resume it "
                f"with --launcher {manifest['launcher']}, or run it anew with --force"
            )
        manifest.pop("reason", None)
        _check_twin(honest, data_of(manifest), experiment)
        before = manifest.get("continued", [])
        asked = {"experiment": manifest["experiment"]}
        if made({**now, **asked}) != made({**(before or [manifest])[-1], **asked}):
            manifest["continued"] = [*before, now]
        if launcher == "inline":  # what was once in one process stays so
            manifest["launcher"] = launcher
    else:
        if not path.exists():  # a `--force` that was cut short may have left recordings of the run before
            if (run / "recordings").exists():
                say(f"{run} has recordings and no manifest.json: they are thrown away, the run begins anew")
            _clear(run)
        for unfinished in ((part := run / UNFINISHED), run / ROLES):  # without manifest and roles nothing has run yet
            shutil.rmtree(unfinished, ignore_errors=True)
        dealt = (prepare_boxed if launcher == "compose" else prepare)(experiment, part)
        _check_twin(honest, dealt.sha256, experiment)
        part.rename(run / ROLES)
        manifest = {
            "status": "RUNNING",
            "experiment": asdict(experiment),
            "digest": experiment.digest(),
            "launcher": launcher,
            "data": {
                "coverage": [shard.histogram(dealt.shape.classes).tolist() for shard in dealt.shards],
                "samples": [len(shard) for shard in dealt.shards],
                "validation": len(dealt.validation),
                "test": len(dealt.test),
                "public": len(dealt.public),
                "sha256": dealt.sha256,
            },
            **now,
        }
    _write_manifest(run, {**manifest, "status": "RUNNING"})
    return manifest


def _check_twin(honest: Path | None, ours: str, experiment: Experiment) -> None:
    if honest is not None:
        data, theirs = experiment.data.dataset, data_of(read_manifest(honest))
        check_data([(data, theirs, f"the honest twin, {honest}"), (data, ours, "this run")])


def _changed(before: dict[str, Any], experiment: Experiment) -> list[str]:
    """The settings, all of which decide no result, in which an experiment differs from a manifest's."""
    parsed = parse(Experiment, before, "the manifest's experiment")  # with defaults that it was written before
    return differing(asdict(parsed), asdict(experiment))


def _write_manifest(run: Path, manifest: dict[str, Any]) -> None:
    write_text(run / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _link_twin(run: Path, honest: Path) -> None:
    link = run / "honest"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(honest, run), target_is_directory=True)


def _clear(run: Path) -> None:
    """Throw away what a run left; its manifest first, so that half a run is never taken for one that is DONE."""
    (run / "manifest.json").unlink(missing_ok=True)
    for path in list(run.iterdir()):
        if path.name in (LOCK, "compose.yaml"):  # which names containers that may have to be removed first
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keep a second launcher out of a run directory while this one works in it; one that never began goes again."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is running {run}; wait for it or name another place with --out") from None
        try:
            yield
        finally:
            if {path.name for path in run.iterdir()} <= {LOCK, UNFINISHED}:  # refused while its roles were prepared
                shutil.rmtree(run)
