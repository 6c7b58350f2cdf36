"""`python -m steelyard.transport.check TENSORS INTERFACE DEVICE...`: can torch.distributed and devices be had here?

The doctor asks in a process of its own, since it loads no torch. The answer is one line on stdout, or as always one on
stderr about the user's mistake.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed

from steelyard.devices import use_device
from steelyard.errors import UserError
from steelyard.process import exit_with_launcher, run_main
from steelyard.transport.collective_backends import gloo_device, interface_name

PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def check(tensors: str, interface: str, devices: list[str]) -> str:
    """What there is, in one line; empty when nothing was asked for.

    Raises:
        UserError: the backend, the interface or a device is missing.
    """
    found = []
    available = {"gloo": torch.distributed.is_gloo_available, "nccl": torch.distributed.is_nccl_available}
    if tensors in available and not available[tensors]():
        raise UserError(f"[transport] tensors = {tensors!r}: a torch with it expected, {torch.__version__} has none")
    if tensors in available:
        if tensors == "nccl":
            interface_name(interface)
        gloo_device(interface)
        found.append(f"{tensors} is there, {interface} is an interface or address of this host")
    if tensors == "gloo" and PORTS.exists():
        first, last = PORTS.read_text(encoding="ascii").split()
        found.append(f"each process listens there on ports between {first} and {last} that the system picks")
    for device in devices:
        use_device(device, "device")
    if gpus := [device for device in devices if device != "cpu"]:
        found.append(f"{', '.join(gpus)} of {torch.cuda.device_count()} GPUs")
    return "; ".join(found)


def main() -> int:
    """Parse the command line and answer."""
    exit_with_launcher()
    print(check(sys.argv[1], sys.argv[2], sys.argv[3:]))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
