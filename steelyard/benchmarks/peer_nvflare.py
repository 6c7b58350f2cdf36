"""An NVFlare job whose rounds train nothing, in its simulator: `peer_nvflare.py FLOATS CLIENTS ROUNDS OUT FOLDER`.

Run by NVFlare's own processes alone, from a copy in a folder of its own.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController
from nvflare.job_config.api import FedJob


class Rounds(ModelController):
    """Sends, receives and averages, a few times over; notes the seconds of each."""

    def __init__(self, floats: int, clients: int, rounds: int, out: str) -> None:
        super().__init__()
        self.floats, self.clients, self.rounds, self.out = floats, clients, rounds, out

    def run(self) -> None:
        """All rounds."""
        model = np.arange(self.floats, dtype=np.float32)
        taken = []
        for number in range(self.rounds):
            started = time.perf_counter()
            handed = FLModel(params={"model": model}, current_round=number, total_rounds=self.rounds)
            replies = self.send_model_and_wait(targets=self.sample_clients(self.clients), data=handed)
            back = [reply.params["model"] for reply in replies]
            assert len(back) == self.clients
            assert (sum(back) / len(back)).shape == model.shape
            taken.append(time.perf_counter() - started)
            Path(self.out).write_text(json.dumps(taken), encoding="utf-8")


class Echo(Executor):
    """Sends back what came."""

    def execute(self, _task_name: str, shareable: Shareable, _context: FLContext, _abort: Signal) -> Shareable:
        """One task."""
        return DXO(data_kind=DataKind.WEIGHTS, data=from_shareable(shareable).data).to_shareable()


if __name__ == "__main__":
    floats, clients, rounds = map(int, sys.argv[1:4])
    job = FedJob(name="bench", min_clients=clients)
    job.to_server(Rounds(floats, clients, rounds, sys.argv[4]))
    job.to_clients(Echo(), tasks=["train"])
    job.simulator_run(sys.argv[5], n_clients=clients, threads=clients)
