"""Training a decoder of any kind. It knows none of them: `kinds` does."""

from __future__ import annotations

import torch

from steelyard.config import Shape
from steelyard.generators.decoder import Decoder
from steelyard.generators.kinds import KINDS, DecoderParams


def train_decoder(
    images: torch.Tensor, labels: torch.Tensor, shape: Shape, params: DecoderParams, seed: int
) -> Decoder:
    """Train a decoder.

    Args:
        images: [n, channels, height, width], float32 in [0, 1].
        labels: [n], int64.
        shape: the images' shape and the number of classes.
        params: kind, size and training.
        seed: decides the first weights, the mini-batches and all noise.

    Returns:
        A decoder for the labels present.
    """
    return train_with_losses(images, labels, shape, params, seed)[0]


def train_with_losses(
    images: torch.Tensor, labels: torch.Tensor, shape: Shape, params: DecoderParams, seed: int
) -> tuple[Decoder, dict[str, float]]:
    """The decoder of `train_decoder`, and what its training ended with: its losses over the last steps, by name."""
    weights, losses = KINDS[params.kind].train(images, labels, shape, params, seed)
    kept = {name: tensor.detach() for name, tensor in weights.items() if name.startswith("decode.")}
    labels_seen = tuple(sorted(set(labels.tolist())))
    return Decoder(kind=params.kind, shape=shape, labels=labels_seen, weights=kept), losses
