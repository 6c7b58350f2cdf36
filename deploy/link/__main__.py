"""`python -m deploy.link FOLDER`: a link as its own process, from FOLDER/link.json until it is ended."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from deploy.link.relay import Link, LinkConfig
from steelyard.errors import UserError
from steelyard.parsing import parse
from steelyard.process import exit_with_launcher, run_main


def load_link(folder: Path) -> dict[str, Any]:
    """The table of a link's link.json.

    Raises:
        UserError: it is missing or is no JSON.
    """
    path = folder / "link.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: a link's configuration expected: {error}") from None


def main() -> int:
    """Parse the command line and run the link until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m deploy.link", description="A TCP link with the figures of a line.")
    parser.add_argument("folder", type=Path, help="the link's folder, with link.json")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where to listen (default: as link.json says)")
    parser.add_argument("--target", metavar="HOST:PORT", help="whom to dial (default: as link.json says)")
    arguments = parser.parse_args()
    exit_with_launcher()
    table = load_link(arguments.folder)
    for key in ("listen", "target"):
        if getattr(arguments, key):
            table[key] = getattr(arguments, key)
    link = Link(parse(LinkConfig, table, str(arguments.folder / "link.json")), arguments.folder)
    print(f"listening on {link.address}", flush=True)
    link.run()
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
