"""`python -m server.forecast HALF EXAMPLES`: how long a round's scoring will take here, by the server's half of a run.

The doctor asks in a process of its own, since it loads no torch. The answer is JSON on stdout: `coalitions`, the most
of them in a round, and `seconds`, what one takes. A few inner batches of random images are timed, since what a forward
pass takes does not depend on what it sees, and the joining of random updates, by a defence's rule where that does it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from steelyard.aggregation import make_defence
from steelyard.aggregation.base import Setting
from steelyard.aggregation.fedavg import fedavg
from steelyard.aggregation.round import JoinedRound
from steelyard.config import ServerHalf, load_half
from steelyard.models import FlatModel
from steelyard.process import exit_with_launcher, run_main, settle_down
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
    batch, shape = min(half.scoring.inner_batch, examples), half.shape
    placed = on_device(FlatModel(half.model.name, shape), half.scoring.device)
    join = _joining(half, generator, placed.state.device)
    end = time.perf_counter() + ENOUGH_S
    joining = _quickest(lambda: float(join()[0]), end)  # a GPU is done when the number is here
    state_D = join()

    def judging(batches: int, end: float) -> float:
        """The seconds of one coalition's so many inner batches."""
        images = torch.rand(batches * batch, shape.channels, shape.height, shape.width, generator=generator)
        labels = torch.zeros(len(images), dtype=torch.int64)
        evaluation = Evaluation(placed, images, labels, inner_batch=batch, path=half.scoring.path)
        return _quickest(lambda: evaluation.outcome(state_D), end)

    end = time.perf_counter() + ENOUGH_S
    batches = examples / batch
    found, timed = judging(1, end), 1
    if found * BATCHES < ENOUGH_S and batches > 1:
        timed = min(math.ceil(batches), BATCHES)
        found = judging(timed, end + ENOUGH_S)
    return {"coalitions": coalitions, "seconds": joining + found * batches / timed}


def _joining(half: ServerHalf, generator: torch.Generator, device: torch.device) -> Callable[[], torch.Tensor]:
    """What makes the model of all players' coalition, of random updates: the mean, or the rule of a defence."""
    players = len(half.roster)
    model = FlatModel(half.model.name, half.shape)
    state_D = model.initial_state(generator)
    updates = [0.01 * torch.randn(len(state_D), generator=generator) for _ in range(players)]
    defence = make_defence(half.defence, players)
    if defence is None or defence.config.scoring != "same_rule":
        global_D, *there = (each_D.to(device) for each_D in (state_D, *updates))
        return lambda: fedavg(global_D, there, [1] * players)
    trainable = model.layout.trainable
    joined = JoinedRound(
        defence=defence,
        state=defence.rule.start(players, trainable),
        setting=Setting(
            number=1,
            seed=0,
            clients=players,
            global_P=state_D[:trainable].numpy(),
            root_P=updates[0][:trainable].numpy(),
        ),
        global_D=state_D,
        updates=updates,
        samples=[1] * players,
        members=range(players),
    )
    return lambda: joined.model(range(players))


def _quickest(act: Callable[[], object], end: float) -> float:
    """The seconds of the quickest of a few turns, none of which begins after `end` but the first."""
    taken: list[float] = []
    while not taken or (len(taken) < TURNS and time.perf_counter() < end):
        begun = time.perf_counter()
        act()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def main() -> int:
    """Parse the command line and answer."""
    exit_with_launcher()
    settle_down()
    print(json.dumps(forecast(load_half(ServerHalf, Path(sys.argv[1])), int(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
