"""What connects the two ends of a pair: gloo or nccl; the only owner of torch.distributed, loaded only when asked.

A pair is a process group of two ranks, the server 0 and one client 1. It sends and receives, and never reduces. A peer
that sends more than the other expects aborts that process, uncatchably: only for trusted peers.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed
from torch._C._distributed_c10d import Store  # public by another path, which torch's own types lack

from steelyard.errors import UserError
from steelyard.transport.rendezvous import Box, found
from steelyard.transport.settings import TransportConfig

SERVER_RANK, CLIENT_RANK = 0, 1
MOVE_TAG, BREAK_TAG = 1, 2
UNDER_WAY = 2  # chunks at once: one travels while the one before it is hashed
BUILD_S = 8.0  # at most, for two ends to meet; below the patience of a plane that closes
LOOK_S = 0.001
ADDRESS_OF = 0x8915  # Linux's SIOCGIFADDR

Wait = Callable[[float], None]
dist: Any = torch.distributed  # whose types lack most of a process group


class PairStore(Store):
    """What torch.distributed asks for when two ends meet, answered from a pair's box.

    Args:
        box: the pair's.
        name: of the peer, for errors.
        timeout_s: of a wait that names no other.
    """

    def __init__(self, box: Box, name: str, timeout_s: float) -> None:
        super().__init__()
        self._box = box
        self._name = name
        self._timeout = timedelta(seconds=timeout_s)

    def set(self, key: str, value: bytes | str) -> None:
        """Write a value."""
        self._box.put(key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        """A value, waited for."""
        return self._get(key, self._timeout.total_seconds())

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until keys have values."""
        end = time.monotonic() + (timeout or self._timeout).total_seconds()
        for key in keys:
            self._get(key, max(end - time.monotonic(), 0.0))

    def check(self, keys: list[str]) -> bool:
        """Whether keys have values."""
        return all(self._box.get(key, 0.0) is not None for key in keys)

    def set_timeout(self, timeout: timedelta) -> None:
        """Set the timeout of waits that name none."""
        self._timeout = timeout

    def _get(self, key: str, wait_s: float) -> bytes:
        return found(self._box.get(key, wait_s), key, self._name, wait_s)


class Backend(Protocol):
    """Moves uint8 tensors to and from the other end; made by a constructor that blocks until the peer is there."""

    under_way: int  # how many pieces may be posted before the first is waited for

    def send(self, part: torch.Tensor) -> Wait:
        """Begin to send; the result waits for the end, at most so many seconds, or raises RuntimeError."""

    def receive(self, part: torch.Tensor) -> Wait:
        """Begin to receive into `part`."""

    def abort(self) -> None:
        """Break the pair: everything under way ends with an error, at both ends."""


class Gloo:
    """Over TCP between two hosts' interfaces.

    Args:
        store: where the ends meet.
        rank: this end's.
        interface: what to listen on: an interface's name or an address of this host.
        timeout_s: of the meeting.

    Raises:
        UserError: there is no such interface or address here.
        RuntimeError: the other end did not come.
    """

    under_way = UNDER_WAY

    def __init__(self, store: PairStore, rank: int, interface: str, timeout_s: float) -> None:
        options = dist.ProcessGroupGloo._Options()  # noqa: SLF001 - the only way to say where gloo listens
        options._devices = [gloo_device(interface)]  # noqa: SLF001
        options._timeout = timedelta(seconds=timeout_s)  # noqa: SLF001
        options._threads = 1  # noqa: SLF001 - they serve collectives, which a pair never runs
        self._group = dist.ProcessGroupGloo(store, rank, 2, options)
        self._peer = 1 - rank

    def send(self, part: torch.Tensor) -> Wait:
        """Begin to send."""
        return _waiting(self._group.send([part], self._peer, MOVE_TAG))

    def receive(self, part: torch.Tensor) -> Wait:
        """Begin to receive; what the peer does not fill stays zero."""
        part.zero_()
        return _waiting(self._group.recv([part], self._peer, MOVE_TAG))

    def abort(self) -> None:
        """Break the pair: gloo has no call for it, but one receive that times out ends all the others too."""
        _waiting(self._group.recv([torch.zeros(1, dtype=torch.uint8)], self._peer, BREAK_TAG))(LOOK_S)


class Nccl:
    """Between two GPUs, by way of buffers on them.

    Args:
        store: where the ends meet.
        rank: this end's.
        device: this end's GPU, e.g. "cuda:1"; the other end's must be another one.
        timeout_s: of the meeting.

    Raises:
        RuntimeError: the other end did not come.
    """

    under_way = 1

    def __init__(self, store: PairStore, rank: int, device: str, timeout_s: float) -> None:
        self._device = torch.device(device)
        self._peer = 1 - rank
        self._ending = threading.Lock()
        self._ended = False
        with torch.cuda.device(self._device):
            self._group = dist.ProcessGroupNCCL(store, rank, 2, dist.ProcessGroupNCCL.Options())
            first = torch.zeros(1, dtype=torch.uint8)  # nccl connects when something moves
            try:
                (self.send if rank == SERVER_RANK else self.receive)(first)(timeout_s)
            except RuntimeError:
                # Else a kernel of it would wait on the GPU for as long as the error is kept, and a group that never
                # connected would warn, whenever it is collected, that nobody ended it.
                self.abort()
                raise

    def send(self, part: torch.Tensor) -> Wait:
        """Begin to send a copy on the GPU."""
        return self._watch(self._group.send([part.to(self._device)], self._peer, MOVE_TAG))

    def receive(self, part: torch.Tensor) -> Wait:
        """Begin to receive on the GPU; the wait copies to `part`."""
        staged = torch.zeros_like(part, device=self._device)
        arrived = self._watch(self._group.recv([staged], self._peer, MOVE_TAG))

        def wait(seconds: float) -> None:
            arrived(seconds)
            with self._ending:
                self._refuse_ended()  # what came is anything, and the memory may not be ours any more
                part.copy_(staged)

        return wait

    def abort(self) -> None:
        """Break the pair."""
        with self._ending:
            self._ended = True
        self._group.abort()

    def _refuse_ended(self) -> None:
        if self._ended:  # then work is complete, whether or not it was done
            raise RuntimeError("ended from this side")

    def _watch(self, work: Any) -> Wait:
        """A wait of the host's: nccl's own orders work on the GPU, and tells errors once the work is over."""

        def wait(seconds: float) -> None:
            end, pause = time.monotonic() + seconds, threading.Event()
            while not work.is_completed():
                if time.monotonic() >= end:
                    raise RuntimeError(f"not complete within {seconds:g} s")
                pause.wait(LOOK_S)
            work.wait(timedelta(seconds=1))
            self._refuse_ended()

        return wait


def make_ready(transport: TransportConfig, device: str) -> str:
    """What a process does before its first pair, in one thread: see that there is what it needs, and set up nccl.

    Returns:
        nccl: the name of the process's GPU; otherwise "".

    Raises:
        UserError: this host lacks the interface, or the GPU.
    """
    gloo_device(transport.interface)
    if transport.tensors != "nccl":
        return ""
    # Read by torch and nccl when a pair is made. Nothing but our own waits is to end a transfer: torch's watch would
    # end the process with it, and nccl by itself waits for its peer without end.
    os.environ |= {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "TORCH_NCCL_USE_COMM_NONBLOCKING": "1",
        "TORCH_NCCL_NONBLOCKING_TIMEOUT": str(math.ceil(min(transport.timeout_s, BUILD_S))),
        "NCCL_SOCKET_IFNAME": f"={interface_name(transport.interface)}",
    }
    return gpu_name(device)


def backend_maker(transport: TransportConfig, rank: int, device: str) -> Callable[[PairStore, float], Backend]:
    """What makes this end of a pair, by the configuration; `device` is nccl's GPU."""
    if transport.tensors == "nccl":
        return lambda store, seconds: Nccl(store, rank, device, seconds)
    return lambda store, seconds: Gloo(store, rank, transport.interface, seconds)


def interface_name(interface: str) -> str:
    """The name of this host's interface of that name or (first) IPv4 address, since nccl takes names alone.

    Raises:
        UserError: there is none.
    """
    names = [name for _, name in socket.if_nameindex()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for name in names:
            with contextlib.suppress(OSError):  # one without an IPv4 address
                answer = fcntl.ioctl(asked, ADDRESS_OF, name.encode().ljust(256, b"\0"))
                if interface in (name, socket.inet_ntoa(answer[20:24])):
                    return name
    raise UserError(
        f"[transport] interface: one of {', '.join(names)} with an IPv4 address, or its address, expected with "
        f"tensors = 'nccl', got {interface!r}"
    )


def gloo_device(interface: str) -> Any:
    """Where gloo listens: on one interface or address, on a port that the system picks.

    Raises:
        UserError: this host has no such interface or address.
    """
    names = [name for _, name in socket.if_nameindex()]
    how = {"interface": interface} if interface in names else {"hostname": interface.strip("[]")}
    try:
        return dist.ProcessGroupGloo.create_device(lazy_init=False, **how)
    except RuntimeError:
        raise UserError(
            f"[transport] interface: one of {', '.join(names)} or an address of this host expected, got {interface!r}"
        ) from None


def gpu_name(device: str) -> str:
    """Names a GPU, unlike any other of any host.

    Raises:
        UserError: there is no such GPU here.
    """
    try:
        return f"{os.uname().nodename}/{torch.cuda.get_device_properties(device).uuid}"
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"tensors = 'nccl': a GPU {device} expected, torch sees none here: {first_line(error)}"
        ) from None


def _waiting(work: Any) -> Wait:
    return lambda seconds: work.wait(timedelta(seconds=seconds))


def first_line(error: BaseException) -> str:
    """The first sentence of an error; gloo's begin with a place in its source and end with advice."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] if ".cc:" in line else line
