"""The sweep file: one experiment over a grid of keys, seeds and variants, as typed records and the runs they ask for.

Every cell is an experiment of its own. Nothing here runs anything or reads a result. Torch-free.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from steelyard.config import Experiment, make_experiment, read_experiment
from steelyard.errors import UserError
from steelyard.parsing import NonNegative, parse

HONEST = "honest"
SEED = "seed"
ABSENT = "clients.absent"
MAX_CELLS = 100_000
NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """One way to run the base experiment.

    `attack` takes the place of the base's attack; left out, the base's stays, unless the variant sets `clients.absent`;
    an empty one means that nobody attacks. `set` overrides keys, its twin's too.
    """

    name: str
    attack: dict[str, Any] | None = None
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PrimaryConfig:
    """The one contrast that was chosen beforehand.

    `at` picks the grid point where the grid has several; `evaluator` "" is the experiment's first; `direction` is the
    hypothesis about `variant` minus `against`.
    """

    variant: str
    against: str = HONEST
    evaluator: str = ""
    direction: Literal["greater", "less", "two-sided"] = "greater"
    at: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """A further contrast, at every grid point: variant against variant.

    `against_at` picks the grid point that `against` is taken from; left out, it is the same one. Between two points a
    variant may be set against itself.
    """

    variant: str
    against: str = HONEST
    evaluator: str = ""
    against_at: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep file. `jobs` runs go on side by side (0: one per core)."""

    name: str
    base: str
    jobs: NonNegative = 0
    launcher: Literal["local", "inline"] = "local"
    set: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    variants: tuple[VariantConfig, ...] = ()
    primary: PrimaryConfig | None = None
    contrasts: tuple[ContrastConfig, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a variant at a grid point under one seed.

    `run` is the name of its run directory, `honest` that of the honest run it is compared with: its own for a twin.
    `watched` are the clients whose scores the sweep is about.
    """

    variant: str
    point: dict[str, Any]
    seed: int
    experiment: Experiment
    run: str
    honest: str
    watched: tuple[int, ...]

    @property
    def title(self) -> str:
        """What a person calls it."""
        return " ".join(
            [self.variant, *(f"{key}={value_text(value)}" for key, value in self.point.items()), f"seed={self.seed}"]
        )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file, resolved: its cells seed by seed, an honest run always before those that are compared with it.

    Cells at different grid points share a run where they are the same experiment: one that no key of the grid changes.
    """

    config: SweepConfig
    points: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]

    @property
    def runs(self) -> tuple[Cell, ...]:
        """One cell per run directory."""
        first: dict[str, Cell] = {}
        for cell in self.cells:
            first.setdefault(cell.run, cell)
        return tuple(first.values())

    @property
    def evaluators(self) -> tuple[dict[str, Any], ...]:
        """The evaluators' tables, those of the first cell."""
        return self.cells[0].experiment.evaluators

    @property
    def evaluator(self) -> str:
        """The primary evaluator's name: the declared one, else the experiment's first."""
        declared = self.config.primary.evaluator if self.config.primary else ""
        return declared or str(self.evaluators[0]["name"])


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file and the experiment that it is based on.

    Raises:
        UserError: a file is missing, is no TOML, or something in it is unknown, out of range or contradicts itself.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"sweep file expected at {path}, there is none; experiments/ holds one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: a TOML file expected: {error}") from None
    config = parse(SweepConfig, table, str(path))
    return resolve(config, read_experiment(path.parent / config.base), str(path))


def resolve(config: SweepConfig, base: Mapping[str, Any], where: str) -> Sweep:
    """All cells of a sweep over the table of an experiment.

    Raises:
        UserError: as `load_sweep`.
    """
    _check_names(config, where)
    _check_seeds(config, where)
    axes = dict(_flat(config.grid))
    seeds = _seeds(axes.pop(SEED, [base.get(SEED, 0)]), f"{where} [grid] {SEED}")
    points = _points(axes, f"{where} [grid]")
    if len(seeds) * len(points) * (1 + len(config.variants)) > MAX_CELLS:
        raise UserError(f"{where}: at most {MAX_CELLS} runs expected, got {len(seeds)} seeds at {len(points)} points")
    cells: list[Cell] = []
    twins: set[str] = set()
    for seed, point in itertools.product(seeds, points):
        common = apply(apply(base, config.set), {SEED: seed})
        for key, value in point.items():
            _put(common, key, copy.deepcopy(value))  # a table takes the place of the base's, as with --set
        here: dict[str, Cell] = {}
        for cell in _cells(config, common, point, seed, where):
            same = here.setdefault(cell.experiment.digest(), cell)
            if same is not cell and not same.variant == cell.variant == HONEST:
                raise UserError(f"{where}: {cell.title} and {same.title} are the same experiment; leave one out")
            if same is cell and cell.run not in twins:
                cells.append(cell)
                twins |= {cell.run} if cell.variant == HONEST else set()
    sweep = Sweep(config=config, points=points, seeds=seeds, cells=tuple(cells))
    _check_contrasts(sweep, where)
    return sweep


def apply(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a table with keys overridden; keys are dotted or nested.

    Raises:
        UserError: a key leads through a value that is no table.
    """
    result: dict[str, Any] = copy.deepcopy(dict(table))
    for key, value in _flat(overrides):
        _put(result, key, value)
    return result


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *parents, last = key.split(".")
    place = table
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(f"set {key}: {parent!r} is a value, not a table")
    place[last] = value


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, however the file nested them; a table without keys is a value, such as no attack."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def value_text(value: Any) -> str:
    """A grid value as text; a table by its name and its other keys: "krum(f=2)"."""
    if isinstance(value, list):
        return "+".join(map(value_text, value))
    if not isinstance(value, Mapping):
        return str(value)
    rest = ",".join(f"{key}={value_text(item)}" for key, item in value.items() if key != "name")
    return f"{value.get('name', '')}({rest})" if rest else str(value.get("name", ""))


def _seeds(values: Any, where: str) -> tuple[int, ...]:
    """Seeds from a list or from a range that includes both of its ends, "0..19"."""
    if isinstance(values, str) and (ends := RANGE.fullmatch(values)):
        first, last = int(ends[1]), int(ends[2])
        if first > last or last - first >= MAX_CELLS:
            raise UserError(f"{where}: a range that counts up, such as '0..19', expected, got {values!r}")
        return tuple(range(first, last + 1))
    seeds = values if isinstance(values, list) else [values]
    if not seeds or any(type(seed) is not int for seed in seeds) or len(set(seeds)) != len(seeds):
        raise UserError(f"{where}: a list of different integers or a range such as '0..19' expected, got {values!r}")
    return tuple(seeds)


def _points(axes: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    for key, values in axes.items():
        if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
            raise UserError(f"{where} {key}: a list of different values expected, got {values!r}")
    if (count := math.prod(map(len, axes.values()))) > MAX_CELLS:
        raise UserError(f"{where}: at most {MAX_CELLS} points expected, got {count}")
    return tuple(dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def _cells(
    config: SweepConfig, common: Mapping[str, Any], point: dict[str, Any], seed: int, where: str
) -> Iterator[Cell]:
    """The cells of one grid point under one seed: the plain honest run, then each variant behind its own twin."""
    base = make_experiment(common, where)
    for variant in config.variants:
        experiment = _experiment(base, common, variant, where)
        plain = replace(_compared(base, common, variant, experiment, where).honest(), name=HONEST)
        watched = experiment.attackers or base.attackers or (0,)
        twin = f"{HONEST}-{plain.digest()}"
        own = f"{experiment.name}-{experiment.digest()}"
        yield Cell(variant=HONEST, point=point, seed=seed, experiment=plain, run=twin, honest=twin, watched=watched)
        yield Cell(
            variant=variant.name, point=point, seed=seed, experiment=experiment, run=own, honest=twin, watched=watched
        )


def _experiment(base: Experiment, common: Mapping[str, Any], variant: VariantConfig, where: str) -> Experiment:
    where = f"{where} variant {variant.name}"
    table = {**common, "name": f"{base.name}-{variant.name}"}
    if variant.attack is not None or ABSENT in dict(_flat(variant.set)):
        table["attack"] = variant.attack or {}
    experiment = make_experiment(apply(table, variant.set), where)
    if experiment.attack and not experiment.compares_honest:
        raise UserError(f"{where}: a sweep pairs every attack with its honest twin; leave out compare_honest = false")
    return experiment


def _compared(
    base: Experiment, common: Mapping[str, Any], variant: VariantConfig, experiment: Experiment, where: str
) -> Experiment:
    """What a variant is compared with, once nobody attacks: itself; nobody absent; or the base if it has no attack."""
    if experiment.attack:
        return experiment
    if absent(experiment):
        present = {key: value for key, value in _flat(variant.set) if key != ABSENT}
        return _experiment(base, common, replace(variant, attack={}, set=present), where)
    return base


def absent(experiment: Experiment) -> tuple[int, ...]:
    """The clients that the experiment leaves out."""
    return tuple(getattr(experiment.clients, "absent", ()))


def _check_names(config: SweepConfig, where: str) -> None:
    names = [variant.name for variant in config.variants]
    if not names:
        raise UserError(f"{where}: at least one [[variants]] expected, each with a name")
    for name in [config.name, *names]:
        if not NAME.fullmatch(name):
            raise UserError(f"{where} name: up to 60 letters, digits, - and _ expected, got {name!r}")
    if HONEST in names or len(set(names)) != len(names):
        raise UserError(
            f"{where} [[variants]]: names of their own expected, none {HONEST!r} (that run comes by itself), "
            f"got {', '.join(names)}"
        )


def _check_seeds(config: SweepConfig, where: str) -> None:
    """Seeds pair the runs, so the grid alone gives them: with one set elsewhere a run would repeat under each seed."""
    for table, overrides in (("set", config.set), *((f"variant {each.name}", each.set) for each in config.variants)):
        if SEED in dict(_flat(overrides)):
            raise UserError(f"{where} {table}: seeds in [grid] expected, got one here; move it there")


def _check_contrasts(sweep: Sweep, where: str) -> None:
    """See that every contrast names variants and evaluators that there are, and the primary one grid point."""
    config = sweep.config
    variants = {HONEST, *(variant.name for variant in config.variants)}
    evaluators = {"", *(str(table["name"]) for table in sweep.evaluators)}
    declared: list[tuple[str, PrimaryConfig | ContrastConfig]] = [
        *([("[primary]", config.primary)] if config.primary else []),
        *(("[[contrasts]]", contrast) for contrast in config.contrasts),
    ]
    for table, contrast in declared:
        for name in (contrast.variant, contrast.against):
            if name not in variants:
                raise UserError(f"{where} {table}: one of {', '.join(sorted(variants))} expected, got {name!r}")
        elsewhere = isinstance(contrast, ContrastConfig) and bool(contrast.against_at)
        if contrast.variant == HONEST or contrast.against == (HONEST if elsewhere else contrast.variant):
            raise UserError(f"{where} {table}: a variant against another expected, got {contrast.variant!r}")
        if contrast.evaluator not in evaluators:
            known = ", ".join(sorted(evaluators - {""}))
            raise UserError(f"{where} {table} evaluator: one of {known} expected, got {contrast.evaluator!r}")
    picks = [("[primary] at", config.primary.at)] if config.primary else []
    picks += [("[[contrasts]] against_at", contrast.against_at) for contrast in config.contrasts if contrast.against_at]
    for key, at in picks:
        if len(found := points_at(sweep, at)) != 1:
            raise UserError(
                f"{where} {key}: values of grid keys that pick one of {len(sweep.points)} points expected, "
                f"got {at!r}, which picks {len(found)}"
            )


def points_at(sweep: Sweep, at: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The grid points that have these values; keys are dotted or nested, and of a table some will do."""
    wanted = dict(_flat(at)).items()
    return [point for point in sweep.points if wanted <= dict(_flat(point)).items()]
