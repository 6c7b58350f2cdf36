"""Some of the validation examples in place of all: which ones, what each stands for, and what that errs by. Torch-free.

A stratified sample without replacement, drawn once per run: labels are strata, parts in proportion to their sizes, but
two examples of each label at least, as one tells nothing of its label's spread. An example counts for as many of its
label's as were drawn (Horvitz & Thompson 1952), so a utility on the sample is an unbiased estimate of the one on all
examples, and every value that is linear in utilities with it. Its error is that of a stratified sample from a finite
population (Cochran, Sampling Techniques, 1977, section 5.4):

    squared error = sum over labels h of  (M_h / M)^2  (1 - m_h / M_h)  s_h^2 / m_h

with m_h of M_h examples drawn and s_h^2 the variance of the value's parts by example: 0 where all were drawn.

Legend: M validation examples, E of them drawn, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelyard.errors import UserError
from steelyard.scoring.coalitions import Floats
from steelyard.seeding import numpy_generator

Ints = NDArray[np.int64]
LEAST = 2  # of each label, where it has as many


@dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """The examples drawn.

    Attributes:
        places_E: where they are among all examples, in their order.
        weights_E: what each counts for; their mean is 1.
        strata_E: each one's label, as a number from 0.
        taken_K, sizes_K: drawn and all examples of each label.
    """

    places_E: Ints
    weights_E: Floats
    strata_E: Ints
    taken_K: Ints
    sizes_K: Ints

    def std_error(self, examples_nE: Floats) -> Floats:
        """What values err by from those on all examples, [n], given the weighted parts by example that they average."""
        squared_n = np.zeros(len(examples_nE))
        for h, (taken, size) in enumerate(zip(self.taken_K.tolist(), self.sizes_K.tolist(), strict=True)):
            if taken < size:
                variance_n = examples_nE[:, self.strata_E == h].var(axis=1, ddof=1)
                squared_n += (1 - taken / size) * taken * variance_n
        error_n: Floats = np.sqrt(squared_n) / len(self.places_E)
        return error_n


def draw_subset(labels_M: Ints, examples: int, seed: int) -> Subset | None:
    """The run's subset; None where all examples count.

    Args:
        labels_M: of all validation examples.
        examples: E; 0: all.
        seed: the experiment's.

    Raises:
        UserError: there are fewer examples, or more are needed for two of each label.
    """
    if examples in (0, len(labels_M)):
        return None
    _, strata_M, sizes_K = np.unique(labels_M, return_inverse=True, return_counts=True)
    least_K = np.minimum(LEAST, sizes_K)
    least = int(least_K.sum())
    if not least <= examples <= len(labels_M):
        raise UserError(
            f"[scoring] examples: 0 (all) or {least} to {len(labels_M)} expected (two of each label at least, and no "
            f"more than the validation set has), got {examples}"
        )
    taken_K = _allotted(sizes_K, least_K, examples)
    generator = numpy_generator(seed, "validation", "subset")
    drawn = [generator.permutation(np.flatnonzero(strata_M == h))[:taken] for h, taken in enumerate(taken_K.tolist())]
    places_E = np.sort(np.concatenate(drawn)).astype(np.int64)
    strata_E = strata_M[places_E]
    weight_K = (sizes_K / taken_K) * (examples / len(labels_M))
    return Subset(places_E=places_E, weights_E=weight_K[strata_E], strata_E=strata_E, taken_K=taken_K, sizes_K=sizes_K)


def _allotted(sizes_K: Ints, least_K: Ints, examples: int) -> Ints:
    """How many of each label: the least, and the others one by one to the label furthest behind its share."""
    taken_K = least_K.copy()
    for _ in range(examples - int(taken_K.sum())):
        quotient_K = np.where(taken_K < sizes_K, sizes_K / (2 * taken_K + 1), -1.0)
        taken_K[int(np.argmax(quotient_K))] += 1
    return taken_K
