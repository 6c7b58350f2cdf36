"""One run's containers as a compose project: up, down, and whatever a test or a fault does to one of them meanwhile.

Starting and ending is compose's work, on the run's own compose.yaml; the rest is asked of the engine. Only
containers and networks of this project are ever touched. Torch-free.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.containers.boxes import user_of_boxes
from deploy.containers.engine import Engine, compose_command, mapped_errors
from deploy.containers.images import ROOT
from deploy.endings import finished
from steelyard.errors import RunFailedError
from steelyard.process import LAUNCHER

POLL_S = 0.2
DOWN_TIMEOUT_S = 600.0
ENDED = ("exited", "dead")
END_S = 1  # between asking a container to end and ending it: whatever happens to a role, nothing is lost


def project_name(run: Path) -> str:
    """The compose project of a run directory, named by its whole path."""
    return f"steelyard-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]}"


class Project:
    """The containers of one run directory.

    Args:
        engine: runs them.
        run: the run directory, with compose.yaml.
        tag: of the images.
    """

    def __init__(self, engine: Engine, run: Path, tag: str) -> None:
        self.engine = engine
        self.run = run.resolve()
        self.file = self.run / "compose.yaml"
        self.name = project_name(run)
        self._command = [*compose_command(), "--project-name", self.name, "--file", str(self.file)]
        variables = {"RUN": str(self.run), "TAG": tag, "USER": user_of_boxes(), "SOURCE": str(ROOT)}
        self.environment = {**os.environ, **{f"STEELYARD_{name}": value for name, value in variables.items()}}

    @property
    def down_command(self) -> list[str]:
        """What removes the project, in its `environment`."""
        return [*self._command, "down", "--timeout", str(END_S), "--remove-orphans"]

    def up(self, poll: Callable[[], None], *services: str) -> None:
        """Make networks and containers and start them in order; returns once the last one is started.

        Args:
            poll: called often meanwhile; a server that continues a run may first score for minutes.
            services: which ones, with those that they depend on; none named: all.

        Raises:
            RunFailedError: they could not be started, or the server ended before it listened.
        """
        command = [sys.executable, "-m", "deploy.containers.leash", *self._command]
        command += ["up", "--detach", "--no-build", *services]
        with subprocess.Popen(
            command,
            env={**self.environment, LAUNCHER: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends it
        ) as process:
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        _, words = process.communicate(timeout=POLL_S)
                        break
                    poll()
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise RunFailedError(f"starting the containers failed: {_last_words(words)}")

    def down(self) -> None:
        """End and remove the project's containers and networks; those that are not there are no error.

        Raises:
            RunFailedError: something is left.
        """
        what = f"removing the containers of {self.name}"
        done = finished(self.down_command, what, DOWN_TIMEOUT_S, self.environment)
        if done.returncode:
            raise RunFailedError(f"{what} failed: {_last_words(done.stderr)}")

    def container(self, service: str) -> Any:
        """A service's container, as the SDK has it now.

        Raises:
            RunFailedError: there is none.
        """
        found = self.engine.containers(self.name)
        if service not in found:
            raise RunFailedError(f"a container of {service} expected in {self.name}, there is none")
        return found[service]

    def exit_code(self, service: str) -> int | None:
        """A container's exit code, negative for a signal; None while it runs, is paused or has not started."""
        state = self.container(service).attrs["State"]
        code = int(state["ExitCode"])
        return (128 - code if code > 128 else code) if state["Status"] in ENDED else None

    def is_healthy(self, service: str) -> bool:
        """Whether a container's own check has passed."""
        return bool(self.container(service).attrs["State"].get("Health", {}).get("Status") == "healthy")

    def ended(self) -> set[str]:
        """The services whose containers have ended."""
        return {service for service, state in self.engine.states(self.name).items() if state in ENDED}

    def log(self, service: str) -> str:
        """All that a service's container has said."""
        return self.log_of(self.container(service))

    @staticmethod
    def log_of(container: Any) -> str:
        """All that a container has said."""
        with mapped_errors():
            return str(container.logs().decode("utf-8", errors="replace"))

    def kill(self, service: str) -> None:
        """End a container at once."""
        with mapped_errors():
            self.container(service).kill()

    def start(self, service: str) -> None:
        """Start a container that has ended."""
        with mapped_errors():
            self.container(service).start()

    def pause(self, service: str) -> None:
        """Freeze all processes of a container; its connections stay."""
        with mapped_errors():
            self.container(service).pause()

    def resume(self, service: str) -> None:
        """Thaw a paused container."""
        with mapped_errors():
            self.container(service).unpause()

    def disconnect(self, client: int) -> None:
        """Unplug a client from the only network that it has."""
        with mapped_errors():
            self._near(client).disconnect(self.container(f"client-{client}"))

    def connect(self, client: int, address: str) -> None:
        """Plug a client in again, at the address that it had."""
        with mapped_errors():
            self._near(client).connect(self.container(f"client-{client}"), ipv4_address=address)

    def address(self, service: str, network: str) -> str:
        """A container's address on one of the project's networks, e.g. "near-0"; empty while it does not run."""
        networks = self.container(service).attrs["NetworkSettings"]["Networks"]
        return str(networks[f"{self.name}_{network}"]["IPAddress"])

    def _near(self, client: int) -> Any:
        return self.engine.network(f"{self.name}_near-{client}")


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "it left no word"
