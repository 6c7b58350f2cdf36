"""`python -m deploy.containers.images`: the images of server, client and link, built where they are not there yet.

An image's tag is a digest of all files of this tree that go into it, so a changed file gives another image and an
unchanged tree builds nothing. Owns the wheelhouse and the choice of the base image. Torch-free.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.containers.engine import Engine, connect, has_plugin
from deploy.endings import finished
from steelyard.errors import RunFailedError, UserError
from steelyard.process import run_main

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("link", "server", "client")
OFFICIAL_BASE = "python:3.11-slim-bookworm"
OWN_BASE = "steelyard-base:bookworm"
PLACE = "deploy/containers"
CODE = ("client", "deploy/link", "protos", "server", "steelyard")
REQUIREMENTS = f"{PLACE}/requirements.txt"
FILES = (
    ".dockerignore",
    "constraints.txt",
    "deploy/__init__.py",
    f"{PLACE}/Dockerfile",
    f"{PLACE}/healthcheck.py",
    REQUIREMENTS,
)
BUILD_TIMEOUT_S = 3600.0  # of one image, or of the wheels
PYTHON_VERSION = "3.11"  # of the base image, whatever runs here


def image_name(role: str, tag: str) -> str:
    """The name of a role's image."""
    return f"steelyard-{role}:{tag}"


def ensure_images(engine: Engine, say: Callable[[str], None]) -> str:
    """Build the images unless they are there; returns their tag.

    Raises:
        UserError: packages or a base image can't be had.
        RunFailedError: the build failed.
    """
    tag = source_tag()
    if all(engine.has_image(image_name(role, tag)) for role in ROLES):
        return tag
    say("building the images of server, client and link; minutes the first time")
    base = base_image(engine, say)
    fill_wheelhouse(ROOT / "wheelhouse")
    for role in ROLES:  # one after another: later ones find the layers that they share with earlier ones
        command = ["docker", "build", "--quiet", "--file", f"{PLACE}/Dockerfile", "--target", role]
        command += ["--build-arg", f"BASE={base}", "--tag", image_name(role, tag), "--tag", image_name(role, "latest")]
        _run([*command, "."], f"building the image of {role}", build_environment())
    return tag


def source_tag() -> str:
    """A digest over the files that make the images: 12 hex digits."""
    paths = [ROOT / name for name in FILES]
    paths += [
        path
        for package in CODE
        for suffix in ("py", "c", "so")
        for path in sorted((ROOT / package).rglob(f"*.{suffix}"))
    ]
    hasher = hashlib.sha256()
    for path in paths:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"a checkout of the project expected, there is no {path}") from None
        hasher.update(f"{path.relative_to(ROOT)} {len(data)}\n".encode() + data)
    return hasher.hexdigest()[:12]


def base_image(engine: Engine, say: Callable[[str], None]) -> str:
    """The base to build upon: `STEELYARD_BASE`, or the official image, or one made from Debian's archive.

    Raises:
        UserError: none can be had.
    """
    wanted = os.environ.get("STEELYARD_BASE", OFFICIAL_BASE)
    for name in (wanted, OWN_BASE):
        if engine.has_image(name):
            return name
    if engine.pull(wanted):
        return wanted
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        raise UserError(
            f"base image {wanted} expected, it is not here and no registry has it; name another in STEELYARD_BASE, "
            "or install mmdebstrap and run as root"
        )
    say(f"no registry has {wanted}: making {OWN_BASE} from Debian's archive")
    _run([f"{PLACE}/base_image.sh", OWN_BASE], f"making {OWN_BASE}", build_environment())
    return OWN_BASE


def fill_wheelhouse(folder: Path) -> None:
    """Download the wheels of requirements.txt, unless they are there already.

    Raises:
        RunFailedError: pip could not have them.
    """
    wanted = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in (REQUIREMENTS, "constraints.txt")))
    mark = folder / "ready"
    if mark.exists() and mark.read_text(encoding="ascii") == wanted.hexdigest():
        return
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    command += ["--only-binary", ":all:", "--python-version", PYTHON_VERSION]
    command += ["--constraint", "constraints.txt", "--requirement", REQUIREMENTS]
    _run(command, "downloading the wheels", dict(os.environ))
    mark.write_text(wanted.hexdigest(), encoding="ascii")


def build_environment() -> dict[str, str]:
    """The environment of a build: the user's, and the classic builder where the newer one is not installed."""
    return {**os.environ, **({} if has_plugin("buildx") else {"DOCKER_BUILDKIT": "0"})}


def _run(command: list[str], what: str, environment: Mapping[str, str]) -> None:
    done = finished(command, what, BUILD_TIMEOUT_S, environment, ROOT)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise RunFailedError(f"{what} failed: {' | '.join(words[-3:])}")


def main() -> int:
    """Build what is missing and say the tag."""
    print(ensure_images(connect(), lambda line: print(line, flush=True)))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
