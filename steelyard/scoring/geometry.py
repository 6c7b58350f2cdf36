"""Inner products of updates, in double precision and in blocks: a large model needs no second copy. Torch-free.

Legend: n members, P trainable values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats

BLOCK = 2**16


def gram(vectors: Sequence[NDArray[np.float32]], size: int) -> Floats:
    """Inner products of the first `size` values of each vector with those of each other, [n, n]."""
    products = np.zeros((len(vectors), len(vectors)))
    for at in range(0, size, BLOCK):
        block = np.array([vector[at : min(at + BLOCK, size)] for vector in vectors], dtype=np.float64)
        products += block @ block.T
    return products


def cosines(gram_nn: Floats, weights_n: Floats) -> Floats:
    """Cosine of each vector with the weighted sum of all, [n]; 0 for a vector, or a sum, of length 0."""
    products_n = gram_nn @ weights_n
    return _ratio(products_n, np.sqrt(np.diag(gram_nn) * max(float(weights_n @ products_n), 0.0)))


def cosines_with_others(gram_nn: Floats, weights_n: Floats) -> Floats:
    """Cosine of each vector with the weighted sum of the others, [n]; 0 for a vector, or a sum, of length 0."""
    others_nn = np.where(np.eye(len(weights_n), dtype=bool), 0.0, weights_n)  # row k: the weights without k
    products_n = (others_nn * gram_nn).sum(axis=1)
    squares_n = np.einsum("ki,ij,kj->k", others_nn, gram_nn, others_nn)
    return _ratio(products_n, np.sqrt(np.diag(gram_nn) * np.maximum(squares_n, 0.0)))


def _ratio(products_n: Floats, lengths_n: Floats) -> Floats:
    ratio = np.divide(products_n, lengths_n, out=np.zeros(len(products_n)), where=lengths_n > 0)
    return np.clip(ratio, -1.0, 1.0)
