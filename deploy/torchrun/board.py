"""How the ranks of a torchrun job find each other: notes in the store that torchrun itself hosts for the job.

A client's rank asks with a fresh nonce, and rank 0 answers that nonce, so that after a restart of the group nobody
takes a note of the attempt before for its own (torchrun counts restarts per node, so its count cannot tell). The notes
say where the server listens and which role folder is whose; nothing secret, no tensor. Imports torch when it is made:
only the ranks themselves make one, never a launcher.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from steelyard.errors import RunFailedError, SteelyardError, UserError, WaitTimeoutError

STORE_TIMEOUT_S = 60.0
STEP_TIMEOUT_S = 3600.0  # without a sign of life: rank 0 may fetch a data set
POLL_S = 0.1
FINISHED, FAILED, FORCED, ALIVE = (f"steelyard/{word}" for word in ("finished", "failed", "forced", "alive"))
NOBODY = -1


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run of the job as a client's rank is told of it.

    `id` names the run; `client` is its index in the roster, `NOBODY` for a rank more than there are clients; `roles`
    is where rank 0 has the role folders.
    """

    id: str
    address: str
    roles: str
    client: int


class Board:
    """The notes of one job.

    Raises:
        WaitTimeoutError: torchrun's store does not answer.
    """

    def __init__(self) -> None:
        from torch.distributed import DistNetworkError, DistStoreError
        from torch.distributed import TCPStore as Store  # type: ignore[attr-defined]  # public; the annotations forget it

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=STORE_TIMEOUT_S)
        try:
            self._store = Store(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
        except (DistNetworkError, DistStoreError) as error:
            raise WaitTimeoutError(f"torchrun's store at {host}:{port}: no answer in {timeout}: {error}") from None
        self._answered: set[str] = set()

    def ask(self, rank: int, after: str) -> Step | None:
        """Wait for the run that follows the one of id `after`; None: there is none.

        That may take as long as a run does: a client that leaves for good early asks while the others go on.

        Raises:
            WaitTimeoutError: rank 0 gave no sign of life for an hour.
        """
        nonce, pause = secrets.token_hex(8), threading.Event()
        self._store.set(f"steelyard/rank-{rank}", json.dumps([nonce, after]))
        heard, end = -1, 0.0
        while not self._store.check([f"steelyard/{nonce}"]):
            if self._store.check([FINISHED]) or self._store.check([FAILED]):
                return None
            if (signs := self._store.add(ALIVE, 0)) != heard:
                heard, end = signs, time.monotonic() + STEP_TIMEOUT_S
            if pause.wait(POLL_S) or time.monotonic() > end:
                raise WaitTimeoutError(
                    f"rank 0 told rank {rank} of no server, and gave no sign of life for {STEP_TIMEOUT_S:g} s"
                )
        return Step(**json.loads(self._store.get(f"steelyard/{nonce}")))

    def answer(self, run: str, address: str, roles: Path, clients: Sequence[int], ranks: int) -> None:
        """Tell every rank that asks, because it is new or finished another run, of this one.

        Args:
            run: the run's id; a rank that finished it asks for the next one.
            address: where the server listens.
            roles: the folder of role folders.
            clients: their indices, in order: rank 1 is the first.
            ranks: how many there are, rank 0 included.
        """
        for rank in range(1, ranks):
            key = f"steelyard/rank-{rank}"
            if self._store.check([key]):
                nonce, after = json.loads(self._store.get(key))
                if nonce not in self._answered and after != run:
                    client = clients[rank - 1] if rank <= len(clients) else NOBODY
                    step = Step(id=run, address=address, roles=str(roles.resolve()), client=client)
                    self._store.set(f"steelyard/{nonce}", json.dumps(asdict(step)))
                    self._answered.add(nonce)

    def live(self) -> None:
        """Give those that wait a sign of life: a server starts, or a run goes on."""
        self._store.add(ALIVE, 1)

    def finish(self) -> None:
        """Tell every rank that nothing is left to do."""
        self._store.set(FINISHED, "1")

    def fail(self, error: SteelyardError) -> None:
        """Note that the job failed for good, so that torchrun's further attempts end at once."""
        self._store.set(FAILED, json.dumps([isinstance(error, UserError), str(error)]))

    def raise_failure(self) -> None:
        """Raise what an earlier attempt noted with `fail`, if one did."""
        if self._store.check([FAILED]):
            mistake, reason = json.loads(self._store.get(FAILED))
            raise (UserError if mistake else RunFailedError)(reason)

    def forces(self) -> bool:
        """True for the first attempt that asks: an attempt after a restart must not throw its recordings away."""
        return bool(self._store.add(FORCED, 1) == 1)
