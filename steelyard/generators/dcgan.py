"""The kind "dcgan": a convolutional generator trained against a discriminator, both told the label.

Radford et al. 2016 (arXiv 1511.06434) for the networks, Mirza & Osindero 2014 (arXiv 1411.1784) for the label in both;
the discriminator reads it as Miyato & Koyama 2018 (arXiv 1802.05637) have it, one vote per label. Measured on a few
hundred images, the plain form ignores the label or collapses, so (our choice): real images under wrong labels count as
made (Reed et al. 2016, arXiv 1605.05396); two samples of a label are pushed apart until they differ as much as two real
images do, after the idea of Yang et al. 2019 (arXiv 1901.09024); the discriminator sees shifted images (Zhao et al.
2020, arXiv 2006.10738) and is told 1 - `smoothing` for real ones (Salimans et al. 2016, arXiv 1606.03498); and the
generator that is kept is the running mean of the trained one (Karras et al. 2018, arXiv 1710.10196).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from steelyard.config import Shape
from steelyard.generators.convolution import decode, decoder_layers, features, read, reader_layers
from steelyard.generators.layers import Weights, dense, first_weights, linear
from steelyard.generators.losses import Tail
from steelyard.parsing import Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFloat
from steelyard.seeding import torch_generator

BETAS = (0.5, 0.99)  # Adam's; Radford et al. use (0.5, 0.999) over many more steps


@dataclass(frozen=True, kw_only=True)
class DcganParams:
    """Size and training; `width` planes at half the image's size, twice as many at a quarter, in both networks.

    `smoothing`, `mismatch` (weight of real images under wrong labels), `diversity` (weight of pushing samples apart)
    and `shift` (largest, in pixels) work against collapse; `memory` is what the running mean of the generator's
    weights keeps each step.
    """

    kind: Literal["dcgan"] = "dcgan"
    latent: Positive = 8
    width: Positive = 16
    steps: Positive = 1500
    batch_size: Positive = 32
    generator_rate: PositiveFloat = 0.001
    discriminator_rate: PositiveFloat = 0.001
    smoothing: Fraction = 0.1
    shift: NonNegative = 1
    memory: Fraction = 0.99
    mismatch: NonNegativeFloat = 1.0
    diversity: NonNegativeFloat = 1.0


def train(
    images: torch.Tensor, labels: torch.Tensor, shape: Shape, params: DcganParams, seed: int
) -> tuple[Weights, dict[str, float]]:
    """Train in turns with Adam; arguments and results as of `training.train_decoder`."""
    first = torch_generator(seed, "decoder", "weights")
    generator = first_weights(decoder_layers(shape, params.latent, params.width), first)
    hidden = 8 * params.width
    layers = reader_layers("judge", shape, params.width)
    layers |= {"judge.2": dense(features(shape, params.width), hidden), "judge.3": dense(hidden, 1 + shape.classes)}
    judge = first_weights(layers, first)
    draws = torch_generator(seed, "decoder", "draws")
    makes = torch.optim.Adam(list(generator.values()), lr=params.generator_rate, betas=BETAS)
    judges = torch.optim.Adam(list(judge.values()), lr=params.discriminator_rate, betas=BETAS)
    kept = {name: tensor.detach().clone() for name, tensor in generator.items()}
    tail = Tail("generator", "discriminator")

    def verdict(planes: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        seen = linear(judge, "judge.2", read(judge, "judge", _shifted(planes, params.shift, draws), shape))
        votes = linear(judge, "judge.3", functional.leaky_relu(seen, 0.2))
        return votes[:, 0] + votes[:, 1:].gather(1, labels_B[:, None])[:, 0]

    apart_C = _apart(images, labels, shape.classes)
    for _ in range(params.steps):
        batch, other = torch.randint(len(labels), (2, params.batch_size), generator=draws)
        asked_B, wrong_B = labels[batch], labels[other]
        made, twin = (torch.sigmoid(decode(generator, _noise(params, draws), asked_B, shape)) for _ in range(2))
        judge_loss = _cross_entropy(verdict(images[batch], asked_B), 1 - params.smoothing)
        judge_loss = judge_loss + _cross_entropy(verdict(made.detach(), asked_B), 0.0)
        if params.mismatch and (differs := wrong_B != asked_B).any():
            mistaken = verdict(images[batch[differs]], wrong_B[differs])
            judge_loss = judge_loss + params.mismatch * _cross_entropy(mistaken, 0.0)
        judges.zero_grad()
        judge_loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        judges.step()
        closer_B = functional.relu(1 - (made - twin).square().flatten(1).sum(1) / apart_C[asked_B])
        generator_loss = _cross_entropy(verdict(made, asked_B), 1.0) + params.diversity * closer_B.mean()
        makes.zero_grad()
        generator_loss.backward()  # type: ignore[no-untyped-call]
        makes.step()
        with torch.no_grad():
            for name, mean in kept.items():
                mean.lerp_(generator[name], 1 - params.memory)
        tail.note(generator_loss, judge_loss)
    return kept, tail.means()


def _apart(images: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Mean squared distance [C] of two real images of a label: twice the variance; for a lone image that of all."""
    apart_C = torch.full((classes,), float(2 * images.var(0).sum()) if len(images) > 1 else 1.0)
    for label in sorted(set(labels.tolist())):
        if (labels == label).sum() > 1:
            apart_C[label] = 2 * images[labels == label].var(0).sum()
    return apart_C.clamp(min=1e-3)


def _noise(params: DcganParams, draws: torch.Generator) -> torch.Tensor:
    return torch.randn(params.batch_size, params.latent, generator=draws)


def _cross_entropy(verdict_B: torch.Tensor, truth: float) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(verdict_B, torch.full_like(verdict_B, truth))


def _shifted(planes: torch.Tensor, shift: int, draws: torch.Generator) -> torch.Tensor:
    """The whole batch moved by up to `shift` pixels each way, black where nothing was; differentiable."""
    if not shift:
        return planes
    down, right = (int(move) for move in torch.randint(2 * shift + 1, (2,), generator=draws))
    height, width = planes.shape[2:]
    return functional.pad(planes, (shift,) * 4)[:, :, down : down + height, right : right + width]
