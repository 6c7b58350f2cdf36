"""`python -m server.forecast HALF EXAMPLES`: how long a round's scoring will take here, by the server's half of a run.

The doctor asks in a process of its own, since it loads no torch. The answer is JSON on stdout: `coalitions`, the most
of them in a round, and `seconds`, what one takes. A few inner batches of random images are timed, since what a forward
pass takes does not depend on what it sees, and the mean of the updates; not what the rule of a defence takes.
"""

from __future__ import annotations

import json
import math
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

BATCHES = 5  # at most that many are timed
TURNS = 3  # of which the quickest counts: the first one warms up, and others may use the machine
ENOUGH_S = 10.0  # after which no turn is begun


def forecast(half: ServerHalf, examples: int) -> dict[str, float]:
    """The most coalitions that a round evaluates, and the seconds that one takes in one process.

    Args:
        half: the server's half, with the shape of the experiment's data.
        examples: the validation examples that coalitions are judged on.

    Raises:
        UserError: the path does not fit the network, or the device is not here.
    """
    players = len(half.roster)
    shared = alone = 0
    for each in make_evaluators(half.evaluators, players):
        calls = each.evaluator.most_calls(players)
        if getattr(each.evaluator, "own_games", False):
            alone += calls
        else:
            shared += calls
    coalitions = min(shared, 2**players) + alone
    if not coalitions:
        return {"coalitions": 0, "seconds": 0.0}
    generator = torch.Generator().manual_seed(0)
    model = FlatModel(half.model.name, half.shape)
    state_D = model.initial_state(generator)
    update_D = 0.01 * torch.randn(len(state_D), generator=generator)
    batch, shape = min(half.scoring.inner_batch, examples), half.shape
    placed = on_device(model, half.scoring.device)
    state_D, update_D = state_D.to(placed.state.device), update_D.to(placed.state.device)

    def seconds(batches: int, end: float) -> float:
        """Of a coalition that is judged on so many inner batches."""
        images = torch.rand(batches * batch, shape.channels, shape.height, shape.width, generator=generator)
        labels = torch.zeros(len(images), dtype=torch.int64)
        evaluation = Evaluation(placed, images, labels, inner_batch=batch, path=half.scoring.path)
        taken: list[float] = []
        while not taken or (len(taken) < TURNS and time.perf_counter() < end):
            begun = time.perf_counter()
            evaluation.outcome(fedavg(state_D, [update_D] * players, [1] * players))
            taken.append(time.perf_counter() - begun)
        return min(taken)

    end = time.perf_counter() + ENOUGH_S
    batches = examples / batch
    found, timed = seconds(1, end), 1
    if found * BATCHES < ENOUGH_S and batches > 1:
        timed = min(math.ceil(batches), BATCHES)
        found = seconds(timed, end + ENOUGH_S)
    return {"coalitions": coalitions, "seconds": found * batches / timed}


def main() -> int:
    """Parse the command line and answer."""
    settle_down()
    print(json.dumps(forecast(load_half(ServerHalf, Path(sys.argv[1])), int(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
