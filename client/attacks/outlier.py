"""The Outlier attack on data attribution (Wang et al. 2025, arXiv 2409.05657), carried over to federated rounds.

Own points become adversarial examples against the round's global model, labels kept, so that they look like rare and
therefore influential data. By gradients (PGD, Madry et al. 2018, arXiv 1706.06083), or by queries alone (SimBA in the
pixel basis, Guo et al. 2019, arXiv 1905.07121). Our choices: made anew every round; all own points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from client.attacks.base import Resources, Result
from client.attacks.perturbation import ascend
from steelyard.models import FlatModel
from steelyard.parsing import Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class OutlierParams:
    """How, and how far points may move (L-infinity).

    `steps` are PGD's; `queries` bounds how often SimBA asks the model about one point.
    """

    method: Literal["pgd", "simba"] = "pgd"
    eps: Fraction = 0.05
    steps: Positive = 10
    queries: Positive = 100


class Outlier:
    """Trains on its shard with every point made an adversarial example of the global model."""

    def __init__(self, params: OutlierParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Local training on the adversarial shard: as many samples and steps as honest."""
        own, params = self.resources, self.params
        own.model.load(global_D)
        own.model.module.eval()
        queries = 0
        if params.method == "pgd":
            images = ascend(own.images, params.eps, params.steps, lambda x: _loss_slope(own.model, x, own.labels))
        else:
            generator = own.generator("pixels", round_)
            images, spent_n = simba(
                lambda x: _probabilities(own.model, x), own.images, own.labels, params.eps, params.queries, generator
            )
            queries = int(spent_n.sum())
        before, after = (_wrong(own.model, x, own.labels) for x in (own.images, images))
        notes = {"wrong_before": before, "wrong_after": after, "queries": queries}
        return Result(update_D=own.train(round_, global_D, images, own.labels), notes=notes)


def simba(
    probabilities: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    queries: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adversarial examples by queries: add or subtract eps at one value after another, keep what makes y less likely.

    A value is visited once, so eps bounds its change too. A point is left alone once it is misclassified.

    Args:
        probabilities: images [n, channels, height, width] to class probabilities [n, C]; all that is known of a model.
        images: in [0, 1].
        labels: true labels [n].
        eps: the step.
        queries: the most questions about one point.
        generator: orders each point's values.

    Returns:
        The images, and the queries spent on each point [n].
    """
    flat = images.flatten(1).clone()
    order = torch.rand(flat.shape, generator=generator).argsort(1).to(flat.device)
    known = probabilities(images)
    right, best = known.argmax(1) == labels, _of(known, labels)
    spent = torch.ones_like(labels)
    for pixel in order.T:
        untouched = torch.ones_like(right)
        for sign in (1, -1):
            rows = (right & untouched & (spent < queries)).nonzero().flatten()
            if not len(rows):
                continue
            trial = flat[rows]
            at = torch.arange(len(rows), device=rows.device), pixel[rows]
            trial[at] = (trial[at] + sign * eps).clamp(0, 1)
            answer = probabilities(trial.view(-1, *images.shape[1:]))
            spent[rows] += 1
            likely = _of(answer, labels[rows])
            better = likely < best[rows]
            kept = rows[better]
            flat[kept], best[kept], untouched[kept] = trial[better], likely[better], False
            right[kept] = answer[better].argmax(1) == labels[kept]
    return flat.view(images.shape), spent


def _of(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return probabilities.gather(1, labels[:, None])[:, 0]


def _probabilities(model: FlatModel, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images).softmax(1)


def _wrong(model: FlatModel, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((_probabilities(model, images).argmax(1) != labels).float().mean())


def _loss_slope(model: FlatModel, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(model(images), labels, reduction="sum"), [images])
    return slope
