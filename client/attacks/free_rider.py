"""Free-riders: clients that send an update without training.

The previous global step (delta weights, with noise: advanced delta weights) is Lin et al. 2019 (arXiv 1911.12560);
the unchanged model and noise of deviation c s t^-g that fades over the rounds, c in {1, 3} and g in {0.5, 1, 2}, are
Fraboni et al. 2021 (arXiv 2006.11901). Our choice: s is the mean absolute value of the first step seen, so nothing is
added before one was; uniformly random weights, Lin et al.'s third form, are left out. Buffers are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from client.attacks.base import Resources, Result
from client.attacks.memory import Memory
from steelyard.parsing import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class FreeRiderParams:
    """What it sends: `nothing` (zeros) or the `previous_step` of the global model, plus noise.

    The noise's standard deviation is `noise` * s * round^-`decay`, s the mean absolute value of the first global step
    that the client saw.
    """

    send: Literal["nothing", "previous_step"] = "previous_step"
    noise: NonNegativeFloat = 0.0
    decay: NonNegativeFloat = 1.0


class FreeRider:
    """Sends what it can make of the global models alone. Before it has seen two of them it sends zeros."""

    def __init__(self, params: FreeRiderParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources
        self.memory = Memory(resources.folder, resources.device)

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """Zeros or the previous global step, and fading noise."""
        trainable = self.resources.model.layout.trainable
        update_D = torch.zeros_like(global_D)
        if self.params.send == "nothing" and not self.params.noise:  # then no round needs anything of an earlier one
            return Result(update_D=update_D, notes={})
        before = self.memory.before(round_)
        keep = {"global": global_D}
        deviation = 0.0
        if before:
            step = (global_D - before["global"])[:trainable]
            scale = before.get("scale", step.abs().mean().view(1))
            if scale.any():  # a void round's step is none
                keep["scale"] = scale
            if self.params.send == "previous_step":
                update_D[:trainable] = step
            deviation = self.params.noise * float(scale) * round_**-self.params.decay
            noise = torch.randn(trainable, generator=self.resources.generator("noise", round_))
            update_D[:trainable] += deviation * noise.to(update_D.device)
        self.memory.keep(round_, keep)
        return Result(update_D=update_D, notes={"saw_a_step": int(bool(before)), "noise_std": deviation})
