"""ACE: send the global step that history predicts, not what was trained (Xu et al., USENIX Security 2024, 2405.20975).

Honest in the first rounds; then g_t = g_{t-1} + H (w_t - w_{t-1}), g the global step of a round, w the global model and
H the L-BFGS matrix of the kept models. What follows is our choice: a missed round's step is spread evenly over the
rounds it spans, a void round is no step, a correction longer than the last step is shortened to it, and the prediction
is brought to the mean length of the client's honest updates, because a mean of many updates is shorter than each.
Buffers are left as they are.

Legend: W kept global models, P trainable parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from client.attacks.base import Resources, Result
from client.attacks.memory import Memory
from steelyard.lbfgs import hessian_times
from steelyard.parsing import NonNegative, NonNegativeFloat, Range


@dataclass(frozen=True, kw_only=True)
class AceParams:
    """When it starts to predict, from how many kept global models, and how long its update is.

    `honest_rounds` are trained honestly; so is any round before the client has seen a step and its own honest length.
    `window` global models are kept. `length = "honest"` is the mean norm of its honest updates, "predicted" leaves the
    prediction as it is; `factor` times that is sent.
    """

    honest_rounds: NonNegative = 2
    window: Annotated[int, Range(2)] = 6
    length: Literal["honest", "predicted"] = "honest"
    factor: NonNegativeFloat = 1.0


class Ace:
    """Trains at first, and from then on sends what the global model is about to do anyway."""

    def __init__(self, params: AceParams, resources: Resources) -> None:
        self.params = params
        self.resources = resources
        self.memory = Memory(resources.folder, resources.device)

    def update(self, round_: int, global_D: torch.Tensor) -> Result:
        """The honest update, or the predicted step."""
        own, trainable = self.resources, self.resources.model.layout.trainable
        before = self.memory.before(round_)
        models_WP, spans_W = _appended(before, round_, global_D[:trainable], self.params.window)
        norms = before.get("norms", torch.zeros(0, device=own.device))
        predicts = round_ > self.params.honest_rounds and len(models_WP) > 1 and len(norms) > 0
        if predicts:
            step_P = predict(models_WP, spans_W[1:])
            length = norms.mean() / step_P.norm().clamp(min=1e-12) if self.params.length == "honest" else 1.0
            update_D = torch.zeros_like(global_D)
            update_D[:trainable] = self.params.factor * length * step_P
        else:
            update_D = own.train(round_, global_D, own.images, own.labels)
            norms = torch.cat([norms, update_D[:trainable].norm().view(1)])
        seen = torch.tensor([round_]).to(own.device)
        self.memory.keep(round_, {"models": models_WP, "spans": spans_W, "seen": seen, "norms": norms})
        return Result(update_D=update_D, notes={"predicts": int(predicts), "steps_seen": len(models_WP) - 1})


def predict(models_WP: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """The next global step [P] from two or more different models, oldest first, and the rounds between each two."""
    moves = models_WP.double().diff(dim=0)
    steps = moves / spans[:, None]
    last_P = steps[-1]
    # a step is minus a gradient, up to the learning rate: L-BFGS is given gradients
    correction_P = -hessian_times(moves[:-1], -steps.diff(dim=0), moves[-1])
    correction_P *= (last_P.norm() / correction_P.norm().clamp(min=1e-12)).clamp(max=1)
    return (last_P + correction_P).float()


def _appended(
    before: dict[str, torch.Tensor], round_: int, model_P: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept models [W, P] with this round's, and the rounds from each one's last sight to the next one's first [W].

    The first of these is that of a model no longer kept. A void round's model is the same again: nothing is appended.
    """
    if not before:
        return model_P[None].clone(), torch.zeros(1, dtype=torch.int64, device=model_P.device)
    models_WP, spans_W = before["models"], before["spans"]
    if not torch.equal(models_WP[-1], model_P):
        models_WP = torch.cat([models_WP, model_P[None]])[-window:]
        spans_W = torch.cat([spans_W, round_ - before["seen"]])[-window:]
    return models_WP, spans_W
