"""Runs prepared role folders as containers: builds, starts, follows, collects logs, and always tears down.

Whatever ends the launcher ends the containers too: errors and Ctrl-C end them here, and a small process of its own that
outlives the launcher ends them when the launcher is killed. Torch-free.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deploy.containers.boxes import close_boxes, open_boxes
from deploy.containers.compose import Box, compose_text
from deploy.containers.engine import connect
from deploy.containers.images import ensure_images
from deploy.containers.project import Project
from deploy.endings import describe, failure
from deploy.faults import POLL_S as FAULT_POLL_S
from deploy.faults import FaultDriver, Record, count_links
from deploy.link.control import SOCKET, command
from deploy.local import START_TIMEOUT_S, Patience, ignoring_interrupts
from deploy.prepare import link_folder
from steelyard.bundle import write_text
from steelyard.errors import RunFailedError, UserError, WaitTimeoutError
from steelyard.network import Fault
from steelyard.process import MISTAKE, in_a_line

POLL_S = 0.3
LOCK = ".lock"  # which a launcher holds while it works in a run directory
END_TIMEOUT_S = 5.0  # how long clients whose run is over may take to end by themselves


def run_containers(
    roles: Path,
    run: Path,
    clients: Iterable[int],
    poll: Callable[[], None],
    say: Callable[[str], None],
    faults: Sequence[Fault] = (),
    *,
    box: Box | None = None,
) -> None:
    """Run one prepared experiment to its end, as `deploy.local.run_local` does with processes.

    Args:
        roles: role folders that `deploy.containers.boxes.prepare_boxed` wrote.
        run: the run directory.
        clients: the indices of the client folders that there are.
        poll: called often while the run goes on; may show progress.
        say: takes one line for the person.
        faults: what is to befall which client when.
        box: what containers may have; None: the defaults.

    Raises:
        UserError: no engine, no images, or the server could not start for a reason that the user can mend.
        RunFailedError: the server ended without finishing; the message is its reason.
    """
    present = tuple(clients)
    with boxed(roles, run, present, say, box or Box()) as project:
        hands = BoxHands(project, roles)
        driver = None
        try:
            if not faults:
                project.up(poll)
            else:  # a line is told what is to come before its client can begin
                project.up(poll, "server", *(f"link-{client}" for client in present))
                if _await_lines(project, hands, present, poll):
                    driver = FaultDriver(faults, run, hands)
                    driver.poll(time.monotonic())
                    hands.killed |= {f"client-{client}" for client in driver.dead}
                    project.up(poll, *(f"client-{client}" for client in present if client not in driver.dead))
        except RunFailedError:  # compose says only that a dependency did not start
            code = _server_code(project)
            if code is None:
                raise
            if code:
                raise _failure(project, code) from None
            # else the server continued a run that had nothing left to do, and was done before its clients were there
        _follow(project, present, hands.killed, driver, poll, say)
        count_links(hands, present, Record(run))


class BoxHands:
    """What the fault plan may do to a client's container (`deploy.faults.Hands`)."""

    def __init__(self, project: Project, roles: Path) -> None:
        self._project = project
        self._roles = roles
        self.killed: set[str] = set()  # nobody needs to be told that they ended

    def is_reachable(self, client: int) -> bool:
        """Whether a client's link takes commands."""
        return (link_folder(self._roles, client) / SOCKET).exists()

    def kill(self, client: int) -> None:
        """End a client at once."""
        self.killed.add(f"client-{client}")
        self._project.kill(f"client-{client}")

    def start(self, client: int) -> None:
        """Start it again, with its folder and state."""
        self._project.start(f"client-{client}")
        self.killed.discard(f"client-{client}")

    def pause(self, client: int) -> None:
        """Freeze it."""
        self._project.pause(f"client-{client}")

    def resume(self, client: int) -> None:
        """Thaw it."""
        self._project.resume(f"client-{client}")

    def link(self, client: int, **fields: Any) -> dict[str, Any]:
        """Have a client's link obey a command."""
        return command(link_folder(self._roles, client), **fields)


@contextlib.contextmanager
def boxed(roles: Path, run: Path, clients: tuple[int, ...], say: Callable[[str], None], box: Box) -> Iterator[Project]:
    """A run's project, ready to go up; whatever happens, its logs are collected and it is removed."""
    with contextlib.closing(connect()) as engine:
        project = Project(engine, run, ensure_images(engine, say))
        if project.file.exists():
            project.down()  # what a launcher that was killed has left
        write_text(project.file, compose_text(clients, box, engine.subnets()))
        open_boxes(roles, run, clients)
        logs, close = partial(_collect_logs, project, roles, say), partial(close_boxes, run)
        with _guard(project), ending_with(say, logs, project.down, close):
            yield project


@contextlib.contextmanager
def ending_with(say: Callable[[str], None], *steps: Callable[[], None]) -> Iterator[None]:
    """Take every step after the block, whatever happened; the first error is the one raised, later ones are said."""
    errors: list[BaseException] = []
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - Ctrl-C too; raised again below
        errors.append(error)
    with ignoring_interrupts():
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the engine's, the disk's: the next step may still succeed
                errors.append(error)
    for later in errors[1:]:
        with contextlib.suppress(OSError):  # nobody may be there to hear it
            say(f"afterwards: {in_a_line(later)}")
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _guard(project: Project) -> Iterator[None]:
    """Have the project removed when this process is killed: a child waits for the end of a pipe that we hold."""
    command = [sys.executable, "-m", "deploy.containers.guard", str(project.run / LOCK), *project.down_command]
    with subprocess.Popen(
        command, env=project.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            process.kill()


def _await_lines(project: Project, hands: BoxHands, clients: tuple[int, ...], poll: Callable[[], None]) -> bool:
    """Wait until the server listens and every link takes commands; False: the server has finished already."""
    patience = Patience(project.run)
    while not (project.is_healthy("server") and all(map(hands.is_reachable, clients))):
        if code := project.exit_code("server"):
            raise _failure(project, code)
        if code == 0:
            return False
        if patience.is_over():
            raise WaitTimeoutError(
                f"the server and its links were not ready, and the server told of nothing, for {START_TIMEOUT_S:g} s"
            )
        time.sleep(POLL_S)
        poll()
    return True


def _follow(
    project: Project,
    clients: tuple[int, ...],
    killed: set[str],
    driver: FaultDriver | None,
    poll: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Watch until the server ends; a client that dies is told once, and the run goes on without it.

    Unless a mistake of the user's has ended every client: then the server would wait for them in vain.
    """
    codes: dict[str, int | None] = {}  # of clients that ended, once told
    roles = {f"client-{client}" for client in clients}
    while "server" not in (ended := project.ended()):
        end = time.monotonic() + POLL_S
        while driver is not None and time.monotonic() < end:
            driver.poll(time.monotonic())
            time.sleep(FAULT_POLL_S)
        time.sleep(max(end - time.monotonic(), 0.0))
        poll()
        found = {service: project.exit_code(service) for service in sorted((ended & roles) - codes.keys() - killed)}
        codes |= found
        hopeless = bool(roles) and roles <= ended and all(codes.get(role) == MISTAKE for role in roles)
        what = "as every client did" if hopeless else "the run goes on without it"
        for service, code in found.items():
            if code:
                say(f"{service} ended early ({_describe(project, service, code)}); {what}")
        if hopeless and "server" not in project.ended():
            first = min(roles)
            raise failure(MISTAKE, project.log(first), first)
    poll()
    if code := project.exit_code("server"):
        raise _failure(project, code)
    end = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < end and not roles <= project.ended():
        time.sleep(POLL_S)


def _server_code(project: Project) -> int | None:
    """The server's exit code if it ended."""
    with contextlib.suppress(RunFailedError):  # not even its container was made
        return project.exit_code("server")
    return None


def _failure(project: Project, code: int) -> UserError | RunFailedError:
    return failure(code, project.log("server"), "the server's container")


def _describe(project: Project, service: str, code: int) -> str:
    if project.container(service).attrs["State"]["OOMKilled"]:
        return "it needed more memory than --memory gives"
    return describe(code, project.log(service))


def _collect_logs(project: Project, roles: Path, say: Callable[[str], None]) -> None:
    """Append what each container said to its role's log, where local processes write theirs."""
    for service, container in project.engine.containers(project.name).items():
        folder = roles / service
        if folder.is_dir():
            try:
                words = project.log_of(container)
            except RunFailedError as error:  # not worth a container that stays behind
                say(f"{service}'s log could not be had: {error}")
            else:
                with (folder / "log.txt").open("a", encoding="utf-8") as log:
                    log.write(words)
