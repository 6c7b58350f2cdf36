"""Scores of one round: every evaluator over the round's game. The live server and the replay both call this."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steelyard.bundle import check_arrays
from steelyard.errors import UserError, described
from steelyard.scoring.evaluators import EVALUATORS, NamedEvaluator
from steelyard.scoring.evaluators.base import Evaluator, Fold, Round, Scores, State
from steelyard.scoring.evaluators.budget import BudgetParams, RacingParams
from steelyard.seeding import numpy_generator


@dataclass(frozen=True, kw_only=True)
class RoundScores:
    """One evaluator's scores of one round.

    `seconds` is wall time. Evaluators share the round's outcomes, so the first to ask for a coalition pays for it;
    `scores.calls` counts as if each had started cold. `state` is what a fold carries on, and its scores are the whole
    roster's, [N]; for any other evaluator `state` is None and the scores are the participants', [n].
    """

    evaluator: str
    scores: Scores
    seconds: float
    state: State | None = field(default=None, repr=False)


def score_round(
    round_: Round,
    evaluators: Sequence[NamedEvaluator],
    *,
    seed: int,
    round_number: int,
    states: Mapping[str, State] | None = None,
    spent: Mapping[str, int] | None = None,
) -> tuple[RoundScores, ...]:
    """Score one round with each evaluator, in order.

    An evaluator's randomness is a function of (seed, its name, the round) alone: other evaluators, or a repetition
    years later from the recording, change nothing.

    Args:
        round_: the round; evaluators that are no folds look at its `view` alone.
        evaluators: the experiment's.
        seed: the experiment's.
        round_number: from 1.
        states: what each fold carried on from the round before, by name; a fold that is not there starts.
        spent: by name, the calls that a budget in seconds, or a race, came to when the round was scored before: they
            are the budget now, instead. Evaluators without such a budget take no notice.

    Raises:
        UserError: an evaluator returned something else than it is to, a number too few, say.
    """
    results = []
    for named in evaluators:
        start = time.perf_counter()
        where = f"[[evaluators]] {named.name}, round {round_number}"
        generator = numpy_generator(seed, "evaluator", named.name, round_number)
        evaluator, state = _recalled(named, (spent or {}).get(named.name)), None
        if isinstance(evaluator, Fold):
            before = (states or {}).get(named.name)
            before = evaluator.start(round_.clients) if before is None else before
            check_arrays(before, f"{where}, the state from start")
            state, scores = _pair(evaluator.fold(before, round_, generator), where)
            check_arrays(state, f"{where}, the state from fold")
            places = round_.clients
        else:
            game = round_.view(named.params.utility)
            scores, places = evaluator.evaluate(game, generator), game.players
        if not isinstance(scores, Scores):
            raise UserError(f"{where}: Scores expected, got {described(scores)}")
        scores.check(places, where)
        seconds = time.perf_counter() - start
        results.append(RoundScores(evaluator=named.name, scores=scores, seconds=seconds, state=state))
    return tuple(results)


def _pair(told: Any, where: str) -> tuple[State, Scores]:
    """What `fold` returned, if it is two things."""
    if not isinstance(told, tuple) or len(told) != 2:
        raise UserError(f"{where}: a pair expected from fold, the next state and Scores, got {described(told)}")
    return told


def _recalled(named: NamedEvaluator, calls: int | None) -> Evaluator | Fold:
    """The evaluator, its budget in seconds or its race exchanged for the calls that it came to."""
    params = named.params
    _, evaluator_type = EVALUATORS[params.kind]
    if calls is not None and isinstance(params, RacingParams) and params.top:
        return evaluator_type(replace(params, seconds=0.0, top=0, target_std_error=0.0, calls=calls))
    if calls is not None and isinstance(params, BudgetParams) and params.seconds:
        return evaluator_type(replace(params, seconds=0.0, calls=calls))
    return named.evaluator
