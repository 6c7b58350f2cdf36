"""`steelyard compose`: an experiment's containers as a compose file, alone or with all that it mounts."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from shlex import quote

from deploy.containers.boxes import open_boxes, prepare_boxed
from deploy.containers.compose import Box, compose_text
from deploy.launch import check_roles
from steelyard.bundle import write_text
from steelyard.config import load_experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("experiment", type=Path, help="the experiment file (TOML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key"
    )
    parser.add_argument("--out", type=Path, help="write compose.yaml there, beside the role folders that it mounts")
    add_box_arguments(parser)


def add_box_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what containers may have."""
    usual = Box()
    parser.add_argument("--subnets", default=usual.subnets, help=f"containers: private range ({usual.subnets})")
    parser.add_argument(
        "--memory", type=int, default=usual.memory_mib, help=f"containers: MiB of memory each ({usual.memory_mib})"
    )
    parser.add_argument("--gpu", action="store_true", help="containers: one NVIDIA GPU for each server and client")


def box_of(arguments: argparse.Namespace) -> Box:
    """What the command line says that containers may have."""
    return Box(subnets=arguments.subnets, memory_mib=arguments.memory, gpu=arguments.gpu)


def box_words(arguments: argparse.Namespace) -> str:
    """The command line's words for it again, each behind a space; none where it is as usual."""
    box, usual = box_of(arguments), Box()
    subnets = f" --subnets {box.subnets}" if box.subnets != usual.subnets else ""
    memory = f" --memory {box.memory_mib}" if box.memory_mib != usual.memory_mib else ""
    return f"{subnets}{memory}{' --gpu' if box.gpu else ''}"


def act(arguments: argparse.Namespace) -> int:
    """Print or write the file; returns the exit code."""
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    clients = experiment.clients.present
    text = compose_text(clients, box_of(arguments))
    if arguments.out is None:
        sys.stdout.write(text)
        return 0
    check_roles(experiment)
    prepare_boxed(experiment, arguments.out / "roles")
    open_boxes(arguments.out / "roles", arguments.out, clients)
    write_text(arguments.out / "compose.yaml", text)
    print("images     make images")
    who = "STEELYARD_USER=$(id -u):$(id -g) " if os.geteuid() else ""  # the folders are this user's
    print(f"start      {who}docker compose -f {quote(str(arguments.out / 'compose.yaml'))} up")
    if any(fault.needs_link for fault in experiment.network.faults):
        print("note       nobody makes the faults of [network] happen here; `steelyard run --launcher compose` does")
    print(f"results    {arguments.out / 'served'}")
    return 0
