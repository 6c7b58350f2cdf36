"""`steelyard prepare`: one folder per role, to be copied to any host and run there."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from deploy.launch import check_roles
from deploy.prepare import client_folder, link_folder, prepare, server_folder
from steelyard.config import load_experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("experiment", type=Path, help="the experiment file (TOML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the role folders go")


def act(arguments: argparse.Namespace) -> int:
    """Write the folders and say how to start them; returns the exit code."""
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    check_roles(experiment)
    dealt = prepare(experiment, arguments.out)
    for client, shard in enumerate(dealt.shards):
        counts = shard.histogram(dealt.shape.classes)
        note = "" if client in experiment.clients.present else ", absent"
        print(f"client {client}: {len(shard)} samples, {sum(c > 0 for c in counts)} of {len(counts)} labels{note}")
    first = client_folder(arguments.out, experiment.clients.present[0])
    print(f"server: {len(dealt.validation)} validation and {len(dealt.test)} test samples")
    print(f"start the server   python -m server {quote(str(server_folder(arguments.out)))}")
    linked = experiment.network.linked(experiment.clients.present)
    for client in linked[:1]:
        link = quote(str(link_folder(arguments.out, client)))
        print(f"then each link     python -m deploy.link {link} --target HOST:PORT")
        print("                   (and so on); for its client, the server is the address that it prints")
    if any(fault.needs_link for fault in experiment.network.faults):
        print("note               nobody makes the faults of [network] happen here; a launcher does, `steelyard run`")
    print(f"then each client   python -m client {quote(str(first))} --server HOST:PORT   (and so on)")
    return 0
