"""The environment of every process of a run: an allow-list, and every thread count said explicitly.

Nothing is inherited that could change a bit or make ten processes fight over two cores: the variables of OMP, MKL,
OpenBLAS and oneDNN are set here, before torch is imported, whatever the user's shell holds.
"""

from __future__ import annotations

import os

from steelyard.process import LAUNCHER

INHERITED = ("PATH", "CUDA_VISIBLE_DEVICES", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
THREADS = {
    "OMP_NUM_THREADS": "1",
    "OMP_DYNAMIC": "FALSE",
    "OMP_PROC_BIND": "FALSE",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MKL_NUM_THREADS": "1",
    "MKL_DYNAMIC": "FALSE",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024",
}
DETERMINISM = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it cuBLAS may sum in another order each time
OTHERS = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONHASHSEED": "0",
    "GRPC_VERBOSITY": "ERROR",
}


def process_environment() -> dict[str, str]:
    """The complete environment for one process of a run, started by this one."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**inherited, **THREADS, **DETERMINISM, **OTHERS, LAUNCHER: str(os.getpid())}
