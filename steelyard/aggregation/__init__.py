"""Aggregation: from a round's updates to the next global model. Rules by name, and the `[defence]` table made into one.

One file per rule or family. Importing the package loads no torch; `fedavg` and `round` need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steelyard.aggregation.base import Rule
from steelyard.aggregation.bulyan import Bulyan, BulyanParams
from steelyard.aggregation.centred_clipping import CentredClipping, CentredClippingParams
from steelyard.aggregation.coordinates import Median, MedianParams, TrimmedMean, TrimmedMeanParams
from steelyard.aggregation.defence import Defence
from steelyard.aggregation.dnc import Dnc, DncParams
from steelyard.aggregation.flame import Flame, FlameParams
from steelyard.aggregation.fldetector import FLDetector, FLDetectorParams
from steelyard.aggregation.fltrust import FLTrust, FLTrustParams
from steelyard.aggregation.foolsgold import FoolsGold, FoolsGoldParams
from steelyard.aggregation.geometric_median import GeometricMedian, GeometricMedianParams
from steelyard.aggregation.krum import Krum, KrumParams, MultiKrum, MultiKrumParams
from steelyard.aggregation.mean import Mean, MeanParams
from steelyard.aggregation.mixing import Bucketing, BucketingParams, Nnm, NnmParams, Step
from steelyard.aggregation.norm_clipping import NormClipping, NormClippingParams
from steelyard.aggregation.signguard import SignGuard, SignGuardParams
from steelyard.defence import defence_config
from steelyard.errors import UserError
from steelyard.parsing import choose, parse

RULES: dict[str, tuple[type[Any], Callable[[Any], Rule]]] = {
    "mean": (MeanParams, Mean),
    "norm_clipping": (NormClippingParams, NormClipping),
    "centred_clipping": (CentredClippingParams, CentredClipping),
    "median": (MedianParams, Median),
    "trimmed_mean": (TrimmedMeanParams, TrimmedMean),
    "geometric_median": (GeometricMedianParams, GeometricMedian),
    "krum": (KrumParams, Krum),
    "multi_krum": (MultiKrumParams, MultiKrum),
    "bulyan": (BulyanParams, Bulyan),
    "foolsgold": (FoolsGoldParams, FoolsGold),
    "fltrust": (FLTrustParams, FLTrust),
    "flame": (FlameParams, Flame),
    "dnc": (DncParams, Dnc),
    "signguard": (SignGuardParams, SignGuard),
    "fldetector": (FLDetectorParams, FLDetector),
}
STEPS: dict[str, tuple[type[Any], Callable[[Any], Step]]] = {
    "nnm": (NnmParams, Nnm),
    "bucketing": (BucketingParams, Bucketing),
}


def make_defence(table: Mapping[str, Any], clients: int) -> Defence | None:
    """The defence of a `[defence]` table; None for an empty one: plain federated averaging.

    Args:
        table: the name of a rule, its parameters, and `pre`, `scoring` and `root`.
        clients: the updates of a full round, which the rule's limits are held against.

    Raises:
        UserError: an unknown name or parameter, too few clients, or a rule and steps that do not go together.
    """
    config = defence_config(table)
    if config is None:
        return None
    params_type, rule_type = choose(config.name, RULES, "name in [defence]:")
    rule = rule_type(parse(params_type, config.parameters, "[defence]"))
    steps = []
    rows = clients
    for i, step_table in enumerate(config.pre):
        parameters = dict(step_table)
        params_type, step_type = choose(str(parameters.pop("name", "")), STEPS, f"name in [defence] pre[{i}]:")
        steps.append(step_type(parse(params_type, parameters, f"[defence] pre[{i}]")))
        rows = steps[-1].check(rows)
    rule.check(rows)
    if rule.tracks and not all(step.keeps_clients for step in steps):
        raise UserError(
            f"[defence] pre: steps that keep a row per client expected, since {config.name} remembers clients, "
            f"got {[table['name'] for table in config.pre]}"
        )
    if rule.needs_root and not config.root:
        raise UserError(f"[defence] root: at least 1 expected, {config.name} trains on samples of the server's own")
    return Defence(rule=rule, steps=tuple(steps), config=config, table=dict(table))
