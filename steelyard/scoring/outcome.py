"""What one coalition's model did on the validation data. Knows no model and no coalition. Torch-free.

Legend: E validation examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_LOSS = 1e6


@dataclass(frozen=True, slots=True)
class Outcome:
    """One coalition model on the validation data: per example whether it is right, [E], and its cross-entropy, [E].

    `accuracy` and `loss` are their means, taken once in float64. An example whose cross-entropy is not finite (a
    diverged model) counts as wrong and as a cross-entropy of MAX_LOSS, which also bounds the finite ones.
    """

    example_correct: NDArray[np.uint8]
    example_loss: NDArray[np.float32]
    accuracy: float
    loss: float

    @classmethod
    def of(cls, correct_E: NDArray[np.uint8], loss_E: NDArray[np.float32]) -> Outcome:
        """The outcome of examples whose losses are finite and bounded already."""
        return cls(
            example_correct=correct_E,
            example_loss=loss_E,
            accuracy=int(correct_E.sum(dtype=np.int64)) / len(correct_E),
            loss=float(loss_E.astype(np.float64).sum()) / len(loss_E),
        )
