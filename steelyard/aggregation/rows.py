"""The vectors that a rule looks at, without a second copy of them: inner products, column blocks, weighted sums.

Mixed rows are sums of others and exist only block by block, so even a large model's updates are held once. All sums are
in double precision.

Legend: n rows, P trainable values of a state, m mixed rows, b columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats
from steelyard.scoring.geometry import BLOCK, gram

Vector = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


class Rows:
    """Vectors of which the first `size` values count.

    Args:
        vectors: float32 [at least P] each; read, never written.
        size: P.
        matrix_mn: what mixes the vectors into rows; None: each vector is a row.
        gram_nn: the rows' inner products where they are known already.
    """

    def __init__(
        self,
        vectors: Sequence[Vector],
        size: int,
        matrix_mn: Floats | None = None,
        gram_nn: Floats | None = None,
    ) -> None:
        self._vectors, self.size, self._matrix = tuple(vectors), size, matrix_mn
        if gram_nn is not None:
            self.gram_nn = read_only(gram_nn)

    def __len__(self) -> int:
        return len(self._vectors) if self._matrix is None else len(self._matrix)

    @cached_property
    def gram_nn(self) -> Floats:
        """Inner products of the rows, [n, n]; shared by all who ask, so copy it before you write to it."""
        products = gram(self._vectors, self.size)
        return read_only(products if self._matrix is None else self._matrix @ products @ self._matrix.T)

    @property
    def norms_n(self) -> Floats:
        """L2 norms, [n]."""
        return np.asarray(np.sqrt(np.maximum(np.diag(self.gram_nn), 0.0)))

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Column after column: their place in the vectors, and the rows' values there, [n, b]."""
        for at in range(0, self.size, BLOCK):
            place = slice(at, min(at + BLOCK, self.size))
            yield place, self._mixed(np.array([vector[place] for vector in self._vectors], dtype=np.float64))

    def columns(self, chosen_b: NDArray[np.int64]) -> Floats:
        """The rows' values at some columns, [n, b]."""
        return self._mixed(np.array([vector[: self.size][chosen_b] for vector in self._vectors], dtype=np.float64))

    def dot(self, vector_P: Vector) -> Floats:
        """Each row's inner product with another vector, [n]."""
        products_n = np.zeros(len(self))
        for place, block_nb in self.blocks():
            products_n += np.sum(block_nb * vector_P[place].astype(np.float64), axis=1)
        return products_n

    def combined(self, weights_n: Floats) -> Vector:
        """The weighted sum of the rows, float32 [P], rounded once."""
        sum_P = np.empty(self.size, np.float32)
        for place, block_nb in self.blocks():
            sum_P[place] = np.sum(block_nb * weights_n[:, None], axis=0)
        return sum_P

    def take(self, places: Sequence[int]) -> Rows:
        """Some of the vectors; only of rows that are not mixed."""
        assert self._matrix is None, "a coalition is taken first and mixed then"
        chosen = list(places)
        return Rows([self._vectors[k] for k in chosen], self.size, None, self.gram_nn[np.ix_(chosen, chosen)])

    def mixed(self, matrix_mn: Floats) -> Rows:
        """Rows that are sums of these."""
        matrix = matrix_mn if self._matrix is None else matrix_mn @ self._matrix
        return Rows(self._vectors, self.size, matrix, matrix_mn @ self.gram_nn @ matrix_mn.T)

    def _mixed(self, block_nb: Floats) -> Floats:
        return block_nb if self._matrix is None else self._matrix @ block_nb


def read_only(array: NDArray[T]) -> NDArray[T]:
    """A view that can't be written to: a plug-in that tries is told, where others would go on with what it left."""
    view = array.view()
    view.flags.writeable = False
    return view


def squared_distances(gram_nn: Floats) -> Floats:
    """Squared Euclidean distances of the rows to each other, [n, n]; squared once."""
    squares_n = np.diag(gram_nn)
    return np.maximum(squares_n[:, None] + squares_n - 2 * gram_nn, 0.0)


def distances_to_sum(gram_nn: Floats, weights_n: Floats) -> Floats:
    """Each row's distance to a weighted sum of the rows, [n]."""
    products_n = gram_nn @ weights_n
    squares_n = np.diag(gram_nn) - 2 * products_n + weights_n @ products_n
    return np.asarray(np.sqrt(np.maximum(squares_n, 0.0)))


def cosines(gram_nn: Floats) -> Floats:
    """Cosines of the rows with each other, [n, n]; 0 with a row of length 0."""
    lengths_n = np.sqrt(np.maximum(np.diag(gram_nn), 0.0))
    lengths_nn = lengths_n[:, None] * lengths_n
    ratio_nn = np.divide(gram_nn, lengths_nn, out=np.zeros_like(gram_nn), where=lengths_nn > 0)
    return np.asarray(np.clip(ratio_nn, -1.0, 1.0))
