"""How an update looks from outside: its length, and its direction against the middle of the round's updates.

Pure geometry, in double precision and in client order, so that the same updates give the same bits everywhere. Columns
are worked in blocks: a large model needs no second copy of its updates. Takes numpy arrays and CPU tensors alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelyard.aggregation.base import Verdict
from steelyard.scoring.ordering import median

Floats = NDArray[np.float64]

BLOCK = 2**16


def norms_and_cosines(updates_ND: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Geometry of one round's updates.

    Args:
        updates_ND: one row [D] per client, trainable parameters only; N >= 1.

    Returns:
        L2 norms [N], and cosine distances [N] (0 same direction, 1 orthogonal, 2 opposite) to the coordinate-wise
        median of the updates. An update or a median of length 0 has no direction: its distance is 1.
    """
    n, d = len(updates_ND), len(updates_ND[0])
    squares, products, median_square = np.zeros(n), np.zeros(n), 0.0
    for at in range(0, d, BLOCK):
        block = np.array([np.asarray(row[at : at + BLOCK]) for row in updates_ND])
        middle = median(block)
        for k, row in enumerate(block.astype(np.float64, copy=False)):
            squares[k] += np.sum(row * row)
            products[k] += np.sum(row * middle)
        median_square += float(np.sum(middle * middle))
    norms = np.sqrt(squares)
    lengths = norms * np.sqrt(median_square)
    cosines = np.divide(products, lengths, out=np.zeros(n), where=lengths > 0)
    return norms, 1.0 - np.clip(cosines, -1.0, 1.0)


def told(
    clients: Sequence[int], samples: Sequence[int], verdict: Verdict | None, figures: tuple[Floats, Floats]
) -> tuple[str, str]:
    """A round's weights and suspicions as metrics.csv has them.

    Args:
        clients: whose updates counted, in client order.
        samples: n_k of each of them.
        verdict: the defence's, if there is one.
        figures: norms and cosine distances of the updates.

    Returns:
        "client:weight" and "client:norm:cosine" per client; a defence adds each client's due weight to the one and the
        rule's own suspicion to the other.
    """
    if verdict is None:
        total = sum(samples)
        weights, suspicions = [np.array([n / total for n in samples])], list(figures)
    else:
        weights, suspicions = [verdict.weights_n, verdict.due_n], [*figures, verdict.suspicion_n]
    return _cells(clients, weights), _cells(clients, suspicions)


def _cells(clients: Sequence[int], columns: Sequence[Floats]) -> str:
    rows = zip(clients, *columns, strict=False)  # a round without updates has a figure of nobody
    return " ".join(":".join([str(client), *(repr(float(figure)) for figure in row)]) for client, *row in rows)
