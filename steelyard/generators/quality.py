"""How good a decoder's samples are, judged on real images that it was not trained on. It knows no attack.

Three questions, one line each: does a network that learned the real images see the asked label in the samples; does a
network that learned the samples alone see the label in real images (the classification accuracy score, Ravuri &
Vinyals 2019, arXiv 1905.10887); and do the samples of one label differ from each other as much as the real ones do?
A collapsed decoder can pass the first; it fails the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steelyard.config import Shape, TrainingConfig
from steelyard.generators.decoder import Decoder
from steelyard.models import FlatModel
from steelyard.seeding import torch_generator
from steelyard.training import evaluate, train

SAMPLES_PER_LABEL = 100
LEARNING = TrainingConfig(epochs=1, batch_size=32, learning_rate=0.05, momentum=0.9)
LEARNING_STEPS = 600  # mini-batches that each judging network learns from, about
LabelledImages = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Fractions between 0 and 1, and `spread`, which is 1 where samples vary like real images of their label.

    `recognized`: of samples, by a network trained on the held-out images. `learned`: of held-out images, by a network
    trained on samples alone; `learned_real`: by one trained on the decoder's own training data instead. `spread`: the
    pixel variance within a label of the samples over that of the training data, the mean over labels of two images
    or more.
    """

    recognized: float
    learned: float
    learned_real: float
    spread: float


def judge(decoder: Decoder, real: LabelledImages, held_out: LabelledImages, seed: int) -> Quality:
    """Judge a decoder, by the small network made for its images' size, whatever the federation trains.

    Args:
        decoder: what is judged.
        real: the images [n, channels, height, width] and labels [n] that it was trained on.
        held_out: others; of labels that the decoder knows, the rest is left out.
        seed: decides samples, first weights and shuffles.
    """
    known = torch.isin(held_out[1], torch.tensor(decoder.labels))
    held_out = held_out[0][known], held_out[1][known]
    labels = torch.tensor(decoder.labels).repeat_interleave(SAMPLES_PER_LABEL)
    with torch.no_grad():
        made = decoder.sample(labels, torch_generator(seed, "quality", "samples")), labels
    return Quality(
        recognized=_learn(held_out, made, decoder.shape, seed),
        learned=_learn(made, held_out, decoder.shape, seed),
        learned_real=_learn(real, held_out, decoder.shape, seed),
        spread=_spread(made, real),
    )


def _learn(seen: LabelledImages, asked: LabelledImages, shape: Shape, seed: int) -> float:
    """Accuracy on `asked` of a network that learned `seen`."""
    model = FlatModel("", shape)
    start_D = model.initial_state(torch_generator(seed, "quality", "weights"))
    repeat = max(1, LEARNING_STEPS * LEARNING.batch_size // len(seen[1]))
    images, labels = seen[0].repeat(repeat, 1, 1, 1), seen[1].repeat(repeat)
    update_D = train(model, start_D, images, labels, LEARNING, torch_generator(seed, "quality", "shuffle"))
    return evaluate(model, start_D + update_D, *asked)[0]


def _spread(made: LabelledImages, real: LabelledImages) -> float:
    """Variance within a label of samples over that of real images, the mean over labels."""
    ratios = []
    for label in sorted(set(made[1].tolist())):
        theirs = real[0][real[1] == label]
        if len(theirs) > 1 and (varies := float(theirs.var(0).mean())) > 0:
            ratios.append(float(made[0][made[1] == label].var(0).mean()) / varies)
    return sum(ratios) / len(ratios) if ratios else 0.0
