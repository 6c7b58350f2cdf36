"""FLDetector: a client whose updates do not follow from its last one, as the Hessian has it, is found inconsistent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steelyard.aggregation.base import Group, State, Stateless, Verdict
from steelyard.aggregation.krum import among
from steelyard.aggregation.rows import Vector
from steelyard.parsing import Positive
from steelyard.scoring.coalitions import Floats


@dataclass(frozen=True, kw_only=True)
class FLDetectorParams:
    """`window` rounds are remembered; the gap statistic takes `references` uniform samples."""

    window: Positive = 10
    references: Positive = 20


class FLDetector(Stateless):
    """Zhang et al. 2022, arXiv 2207.09209: D_k is predicted as its last one plus H (w - w'), H by L-BFGS.

    A round's distances to the predictions are divided by their sum and averaged over the window: that is the suspicion,
    times n, so that 1 is usual. If the gap statistic finds more than one cluster among them, two clusters are made, and
    the one with the larger mean is left out; the round is joined by the equal mean of the others. As published,
    training stops at a detection; here it goes on, and nobody is left out before half a window has passed (our
    choices). A client without an update in the last round has no prediction, and the first two rounds have none at all.

    Carries `updates` and `seen` (each client's last update and whether it was in the last round), `scores` [N, window],
    `model` and `step` (of the last round), `moves` and `changes` [window, P] and `rounds`: large.
    """

    tracks: ClassVar[bool] = True

    def __init__(self, params: FLDetectorParams) -> None:
        self.params = params

    def start(self, clients: int, size: int) -> State:
        """Nothing is known."""
        return {
            "updates": np.zeros((clients, size), np.float32),
            "seen": np.zeros(clients, np.int64),
            "scores": np.zeros((clients, self.params.window)),
            "counts": np.zeros(clients, np.int64),
            "model": np.zeros(size, np.float32),
            "step": np.zeros(size, np.float32),
            "moves": np.zeros((self.params.window, size), np.float32),
            "changes": np.zeros((self.params.window, size), np.float32),
            "rounds": np.zeros(1, np.int64),
        }

    def decide(self, state: State, group: Group) -> Verdict:
        """Score, and leave out the inconsistent."""
        n = len(group)
        scores_n = self._averaged(state, group)
        bad_n = np.zeros(n, dtype=bool)
        if n > 2 and np.any(scores_n > 0) and int(state["rounds"][0]) > self.params.window // 2:
            bad_n = outlying(scores_n, self.params.references, group.setting.generator("fldetector"))
        return Verdict(weights_n=among(n, np.flatnonzero(~bad_n)), suspicion_n=scores_n * n, due_n=group.equal_n)

    def after(self, state: State, group: Group, step_P: Vector) -> State:
        """Remember updates, scores, and how model and step moved."""
        after = {key: array.copy() for key, array in state.items()}
        distances_n, members = self._distances(state, group), list(group.members)
        if np.any(distances_n > 0):
            after["scores"][members] = np.roll(after["scores"][members], -1, axis=1)
            after["scores"][members, -1] = distances_n / np.sum(distances_n)
            after["counts"][members] = np.minimum(after["counts"][members] + 1, self.params.window)
        after["seen"][:] = 0
        after["seen"][members] = 1
        for columns, block_nb in group.rows.blocks():
            after["updates"][members, columns] = block_nb
        if after["rounds"][0]:
            for key, now_P, last in (("moves", group.setting.global_P, "model"), ("changes", step_P, "step")):
                after[key] = np.roll(after[key], -1, axis=0)
                after[key][-1] = now_P - state[last]
        after["model"], after["step"] = group.setting.global_P.copy(), step_P.copy()
        after["rounds"] += 1
        return after

    def _averaged(self, state: State, group: Group) -> Floats:
        """Each member's mean score over the window, this round's included, [n]."""
        distances_n, members = self._distances(state, group), list(group.members)
        if not np.any(distances_n > 0):
            return np.full(len(group), 1 / len(group))
        past_nW = state["scores"][members][:, 1:]
        counts_n = np.minimum(state["counts"][members], self.params.window - 1)
        return np.asarray((np.sum(past_nW, axis=1) + distances_n / np.sum(distances_n)) / (counts_n + 1))

    def _distances(self, state: State, group: Group) -> Floats:
        """How far each member is from its prediction, [n]; the median of the others for one without a prediction."""
        known_n = state["seen"][list(group.members)] > 0
        if int(state["rounds"][0]) < 2 or not np.any(known_n):
            return np.zeros(len(group))
        drift_P = group.setting.once("fldetector", lambda: _drift(state, group))
        squares_n = np.zeros(len(group))
        for columns, block_nb in group.rows.blocks():
            predicted_nb = state["updates"][list(group.members), columns] + drift_P[columns]
            squares_n += np.sum((block_nb - predicted_nb) ** 2, axis=1)
        distances_n = np.sqrt(squares_n)
        return np.asarray(np.where(known_n, distances_n, np.median(distances_n[known_n])))


def _drift(state: State, group: Group) -> Floats:
    """H (w - w'), [P]: an update is against the gradient, and the changes are of updates, so both signs cancel."""
    import torch

    from steelyard.lbfgs import hessian_times

    filled = min(int(state["rounds"][0]) - 1, len(state["moves"]))
    moves, changes = state["moves"][-filled:], -state["changes"][-filled:]
    moved_P = group.setting.global_P - state["model"]
    parts = (torch.from_numpy(np.ascontiguousarray(part)) for part in (moves, changes, moved_P))
    return np.asarray(-hessian_times(*parts).numpy())


def outlying(
    scores_n: Floats, references: int, generator: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The upper of two clusters if the gap statistic (Tibshirani et al. 2001) finds more than one, else nobody, [n]."""
    low, high = float(np.min(scores_n)), float(np.max(scores_n))
    nobody_n = np.zeros(len(scores_n), dtype=bool)
    if high - low < 1e-12:
        return nobody_n
    scaled_n = (scores_n - low) / (high - low)
    one, two = (np.log(within) for within in _within(scaled_n)[:2])
    drawn = np.array([np.log(_within(generator.uniform(size=len(scores_n)))[:2]) for _ in range(references)])
    gap_one, gap_two = np.mean(drawn[:, 0]) - one, np.mean(drawn[:, 1]) - two
    if gap_one >= gap_two - np.std(drawn[:, 1]) * np.sqrt(1 + 1 / references):
        return nobody_n
    return np.asarray(scaled_n > _within(scaled_n)[2])


def _within(values_n: Floats) -> tuple[float, float, float]:
    """Sums of squares within one and within the best two clusters, and the upper end of the lower of the two."""
    ordered = np.sort(values_n)
    best, border = np.inf, float(ordered[0])
    for at in range(1, len(ordered)):
        inside = sum(float(np.sum((part - np.mean(part)) ** 2)) for part in (ordered[:at], ordered[at:]))
        if inside < best:
            best, border = inside, float(ordered[at - 1])
    return float(np.sum((ordered - np.mean(ordered)) ** 2)) + 1e-12, float(best) + 1e-12, border
