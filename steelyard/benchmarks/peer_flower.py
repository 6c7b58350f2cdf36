"""A Flower app whose rounds train nothing: the server sends a model, every client sends it back. Flower runs it.

Imported by Flower's own processes alone, from a copy beside a pyproject.toml that `transport_peers.py` writes.
"""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, _context: Context) -> Message:
    """Send back what came."""
    arrays = message.content["model"].to_numpy_ndarrays()
    return Message(content=RecordDict({"model": ArrayRecord(arrays)}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Send, receive and average, a few times over; note the seconds of each."""
    settings = context.run_config
    model = np.arange(int(settings["floats"]), dtype=np.float32)
    while len(nodes := list(grid.get_node_ids())) < int(settings["clients"]):
        time.sleep(0.2)
    taken = []
    for number in range(int(settings["rounds"])):
        started = time.perf_counter()
        messages = [
            Message(
                content=RecordDict({"model": ArrayRecord([model])}),
                message_type="train",
                dst_node_id=node,
                group_id=str(number),
            )
            for node in nodes
        ]
        back = [reply.content["model"].to_numpy_ndarrays()[0] for reply in grid.send_and_receive(messages)]
        assert len(back) == len(nodes)
        assert (sum(back) / len(back)).shape == model.shape
        taken.append(time.perf_counter() - started)
        Path(str(settings["out"])).write_text(json.dumps(taken), encoding="utf-8")
