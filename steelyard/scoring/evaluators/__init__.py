"""Evaluators by kind, and the experiment's `[[evaluators]]` tables made into them. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.errors import UserError
from steelyard.parsing import choose, parse
from steelyard.scoring.evaluators.across_rounds import (
    LambdaMultiRound,
    LambdaMultiRoundParams,
    MultiRoundParams,
    OneRound,
    OneRoundParams,
)
from steelyard.scoring.evaluators.banzhaf import Banzhaf, BanzhafParams
from steelyard.scoring.evaluators.base import Evaluator, EvaluatorParams, Fold
from steelyard.scoring.evaluators.beta_shapley import BetaShapley, BetaShapleyParams
from steelyard.scoring.evaluators.cgsv import Cgsv, CgsvParams
from steelyard.scoring.evaluators.chg_shapley import ChgShapley, ChgShapleyParams
from steelyard.scoring.evaluators.comfedsv import ComFedSV, ComFedSVParams
from steelyard.scoring.evaluators.company import Company, CompanyParams
from steelyard.scoring.evaluators.dig_fl import DigFL, DigFLParams
from steelyard.scoring.evaluators.fedce import FedCE, FedCEParams
from steelyard.scoring.evaluators.fedsv import FedSV, FedSVParams
from steelyard.scoring.evaluators.fold_median import FoldMedian, FoldMedianParams
from steelyard.scoring.evaluators.gtg import Gtg, GtgCorrected, GtgCorrectedParams, GtgParams
from steelyard.scoring.evaluators.least_core import LeastCore, LeastCoreParams
from steelyard.scoring.evaluators.loo import Loo, LooParams
from steelyard.scoring.evaluators.rider import Rider, RiderParams
from steelyard.scoring.evaluators.shapfed import ShapFed, ShapFedParams
from steelyard.scoring.evaluators.shapley import Shapley, ShapleyParams
from steelyard.scoring.evaluators.tmc import Tmc, TmcParams

EVALUATORS: dict[str, tuple[type[EvaluatorParams], Callable[[Any], Evaluator | Fold]]] = {
    "loo": (LooParams, Loo),
    "fedsv": (FedSVParams, FedSV),
    "shapley": (ShapleyParams, Shapley),
    "tmc": (TmcParams, Tmc),
    "gtg": (GtgParams, Gtg),
    "gtg_corrected": (GtgCorrectedParams, GtgCorrected),
    "banzhaf": (BanzhafParams, Banzhaf),
    "beta_shapley": (BetaShapleyParams, BetaShapley),
    "least_core": (LeastCoreParams, LeastCore),
    "multi_round": (MultiRoundParams, Shapley),
    "lambda_multi_round": (LambdaMultiRoundParams, LambdaMultiRound),
    "one_round": (OneRoundParams, OneRound),
    "comfedsv": (ComFedSVParams, ComFedSV),
    "cgsv": (CgsvParams, Cgsv),
    "shapfed": (ShapFedParams, ShapFed),
    "fedce": (FedCEParams, FedCE),
    "dig_fl": (DigFLParams, DigFL),
    "chg_shapley": (ChgShapleyParams, ChgShapley),
    "company": (CompanyParams, Company),
    "rider": (RiderParams, Rider),
    "fold_median": (FoldMedianParams, FoldMedian),
}
MAX_CALLS = 2**16


@dataclass(frozen=True, kw_only=True)
class NamedEvaluator:
    """An evaluator as an experiment configured it; `params` holds its name and utility."""

    params: EvaluatorParams
    evaluator: Evaluator | Fold

    @property
    def name(self) -> str:
        """The name that the experiment gave it, unique within the run."""
        return self.params.name


def make_evaluators(tables: Sequence[Mapping[str, Any]], clients: int = 0) -> tuple[NamedEvaluator, ...]:
    """The experiment's evaluators, in its order.

    Args:
        tables: the `[[evaluators]]` tables: name, kind, utility, and the kind's own parameters.
        clients: the most participants that a round can have, to refuse an evaluator that could never finish.

    Raises:
        UserError: an unknown kind, a bad parameter, a name used twice, or more than MAX_CALLS coalitions a round.
    """
    made: dict[str, NamedEvaluator] = {}
    for i, table in enumerate(tables):
        where = f"[[evaluators]] {table.get('name', i)}"
        if not isinstance(table.get("kind"), str):
            raise UserError(f"{where} kind: one of {', '.join(EVALUATORS)} expected, got {table.get('kind')!r}")
        params_type, evaluator_type = choose(table["kind"], EVALUATORS, f"kind in {where}:")
        params = parse(params_type, table, where)
        if params.name in made or not params.name.replace("-", "").replace("_", "").isalnum():
            raise UserError(
                f"{where} name: a name of its own of letters, digits, - and _ expected, got {params.name!r}"
            )
        evaluator = evaluator_type(params)
        calls = evaluator.most_calls(clients)
        if calls > MAX_CALLS:
            raise UserError(
                f"{where}: at most {MAX_CALLS} coalitions a round expected, {clients} clients take {calls}; "
                "sample fewer: lower calls or permutations, or use method = 'permutation'"
            )
        made[params.name] = NamedEvaluator(params=params, evaluator=evaluator)
    return tuple(made.values())
