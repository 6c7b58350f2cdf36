"""A decoder kept on disk, named by everything that decides it, so that a second start loads it instead of training."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch

from steelyard import bundle
from steelyard.config import Shape
from steelyard.errors import BadBundleError
from steelyard.generators.decoder import Decoder
from steelyard.generators.kinds import DecoderParams
from steelyard.generators.training import train_decoder

VERSION = 1  # of the training: raise it when the same inputs give another decoder

log = logging.getLogger(__name__)


def cached_decoder(
    folder: Path, images: torch.Tensor, labels: torch.Tensor, shape: Shape, params: DecoderParams, seed: int
) -> Decoder:
    """The decoder of `train_decoder`, from `folder` if it was trained before.

    A damaged file is reported, trained anew and replaced: the result is the same.
    """
    path = folder / f"decoder-{cache_key(images, labels, shape, params, seed)}.safetensors"
    if path.exists():
        try:
            return Decoder.load(path)
        except BadBundleError as error:
            log.warning("the kept decoder is damaged and trained anew: %s", error)
    decoder = train_decoder(images, labels, shape, params, seed)
    folder.mkdir(parents=True, exist_ok=True)
    decoder.save(path)
    return decoder


def cache_key(images: torch.Tensor, labels: torch.Tensor, shape: Shape, params: DecoderParams, seed: int) -> str:
    """Names a decoder: SHA-256 over version, size, training, seed and data; 16 hex digits."""
    decides = {"version": VERSION, "shape": asdict(shape), "params": asdict(params), "seed": seed}
    hasher = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    for tensor in (images, labels):
        hasher.update(bundle.raw(tensor.contiguous().numpy()))
    return hasher.hexdigest()[:16]
