"""Paired coalitions whose utilities are compared with a surrogate's: unbiased, and no worse than a fit. Torch-free.

The pairs are those of `regression` (y = (V(S) - V(N without S)) / 2, sizes filled from the outside in, the pairs of a
size drawn without replacement). Written by pairs, the Shapley value is

    value of k = (V(N) - V(empty)) / n + sum over pairs of c_k(S) y(S),   c_k(S) = 2 / (s C(n, s)) for members of S,
                                                                                 - 2 / ((n - s) C(n, s)) for the others

Sizes of which all pairs were drawn are summed up. For the others a surrogate g(S) = b . x + level of s, x = S - 1/2, is
summed up in closed form, (b_k - mean of b) / (n - 1) for s and as much for n - s, and the sample says what it misses:
the control variate is additive, as most of y is. Fitted to the pairs that judge it, it would bias the value, so it is
fitted crosswise: in each of FOLDS folds to the pairs A of the other folds, and judged by its own, B. Given A, which B
knows nothing of, B is a simple sample of all M pairs of the size but A's a, so that

    sum over all pairs of c_k g  +  sum over A of c_k (y - g)  +  (M - a) / b  x  sum over B of c_k (y - g)

is right in the mean whatever g is; the value is the mean over folds. Values stay linear in utilities.

Monte Carlo corrected by regressions is of Witter, Liu & Musco 2025 (arXiv 2506.11849), there with replacement; folds
within samples without replacement and the additive surrogate are our choice. It is unbiased at any budget of calls from
which on single players are whole and every other size has a pair; below, it is `regression`.

The error is the design's: the squares of what the surrogate missed out of its fold, times the unseen part of the size.

Legend: n players, P pairs, K sizes (of the smaller half), R coefficients, C = 2 P + 2 coalitions.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from steelyard.scoring.coalitions import Floats, Masks
from steelyard.scoring.evaluators.budget import Estimate
from steelyard.scoring.evaluators.regression import ENOUGH, PairedRegression, sum_zero_basis

Ints = NDArray[np.int64]
FOLDS = 10


class Controlled(PairedRegression):
    """A plan of complementary pairs for the Shapley value, with a surrogate that does not bias it."""

    def estimate(self, values_C: Floats) -> Estimate:
        """The value and the design's standard error."""
        n, taken_K, pairs_K = self._drawn.players, np.array(self._strata.taken), np.array(self._strata.pairs, float)
        if taken_K[0] < pairs_K[0] or not taken_K.all():
            return super().estimate(values_C)
        stratum_P = np.array(self._stratum, dtype=np.int64)
        x_Pn = self.masks(2)[0::2].astype(np.float64) - 0.5
        y_P = (values_C[2::2] - values_C[3::2]) / 2
        weight_nP, whole_P = _weights(x_Pn, stratum_P + 1), (taken_K == pairs_K)[stratum_P]
        slopes_nP, parts_nP = np.where(whole_P, weight_nP, 0.0), np.zeros(weight_nP.shape)
        fold_P = _folds(stratum_P)
        unseen_P = ((1 - taken_K / pairs_K) * pairs_K**2 / taken_K / np.maximum(taken_K - 1, 1))[stratum_P]
        basis_nq = sum_zero_basis(n)
        share_K = np.where(2 * np.arange(1, len(taken_K) + 1) == n, 1.0, 2.0) / (n - 1)
        for fold in range(FOLDS):
            judges_P = (fold_P == fold) & ~whole_P
            if not judges_P.any():
                continue
            says_Pr, fit_rP = self._surrogate(x_Pn, stratum_P, whole_P, fold_P != fold)
            slope_nP = basis_nq @ fit_rP[: n - 1]
            judges_K = np.bincount(stratum_P[judges_P], minlength=len(taken_K))
            part_K = np.where(judges_K > 0, 1 / np.minimum(FOLDS, taken_K), 0.0)  # of the folds with a pair of the size
            stands_for_K = (pairs_K - (taken_K - judges_K)) / np.maximum(judges_K, 1)
            counts_P = part_K[stratum_P] * np.where(judges_P, stands_for_K[stratum_P], 1.0) * ~whole_P
            counted_nP = weight_nP * counts_P
            slopes_nP += counted_nP - (counted_nP @ says_Pr) @ fit_rP + (part_K * share_K).sum() * slope_nP
            missed_P = y_P - says_Pr @ (fit_rP @ y_P)
            parts_nP[:, judges_P] = (weight_nP * missed_P * np.sqrt(unseen_P))[:, judges_P]
        coefficients = np.empty((n, len(values_C)))
        coefficients[:, 2::2], coefficients[:, 3::2] = slopes_nP / 2, -slopes_nP / 2
        coefficients[:, 1], coefficients[:, 0] = 1 / n, -1 / n
        error_n = np.sqrt((parts_nP**2).sum(axis=1))
        return Estimate(coefficients_nC=coefficients, std_error=error_n, parts_nm=parts_nP[:, ~whole_P])

    def _surrogate(self, x_Pn: Floats, stratum_P: Ints, whole_P: Masks, fits_P: Masks) -> tuple[Floats, Floats]:
        """The surrogate as two factors: what its R coefficients say of each pair, [P, R], and their fit to y, [R, P].

        The first n - 1 coefficients are slopes, in the basis of `sum_zero_basis`. Whole sizes have slopes of their own,
        so they only take part where the others' pairs are few.
        """
        n = x_Pn.shape[1]
        enough = int((~whole_P).sum()) >= ENOUGH * (n - 1)
        weight_P, _ = self._weights()
        root_P = np.sqrt(weight_P) * ((fits_P & ~whole_P) if enough else (fits_P | whole_P))
        basis_nq, levels_PL = sum_zero_basis(n), self._levels(stratum_P)
        regressors = np.hstack([x_Pn @ basis_nq, levels_PL])
        design_Pr = regressors * root_P[:, None]
        fit_rP = np.linalg.pinv(design_Pr) * root_P
        return regressors, fit_rP


def _weights(x_Pn: Floats, size_P: Ints) -> Floats:
    """c_k(S) of each pair, [n, P]."""
    n = x_Pn.shape[1]
    count_P = np.array([float(comb(n, size)) for size in size_P.tolist()])
    weight_nP: Floats = np.where(x_Pn.T > 0, 2 / (size_P * count_P), -2 / ((n - size_P) * count_P))
    return weight_nP


def _folds(stratum_P: Ints) -> Ints:
    """Each pair's fold: those of a size in turn, in the order drawn."""
    fold_P = np.empty(len(stratum_P), dtype=np.int64)
    for stratum in np.unique(stratum_P):
        at = np.flatnonzero(stratum_P == stratum)
        fold_P[at] = np.arange(len(at)) % FOLDS
    return fold_P
