"""Makes a CUDA device compute the same bits every time; tests marked `gpu` show it.

The environment's part, cuBLAS's workspace, is set by the launcher (`deploy/environment.py`); a process started by hand
sets it here, before cuBLAS is first used.
"""

from __future__ import annotations

import os

import torch

from steelyard.errors import UserError


def use_device(device: str, what: str) -> str:
    """Check that a device is there and, unless it is the CPU, set what makes it deterministic.

    Args:
        device: "cpu", "cuda" or "cuda:<i>".
        what: the setting that names it, for an error.

    Returns:
        The device.

    Raises:
        UserError: torch sees no such device here.
    """
    if device == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= count:
        raise UserError(f"{what} = {device!r}: a CUDA device expected, torch sees {count} here; set it to 'cpu'")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # float32 that is float32
    torch.backends.cuda.matmul.allow_tf32 = False
    return device
