"""The [placement] table: which device each process computes on. Knows names of devices, nothing of torch.

Another kind of device gives other bits, so the kind is hashed with the experiment when it is not the CPU; which of a
host's GPUs it is decides nothing, so clients may be moved between them. What scores coalitions is `[scoring] device`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.errors import UserError

DEVICE = re.compile(r"cpu|cuda:\d{1,3}")


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Devices, "cpu" or "cuda:<i>" of the process's own host.

    Client k computes on `clients[k mod their number]`, so several may share a GPU. `server` is where nccl stages the
    server's tensors; nothing is computed there.
    """

    server: str = "cpu"
    clients: tuple[str, ...] = ("cpu",)

    def client(self, k: int) -> str:
        """Client k's device."""
        return self.clients[k % len(self.clients)]

    @property
    def kinds(self) -> list[str]:
        """What of this decides results: the kinds of the clients' devices in turn; empty when all are the CPU."""
        kinds = [device.partition(":")[0] for device in self.clients]
        if set(kinds) == {"cpu"}:
            return []
        return kinds[:1] if len(set(kinds)) == 1 else kinds


def check_placement(
    placement: PlacementConfig, *, clients: Sequence[int], nccl: bool, one_host: bool, where: str
) -> None:
    """Check a placement before anything starts.

    Args:
        placement: the table.
        clients: those that take part.
        nccl: whether tensors move by nccl, whose pairs need two distinct GPUs.
        one_host: whether all processes are known to share this host.
        where: names the table in an error.

    Raises:
        UserError: no such device can be, or nccl can't connect what shares a GPU or has none.
    """
    for device in (placement.server, *placement.clients):
        if not DEVICE.fullmatch(device):
            raise UserError(f"{where}: devices 'cpu' or 'cuda:<i>' expected, got {device!r}")
    if not placement.clients:
        raise UserError(f"{where} clients: at least one device expected, got none")
    if not nccl:
        return
    for name, device in (("server", placement.server), *((f"client {k}", placement.client(k)) for k in clients)):
        if device == "cpu":
            raise UserError(f"{where}: a GPU for the {name} expected with tensors = 'nccl', got 'cpu'; or use gloo")
        if one_host and name != "server" and device == placement.server:
            raise UserError(
                f"{where}: nccl pairs need two distinct GPUs, the server and {name} are both on {device}; "
                "name other devices, or use gloo"
            )
