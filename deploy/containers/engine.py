"""The container engine, as far as this project asks it: one seam over the docker SDK, foreign errors mapped once.

Knows containers by compose's own labels (project and service), networks and images by name. Torch-free.
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from steelyard.errors import RunFailedError, UserError

PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"
PLUGIN_TIMEOUT_S = 30.0
Network = ipaddress.IPv4Network


def connect() -> Engine:
    """The engine of this host, answering.

    Raises:
        UserError: the SDK is not installed, or no engine answers.
    """
    try:
        import docker
        from docker.errors import DockerException
    except ImportError:
        raise UserError("the docker SDK expected, it is not installed: pip install 'steelyard[containers]'") from None
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except (DockerException, OSError) as error:
        words = " ".join(str(error).split())
        raise UserError(
            f"a container engine expected, none answers: {words}; start it (`systemctl start docker`, or `dockerd` as "
            "root), or leave out --launcher compose"
        ) from None
    return Engine(client)


def compose_command() -> list[str]:
    """How to call compose here: `docker compose` if it answers, else `docker-compose`.

    Raises:
        UserError: neither is installed.
    """
    if has_plugin("compose"):
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise UserError("`docker compose` or docker-compose expected, neither is installed; install one of them")


def has_plugin(name: str) -> bool:
    """Whether the docker command has a plug-in of that name that answers."""
    try:
        asked = subprocess.run(["docker", name, "version"], capture_output=True, check=False, timeout=PLUGIN_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


class Engine:
    """What we ask of the engine.

    Args:
        client: a `docker.DockerClient` whose engine answered.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def has_image(self, name: str) -> bool:
        """Whether an image is here."""
        with mapped_errors():
            return bool(self.client.images.list(name=name))

    def pull(self, name: str) -> bool:
        """Have a registry's image; returns whether it could be had."""
        from docker.errors import DockerException

        try:
            self.client.images.pull(name)
        except (DockerException, OSError):
            return False
        return True

    def subnets(self) -> tuple[Network, ...]:
        """The IPv4 subnets that networks of this engine have taken."""
        with mapped_errors():
            pools = [pool for network in self.client.networks.list() for pool in network.attrs["IPAM"]["Config"] or ()]
        found = (ipaddress.ip_network(pool["Subnet"]) for pool in pools if "Subnet" in pool)
        return tuple(subnet for subnet in found if isinstance(subnet, Network))

    def containers(self, project: str) -> dict[str, Any]:
        """The containers of a compose project by service, those that ended too."""
        with mapped_errors():
            found = self.client.containers.list(all=True, filters={"label": f"{PROJECT}={project}"})
            return {container.labels[SERVICE]: container for container in found}

    def states(self, project: str) -> dict[str, str]:
        """The state of each container of a project by service, in the engine's words, e.g. "running", "exited"."""
        with mapped_errors():
            found = self.client.api.containers(all=True, filters={"label": f"{PROJECT}={project}"})
            return {each["Labels"][SERVICE]: str(each["State"]) for each in found}

    def close(self) -> None:
        """End the connections to the engine."""
        self.client.close()

    def network(self, name: str) -> Any:
        """A network by its whole name."""
        with mapped_errors():
            return self.client.networks.get(name)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """The SDK's errors as ours."""
    from docker.errors import DockerException

    try:
        yield
    except (DockerException, OSError) as error:
        raise RunFailedError(f"the container engine: {' '.join(str(error).split())}") from error
