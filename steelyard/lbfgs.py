"""The direct L-BFGS matrix: what a quasi-Newton method thinks the Hessian is, times a vector.

Compact representation: Byrd, Nocedal and Schnabel 1994, "Representations of quasi-Newton matrices". Float64, since the
inner products of near-parallel steps cancel. Legend: M pairs, P parameters.
"""

from __future__ import annotations

import torch


def hessian_times(moves_MP: torch.Tensor, changes_MP: torch.Tensor, vector_P: torch.Tensor) -> torch.Tensor:
    """B v for the BFGS matrix B of pairs (move, change of gradient), oldest first, from a multiple of the identity.

    Pairs of curvature move . change <= 0 are skipped, as is usual, so B is positive definite; without pairs it is 0.
    """
    moves_MP, changes_MP, vector_P = moves_MP.double(), changes_MP.double(), vector_P.double()
    convex = (moves_MP * changes_MP).sum(1) > 0
    moves_MP, changes_MP = moves_MP[convex], changes_MP[convex]
    if not len(moves_MP):
        return torch.zeros_like(vector_P)
    cross_MM = moves_MP @ changes_MP.T
    first = cross_MM[-1, -1] / moves_MP[-1].square().sum()
    lower_MM = cross_MM.tril(-1)
    middle = torch.cat(
        [
            torch.cat([first * moves_MP @ moves_MP.T, lower_MM], 1),
            torch.cat([lower_MM.T, -torch.diag(cross_MM.diagonal())], 1),
        ]
    )
    both = torch.cat([first * moves_MP, changes_MP])
    weights: torch.Tensor = torch.linalg.pinv(middle) @ (both @ vector_P)
    return first * vector_P - both.T @ weights
