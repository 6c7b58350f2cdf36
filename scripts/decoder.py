"""`steelyard decoder train`: train a decoder beforehand on what an attacker has, store it by its digest, show samples.

The data is dealt as `steelyard prepare` deals it, here; the training runs in a child process with the environment of a
run's processes, so that it gives the bits that the attacking client would get: `python -m scripts.decoder FOLDER` is
that child, and the folder holds what it may use.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.endings import run_child
from deploy.provenance import provenance
from scripts.progress import command_name
from steelyard.bundle import read_arrays, write_arrays, write_text
from steelyard.config import Experiment, Shape, load_experiment, to_json
from steelyard.data.deal import Deal, Shard, deal
from steelyard.decoder_store import Provenance, data_digest, file_digest, store_folder
from steelyard.errors import UserError
from steelyard.parsing import parse
from steelyard.picture import grid, write_png
from steelyard.process import exit_with_launcher, run_main, settle_down
from steelyard.seeding import derive_seed

if TYPE_CHECKING:
    from steelyard.generators import Decoder

COLUMNS = 12  # of the picture: a real image, then samples
SIDE = 56  # pixels of the picture that an image's height takes, about


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the child is asked for: `made_of` with the parameters as the experiment gives them, and where to put it."""

    made_of: Provenance
    shape: Shape
    out: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "train the decoder of [attack.decoder] on one client's shard or on the public set, and store it"
    train = actions.add_parser("train", help=text, description=text)
    train.add_argument("experiment", type=Path, help="the experiment file (TOML)")
    train.add_argument("--source", choices=("own", "public"), required=True, help="which data it is trained on")
    train.add_argument("--client", type=int, metavar="K", help="whose shard and seed (default: the first attacker's)")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key"
    )
    train.add_argument("--out", type=Path, help="where decoders are kept (default: $STEELYARD_DECODERS or decoders)")


def act(arguments: argparse.Namespace) -> int:
    """Deal the data, train in a child process, and say how to use what was stored; returns the exit code."""
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    client = arguments.client if arguments.client is not None else next(iter(experiment.attackers), 0)
    if not 0 <= client < experiment.clients.count:
        raise UserError(f"--client: an index below {experiment.clients.count} expected, got {client}")
    if arguments.source == "public" and not experiment.data.public:
        raise UserError("--source public: a public set expected, there is none; set [data] public to its size")
    dealt = deal(experiment)
    out = arguments.out or store_folder()
    out.mkdir(parents=True, exist_ok=True)  # now: one that can't be made would cost the training
    with tempfile.TemporaryDirectory() as folder:
        _write_order(Path(folder), experiment, dealt, arguments.source, client, out)
        done = run_child("scripts.decoder", folder, stdout=subprocess.PIPE)
    if done.returncode:
        return done.returncode
    *lines, sha256 = done.stdout.splitlines()
    print(*lines, sep="\n")
    settings = [*arguments.overrides, f"attack.decoder_source={arguments.source}", f"attack.decoder_sha256={sha256}"]
    words = [command_name(), "run", str(arguments.experiment), *(w for key in settings for w in ("--set", key))]
    print(f"use it: {shlex.join(words)}")
    if out != store_folder():
        print(f"it is looked for in {store_folder()}: set STEELYARD_DECODERS={out}")
    return 0


def _write_order(folder: Path, experiment: Experiment, dealt: Deal, source: Any, client: int, out: Path) -> None:
    """All that the child is handed: training data, and held-out images to judge samples by."""
    data: Shard = dealt.public if source == "public" else dealt.shards[client]
    made_of = Provenance(
        source=source,
        client=client,
        dataset=experiment.data.dataset,
        partition_seed=experiment.partition_seed,
        samples=len(data),
        data_sha256=data_digest(data.images, data.labels),
        seed=derive_seed(derive_seed(experiment.seed, "client", client), "decoder"),  # as the client itself derives it
        params=dict(experiment.attack.get("decoder", {})),
    )
    order = Order(made_of=made_of, shape=dealt.shape, out=str(out.resolve()))
    write_text(folder / "order.json", to_json(order))
    held_out = dealt.validation, dealt.test
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "images": data.images,
        "labels": data.labels,
        "held_out_images": np.concatenate([part.images for part in held_out]),
        "held_out_labels": np.concatenate([part.labels for part in held_out]),
    }
    write_arrays(folder / "data.safetensors", arrays)


def train_and_store(order: Order, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    """Train, judge, store; print what a person wants to know.

    Returns:
        The stored decoder's digest, in hex.
    """
    import torch

    from steelyard.generators import decoder_params, train_with_losses
    from steelyard.generators.quality import judge

    data = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    real, held_out = (data["images"], data["labels"]), (data["held_out_images"], data["held_out_labels"])
    params = decoder_params(order.made_of.params)
    made_of = replace(order.made_of, params=asdict(params))
    started = time.process_time()
    decoder, losses = train_with_losses(*real, order.shape, params, made_of.seed)
    seconds = round(time.process_time() - started, 2)
    quality = asdict(judge(decoder, real, held_out, made_of.seed))
    out = Path(order.out)
    unnamed = out / f"new-{os.getpid()}.safetensors"
    decoder.save(unnamed, made_of.to_bytes())
    sha256 = file_digest(unnamed)
    unnamed.replace(out / f"{sha256}.safetensors")
    record = {"sha256": sha256, **asdict(made_of), "shape": asdict(order.shape), "labels": decoder.labels}
    record |= {"cpu_seconds": seconds, "final_loss": losses, "quality": quality, **provenance()}
    write_text(out / f"{sha256}.json", json.dumps(record, indent=1) + "\n")
    write_png(out / f"{sha256}.png", _page(decoder, real, made_of.seed))
    whose = "the public set" if made_of.source == "public" else f"client {made_of.client}'s shard"
    print(f"{params.kind} trained on {whose}: {made_of.samples} samples of {len(decoder.labels)} labels, {seconds:g} s")
    print("final loss: " + ", ".join(f"{name} {value:.4g}" for name, value in losses.items()))
    print("quality: " + ", ".join(f"{name} {value:.3f}" for name, value in quality.items()))
    print(f"stored {out / sha256}.safetensors, .json and .png")
    return sha256


def _page(decoder: Decoder, real: tuple[Any, Any], seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One row per label: a real image of the training data, then samples."""
    import torch

    from steelyard.seeding import torch_generator

    rows = []
    for label in decoder.labels:
        asked = torch.full((COLUMNS - 1,), label)
        rows += [real[0][real[1] == label][:1], decoder.sample(asked, torch_generator(seed, "picture", label))]
    return grid(torch.cat(rows).numpy(), columns=COLUMNS, zoom=max(1, SIDE // decoder.shape.height))


def _child() -> int:
    exit_with_launcher()
    settle_down()
    folder = Path(sys.argv[1])
    order = parse(Order, json.loads((folder / "order.json").read_text(encoding="utf-8")), "order.json")
    print(train_and_store(order, read_arrays(folder / "data.safetensors")))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(_child))
