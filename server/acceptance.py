"""What the values of an update must be, beyond names, shapes and digest. Knows vectors, no wire and no round.

Legend: D is the number of float values of a model's state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from steelyard.bundle import TensorSpec
from steelyard.errors import BadBundleError
from steelyard.models.layout import variances

FAULTS = ("NOT_FINITE", "NEGATIVE_VARIANCE")  # of an update as a whole, so the same one is no better the next time
Vector = np.ndarray[Any, np.dtype[np.float32]]


def fault_of(client: int, specs: tuple[TensorSpec, ...], global_D: Vector, update_D: Vector) -> BadBundleError | None:
    """Why an update is refused: NOT_FINITE or NEGATIVE_VARIANCE; None when it may count.

    A running variance plus its update must not fall below 0: of one client alone that would make a coalition's model
    divide by the root of a negative number. Training never does it, since a difference of two floats that are not
    negative rounds to no less than minus the one that is taken away. An update that does not lower a variance is
    taken whatever the model holds, so nobody answers for a last bit that the sum of a round before has lost.

    Args:
        client: whose update it is, for the message.
        specs: names and shapes of both vectors.
        global_D: the round's global state [D].
        update_D: the update [D].

    Returns:
        An error to raise, not raised here: its traceback would keep the vectors' files mapped.
    """
    if not np.isfinite(update_D).all():
        return BadBundleError("NOT_FINITE", f"client {client}: finite values expected, got NaN or infinity")
    for name, place in variances(specs):
        before, change = global_D[place], update_D[place]
        wrong = np.flatnonzero((change < 0) & (before + change < 0))
        if len(wrong):
            at = wrong[0]
            return BadBundleError(
                "NEGATIVE_VARIANCE",
                f"client {client}: {name}[{at}] of at least 0 expected with the update added, got {before[at]:g} + "
                f"({change[at]:g}); {len(wrong)} of {len(change)} values are below 0",
            )
    return None
