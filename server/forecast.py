"""`python -m server.forecast HALF EXAMPLES`: how long a round's scoring will take here, by the server's half of a run.

The doctor asks in a process of its own, since it loads no torch. The answer is JSON on stdout: `coalitions`, the most
of them in a round, and `seconds`, what one takes. Two inner batches of random images are timed, since what a forward
pass takes does not depend on what it sees.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from steelyard.aggregation.fedavg import fedavg
from steelyard.config import ServerHalf, load_half
from steelyard.models import FlatModel
from steelyard.process import run_main, settle_down
from steelyard.scoring.evaluation import Evaluation, on_device
from steelyard.scoring.evaluators import make_evaluators

TURNS = 3  # of which the quickest counts: the first one warms up, and others may use the machine


def forecast(half: ServerHalf, examples: int) -> dict[str, float]:
    """The most coalitions that a round evaluates, and the seconds that one takes in one process.

    Args:
        half: the server's half, with the shape of the experiment's data.
        examples: the validation examples that coalitions are judged on.

    Raises:
        UserError: the path does not fit the network, or the device is not here.
    """
    players = len(half.roster)
    asked = sum(each.evaluator.most_calls(players) for each in make_evaluators(half.evaluators, players))
    coalitions = min(asked, 2**players)
    if not coalitions:
        return {"coalitions": 0, "seconds": 0.0}
    generator = torch.Generator().manual_seed(0)
    model = FlatModel(half.model.name, half.shape)
    state_D = model.initial_state(generator)
    update_D = 0.01 * torch.randn(len(state_D), generator=generator)
    batch, shape = min(half.scoring.inner_batch, examples), half.shape
    images = torch.rand(2 * batch, shape.channels, shape.height, shape.width, generator=generator)
    labels = torch.zeros(2 * batch, dtype=torch.int64)
    placed = on_device(model, half.scoring.device)

    def seconds(batches: int) -> float:
        """Of a coalition that is judged on so many inner batches."""
        these, theirs = images[: batches * batch], labels[: batches * batch]
        evaluation = Evaluation(placed, these, theirs, inner_batch=batch, path=half.scoring.path)
        taken = []
        for _ in range(TURNS):
            begun = time.perf_counter()
            evaluation.outcome(fedavg(state_D, [update_D] * players, [1] * players))
            taken.append(time.perf_counter() - begun)
        return min(taken)

    one, two = seconds(1), seconds(2)
    return {"coalitions": coalitions, "seconds": one + max(two - one, 0.0) * (examples / batch - 1)}


def main() -> int:
    """Parse the command line and answer."""
    settle_down()
    print(json.dumps(forecast(load_half(ServerHalf, Path(sys.argv[1])), int(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
