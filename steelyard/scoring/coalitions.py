"""Coalitions as bool masks, and the game that evaluators play on them. Knows no model, no data and no torch.

Legend: n players (the round's participants, in client order), C coalitions, E validation examples.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Game(Protocol):
    """A cooperative game: coalitions to utilities, larger is better. V(empty) need not be 0."""

    @property
    def players(self) -> int:
        """Number of players n."""

    @property
    def calls(self) -> int:
        """Distinct coalitions asked for through this object, as if nothing had been cached before."""

    def values(self, masks_Cn: Masks) -> Floats:
        """Utility of each coalition, [C]."""

    def examples(self, masks_Cn: Masks) -> Floats:
        """Utility of each coalition on each validation example, [C, E], whose mean over E is its value.

        E is 0 where no validation sample stands behind the values.
        """


def all_masks(players: int) -> Masks:
    """Every coalition, [2^n, n]; row i holds player k when bit k of i is set."""
    return (np.arange(2**players)[:, None] >> np.arange(players) & 1).astype(bool)


class CallCounter:
    """Counts distinct coalitions."""

    def __init__(self, players: int) -> None:
        self.players = players
        self._asked: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._asked)

    def keys(self, masks_Cn: Masks) -> list[bytes]:
        """Count these coalitions and return each one's key: a byte per player, 1 for a member.

        Raises:
            ValueError: the masks are not bool [C, n].
        """
        if masks_Cn.dtype != np.bool_ or masks_Cn.ndim != 2 or masks_Cn.shape[1] != self.players:
            raise ValueError(f"bool masks [C, {self.players}] expected, got {masks_Cn.dtype} {masks_Cn.shape}")
        keys = [mask.tobytes() for mask in masks_Cn]
        self._asked.update(keys)
        return keys
