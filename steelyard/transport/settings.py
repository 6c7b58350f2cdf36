"""The [transport] table and what must hold of it before anything starts. Torch-free.

Nothing in it may change a result, so none of it is part of an experiment's hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steelyard.errors import UserError
from steelyard.parsing import Positive, PositiveFloat

COLLECTIVE = ("gloo", "nccl")
MAX_TIMEOUT_S = 3600.0  # the server refuses calls that may take longer, since each holds a thread
# A call may outlast the wait that it asks for, and gRPC rounds its deadline up to a minute: a limit of a minute more
# would be met to the last digit, and two clocks' jitter would refuse the call.
LONGEST_CALL_S = MAX_TIMEOUT_S + 120.0


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """How bytes move. Nothing here may change a result, so none of it is part of the experiment's hash.

    `address` is HOST:PORT (port 0: any free one); beyond loopback `certificates`, a folder that `steelyard certs`
    wrote, is required. `timeout_s`, an hour at most, bounds every transfer and every wait for a silent peer.
    `chunk_bytes` is the gRPC plane's. With gloo each process listens on `interface`, a network interface's name or an
    address of its own host; `trusted_peers` says that every process and the network between them is trusted
    (docs/transport.md).
    """

    address: str = "127.0.0.1:0"
    tensors: Literal["grpc", "memory", "gloo", "nccl"] = "grpc"
    chunk_bytes: Positive = 2**20
    timeout_s: PositiveFloat = 60.0
    certificates: str = ""
    interface: str = "127.0.0.1"
    trusted_peers: bool = False

    @property
    def is_collective(self) -> bool:
        """Whether tensors move by torch.distributed."""
        return self.tensors in COLLECTIVE


def check_transport(transport: TransportConfig, where: str) -> None:
    """Check what no single field can say; `where` names the table in an error.

    Raises:
        UserError: a timeout that no server takes, torch.distributed without trusted peers, or listening on every
            interface.
    """
    if transport.timeout_s > MAX_TIMEOUT_S:
        raise UserError(f"{where} timeout_s: at most {MAX_TIMEOUT_S:g} expected, got {transport.timeout_s:g}")
    if not transport.is_collective:
        return
    if not transport.trusted_peers:
        raise UserError(
            f"{where} tensors = {transport.tensors!r}: trusted_peers = true expected beside it: a peer that sends more "
            "than it announced aborts the other process, and tensors travel unencrypted; set it if you trust every "
            "process and the network between them, else set tensors = 'grpc'"
        )
    if transport.interface.strip("[]") in ("", "0.0.0.0", "::", "*"):  # noqa: S104 - refused here
        raise UserError(
            f"{where} interface: the name of one network interface or one address of this host expected, got "
            f"{transport.interface!r}, which is all of them"
        )
