"""Which labels to synthesize: those that the federation under-covers, as far as one client can tell.

Two things tell it: the global model's loss per label on decoder samples, and its own histogram. And of what to make a
label that the decoder was never trained on.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from steelyard.generators import Decoder
from steelyard.models import FlatModel

PROBES = 16  # decoder samples per label that the loss is measured on
CANDIDATES = 64  # decoder samples per label among which carriers are sought, at least


def label_losses(model: FlatModel, decoder: Decoder, generator: torch.Generator) -> torch.Tensor:
    """The loaded model's mean cross-entropy [C] on decoder samples of each label; 0 for labels the decoder lacks.

    The decoder lies on the model's device.
    """
    known = torch.tensor(decoder.labels).to(model.state.device)
    labels = known.repeat_interleave(PROBES)
    model.module.eval()
    with torch.no_grad():
        losses = functional.cross_entropy(model(decoder.sample(labels, generator)), labels, reduction="none")
    losses_C = torch.zeros(model.classes, device=model.state.device)
    losses_C[known] = losses.view(-1, PROBES).mean(1)
    return losses_C


def choose_labels(own_C: torch.Tensor, target_C: torch.Tensor, samples: int) -> torch.Tensor:
    """Labels [samples], ascending, that bring a histogram as near as possible to a target.

    One at a time, the label with the smallest (own + chosen) / target is taken, the lowest of equals; a label of
    target 0 never is.

    Args:
        own_C: the client's own number of samples per label [C].
        target_C: wanted shares per label [C], at least one above 0, in any unit.
        samples: how many labels to choose.

    Returns:
        Them, on the CPU whatever the arguments lie on: one value after another is looked at.
    """
    filled_C, target_C = own_C.double().cpu(), target_C.double().cpu()
    chosen = []
    for _ in range(samples):
        label = int(torch.where(target_C > 0, filled_C / target_C, torch.inf).argmin())
        filled_C[label] += 1
        chosen.append(label)
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def carry(
    model: FlatModel, decoder: Decoder, label: int, samples: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of labels that the decoder has, to stand for one that it lacks.

    Of many decoder samples those are taken that the loaded model gives the label the highest probability.

    Returns:
        Latents [samples, L] and carriers, the labels that the decoder makes of them, [samples].
    """
    carriers = torch.tensor(decoder.labels).to(model.state.device).repeat_interleave(max(CANDIDATES, samples))
    latents = torch.randn(len(carriers), decoder.latent, generator=generator).to(carriers.device)
    model.module.eval()
    with torch.no_grad():
        scores = functional.log_softmax(model(decoder(latents, carriers)), dim=1)[:, label]
    best = scores.topk(samples).indices
    return latents[best], carriers[best]
