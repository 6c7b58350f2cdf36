"""A sweep's figures over its seeds: contrasts, estimates and contributions, from rows alone. It knows no run, no table.

Every difference is attacked minus honest under the same seed; one value per seed goes into an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from steelyard.report.contrasts import Contribution, Direction, Estimate, contribution, estimate, paired_t_test
from steelyard.report.measures import UTILITY_KINDS
from steelyard.report.sweep_rows import Row, point_key
from steelyard.sweep import HONEST, ContrastConfig, Sweep, points_at

Figure = Callable[[Row], float | None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A contrast at one grid point, or with another one: its estimate, and how many seeds went up."""

    point: str
    variant: str
    against: str
    against_point: str
    evaluator: str
    direction: Direction
    estimate: Estimate | None
    up: int
    p: float | None


class Results:
    """Rows by what they are about; every figure comes out as one value per seed.

    With several attackers a seed's scores are summed over them, and its ranks and stealth figures averaged.
    """

    def __init__(self, sweep: Sweep, rows: Sequence[Row]) -> None:
        self.sweep, self.rows = sweep, rows
        self.points = [point_key(point) for point in sweep.points]
        self.variants = [variant.name for variant in sweep.config.variants]
        self.evaluators = [str(table["name"]) for table in sweep.evaluators]

    def of(self, point: str, variant: str, evaluator: str) -> list[Row]:
        """The rows of one variant at one grid point under one evaluator."""
        wanted = (point, variant, evaluator)
        return [row for row in self.rows if (point_key(row.point), row.variant, row.evaluator) == wanted]

    def groups(self, evaluator: str, *, attacks: bool = False) -> Iterator[tuple[str, str, list[Row]]]:
        """Grid point, variant and rows of every variant that has any; only the attacks on demand."""
        for point in self.points:
            for variant in self.variants:
                rows = self.of(point, variant, evaluator)
                if rows and (rows[0].attacks or not attacks):
                    yield point, variant, rows

    def contrast(
        self,
        point: str,
        variant: str,
        against: str,
        evaluator: str,
        direction: Direction = "two-sided",
        *,
        against_point: str | None = None,
    ) -> Result:
        """One variant's gain over honest minus another's (None: at the same point), over the seeds that both have."""
        other_point = point if against_point is None else against_point
        gains = by_seed(self.of(point, variant, evaluator), lambda row: row.difference, math.fsum)
        if against != HONEST:
            other = by_seed(self.of(other_point, against, evaluator), lambda row: row.difference, math.fsum)
            gains = {seed: gain - other[seed] for seed, gain in gains.items() if seed in other}
        values = list(gains.values())
        return Result(
            point=point,
            variant=variant,
            against=against,
            against_point=other_point,
            evaluator=evaluator,
            direction=direction,
            estimate=estimate(values),
            up=sum(value > 0 for value in values),
            p=paired_t_test(values, direction),
        )

    def primary(self) -> Result | None:
        """The contrast that was declared as the primary one, if any."""
        declared = self.sweep.config.primary
        if declared is None:
            return None
        (point,) = points_at(self.sweep, declared.at)
        return self.contrast(
            point_key(point), declared.variant, declared.against, self.sweep.evaluator, declared.direction
        )

    def family(self) -> list[Result]:
        """The contrasts that are corrected together: every attack against honest, and those declared further.

        All that the sweep plans, whether or not its runs are done.
        """
        primary = self.sweep.evaluator
        each = [(point, variant, HONEST, primary, point) for point, variant in self.planned_attacks()]
        for declared in self.sweep.config.contrasts:
            for point in self.points:
                other = self._against_point(declared, point)
                if declared.variant != declared.against or point != other:
                    each.append((point, declared.variant, declared.against, declared.evaluator or primary, other))
        first = self.primary()
        apart = first and (first.point, first.variant, first.against, first.evaluator, first.against_point)
        return [self.contrast(*one[:4], against_point=one[4]) for one in dict.fromkeys(each) if one != apart]

    def planned_attacks(self) -> list[tuple[str, str]]:
        """Grid point and variant of every attack, whether or not its runs are done."""
        cells = [cell for cell in self.sweep.cells if cell.experiment.attack]
        return list(dict.fromkeys((point_key(cell.point), cell.variant) for cell in cells))

    def _against_point(self, declared: ContrastConfig, point: str) -> str:
        return point_key(points_at(self.sweep, declared.against_at)[0]) if declared.against_at else point


def mean(values: Sequence[float]) -> float:
    """The mean with a correctly rounded sum."""
    return math.fsum(values) / len(values)


def by_seed(
    rows: Sequence[Row], figure: Figure, over_clients: Callable[[Sequence[float]], float] = mean
) -> dict[int, float]:
    """One value per seed, in the order of the rows; a seed with a row that has no value has none."""
    values: dict[int, list[float | None]] = {}
    for row in rows:
        values.setdefault(row.seed, []).append(figure(row))
    return {
        seed: over_clients([value for value in given if value is not None])
        for seed, given in values.items()
        if None not in given
    }


def estimate_of(
    rows: Sequence[Row], figure: Figure, over_clients: Callable[[Sequence[float]], float] = mean
) -> Estimate | None:
    """The estimate of a figure over the seeds."""
    return estimate(list(by_seed(rows, figure, over_clients).values()))


def contributions(rows: Sequence[Row]) -> list[Contribution]:
    """One per seed that has the control, if the evaluator's values are in its utility's unit."""
    if not rows or rows[0].kind not in UTILITY_KINDS:
        return []
    gains = by_seed(rows, lambda row: row.difference, math.fsum)
    found = []
    for seed, row in {row.seed: row for row in rows}.items():
        figures = (
            (row.accuracy_honest, row.accuracy_attacked, row.accuracy_without)
            if row.utility == "accuracy"
            else (row.loss_honest, row.loss_attacked, row.loss_without)
        )
        if seed in gains and None not in figures:
            honest, attacked, without = (float(figure) for figure in figures if figure is not None)
            each = contribution(gains[seed], row.utility, honest, attacked, without)
            found += [each] if each else []
    return found
