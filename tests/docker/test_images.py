"""What is in the images: the code of one role, and nothing that another one's needs."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.containers.images import ensure_images, image_name

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

IMPORT = """
import importlib, json
found = []
for name in ("server.app", "client.app", "steelyard.wire", "deploy.link", "deploy.launch", "scripts.main", "torch",
             "pip"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    found.append(name)
print(" ".join(found))
"""


def run(engine: Any, role: str, tag: str, *arguments: str) -> str:
    """What a command says in a container of a role's image, which is removed at once."""
    output = engine.client.containers.run(
        image_name(role, tag), list(arguments), entrypoint="python3", remove=True, network_mode="none", read_only=True
    )
    return str(output.decode()).strip()


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("server", "server.app steelyard.wire torch"),
        ("client", "client.app steelyard.wire torch"),
        ("link", "deploy.link"),
    ],
)
def test_a_role_can_import_its_own_code_alone(engine: Any, tag: str, role: str, names: str) -> None:
    assert run(engine, role, tag, "-c", IMPORT) == names


@pytest.mark.parametrize("role", ["server", "client", "link"])
def test_nobody_is_root(engine: Any, tag: str, role: str) -> None:
    assert run(engine, role, tag, "-c", "import os; print(os.getuid(), os.getgid())") == "10001 10001"
    assert engine.client.images.get(image_name(role, tag)).attrs["Config"]["Healthcheck"]["Test"][0] == "CMD"


def test_an_unchanged_tree_builds_nothing(engine: Any, tag: str) -> None:
    said: list[str] = []
    assert ensure_images(engine, said.append) == tag
    assert said == []
