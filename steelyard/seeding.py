"""Randomness by name: every random choice has its own seed, derived from the experiment's by what it is for.

There is no global random generator in this project. A seed names (experiment seed, purpose, client, round, ...), so
a value depends on what it is for and never on what was drawn before it. Torch-free at import.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """The 63-bit seed of one purpose: the first 63 bits of SHA-256 over `seed/purpose/...`.

    A part's own slashes are escaped, so that no two paths of parts read the same.
    """
    path = "/".join(str(part).replace("%", "%25").replace("/", "%2F") for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """An independent numpy generator for one purpose."""
    import numpy as np

    return np.random.default_rng(derive_seed(seed, *purpose))


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """An independent CPU torch generator for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
