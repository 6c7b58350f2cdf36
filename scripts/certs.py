"""`steelyard certs`: the certificates that a server beyond loopback needs, one authority, one server, N clients."""

from __future__ import annotations

import argparse
from pathlib import Path

from steelyard.certificates import write_certificates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("folder", type=Path, help="where they go")
    parser.add_argument("--clients", type=int, required=True, help="the number of clients")
    parser.add_argument(
        "--host", action="append", default=[], dest="hosts", help="a name or address that clients dial (repeatable)"
    )


def act(arguments: argparse.Namespace) -> int:
    """Write them; returns the exit code."""
    write_certificates(arguments.folder, arguments.clients, arguments.hosts)
    print(f"{arguments.folder}: an authority, a server, {arguments.clients} clients; keep ca-key.pem off every host")
    print(f'in the experiment file:  [transport] certificates = "{arguments.folder}"')
    return 0
