"""Orders each column of a few long rows, by whole rows: numpy's sort looks at one column after the other. Torch-free.

A network of comparators (Batcher 1968; Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M) takes the lower
and the higher of two rows, whatever they hold, so that every step is one pass of a vector unit.

Legend: n rows, b columns.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats

WIDTH = 2**13  # columns at a time, so that rows stay in a core's cache


def ordered(block_nb: NDArray[Any], first: int, end: int) -> NDArray[Any]:
    """Ranks `first` to `end` (without it) of each column, lowest first: `np.sort(block_nb, axis=0)[first:end]`.

    Args:
        block_nb: floats [n, b] without NaN. Zeros come out with either's sign where a column has both.
        first: a rank from 0.
        end: at most n.

    Returns:
        Of the block's dtype, [end - first, b].
    """
    n, b = block_nb.shape
    ranks_rb = np.empty((end - first, b), block_nb.dtype)
    for at in range(0, b, WIDTH):
        rows = list(block_nb[:, at : at + WIDTH].copy())
        spare = np.empty_like(rows[0])
        for low, high in _comparators(n, first, end):
            np.minimum(rows[low], rows[high], out=spare)
            np.maximum(rows[low], rows[high], out=rows[high])
            rows[low], spare = spare, rows[low]
        for place, row in enumerate(rows[first:end]):
            ranks_rb[place, at : at + WIDTH] = row
    return ranks_rb


def median(block_nb: NDArray[Any]) -> Floats:
    """The median of each column, [b]; of an even number of rows the mean of the middle two. NaN is not expected."""
    n = len(block_nb)
    middle_rb = ordered(block_nb, (n - 1) // 2, n // 2 + 1)
    return np.asarray(np.mean(middle_rb, axis=0, dtype=np.float64))


@lru_cache(maxsize=256)
def _comparators(n: int, first: int, end: int) -> tuple[tuple[int, int], ...]:
    """Pairs of rows whose lower and higher value change places in turn; none that no wanted rank hangs on."""
    pairs: list[tuple[int, int]] = []
    top = 1 << max(n - 1, 1).bit_length() - 1
    width = top
    while n > 1 and width:
        step, rest, apart = top, 0, width
        while True:
            pairs += [(low, low + apart) for low in range(n - apart) if low & width == rest]
            if step == width:
                break
            apart, step, rest = step - width, step // 2, width
        width //= 2
    wanted, kept = set(range(first, end)), []
    for pair in reversed(pairs):
        if wanted.intersection(pair):
            wanted.update(pair)
            kept.append(pair)
    return tuple(reversed(kept))
