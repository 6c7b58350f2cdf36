"""What an attack carries from round to round, one bundle file a round in the client's state folder.

Two rules: a round reads only what earlier rounds left, never its own, so that a round done twice sees the same; and
the round before the current one is never pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from steelyard import bundle


class Memory:
    """Named tensors kept by round in `folder`; they come back on `device`."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device

    def before(self, round_: int) -> dict[str, torch.Tensor]:
        """What the latest round before this one left; empty if there was none.

        Raises:
            BadBundleError: the file was damaged on disk.
        """
        earlier = [kept for kept in self._rounds() if kept < round_]
        if not earlier:
            return {}
        arrays = bundle.read_arrays(self._path(earlier[-1]))
        return {name: torch.from_numpy(array.copy()).to(self.device) for name, array in arrays.items()}

    def keep(self, round_: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Leave tensors for later rounds, atomically; what is older than the round before is pruned.

        Raises:
            UserError: one is of a kind that a file can't hold.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        bundle.check_arrays(arrays, f"what the attack keeps of round {round_}")
        bundle.write_arrays(self._path(round_), arrays)
        for old in [kept for kept in self._rounds() if kept < round_][:-1]:
            self._path(old).unlink()

    def _path(self, round_: int) -> Path:
        return self.folder / f"attack-{round_:06d}.safetensors"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("attack-")) for path in self.folder.glob("attack-*.safetensors"))
