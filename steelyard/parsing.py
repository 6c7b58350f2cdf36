"""Tables (TOML, JSON) into frozen dataclasses, with one clear line for every mistake.

A field's type annotation is its whole schema: bool, int, float, str, `X | None`, Literal, tuple[X, ...],
dict[str, Any], nested dataclasses, a union of dataclasses told apart by their field `kind`, and
`Annotated[number, Range(...)]`. An unknown key fails and names the nearest known one. Torch-free.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from steelyard.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive; `above` is an exclusive lower bound."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def __str__(self) -> str:
        lower = f"> {self.above:g}" if self.above > -math.inf else f">= {self.low:g}" if self.low > -math.inf else ""
        upper = f"<= {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (lower, upper) if part) or "a finite number"

    def holds(self, value: float) -> bool:
        """Whether a number lies within the bounds."""
        return abs(value) != math.inf and self.low <= value <= self.high and value > self.above


Positive = Annotated[int, Range(1)]
NonNegative = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


def parse(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make `kind`, a dataclass, from a table.

    Args:
        kind: a frozen dataclass; every field's annotation is its schema.
        table: keys and values as tomllib or json give them.
        where: what to call the table in an error, e.g. "[data]".

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type or out of its range.
    """
    if not dataclasses.is_dataclass(kind):
        raise UserError(
            f"{where}: a dataclass for the parameters expected, got {kind!r}; do class and parameters stand the wrong "
            "way round, or is @dataclass missing?"
        )
    table = _table(table, where)
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise UserError(f"{where}: key {name!r} is missing; add it")
    return kind(**{key: _value(hints[key], value, f"{where} {key}") for key, value in table.items()})


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two tables differ, those of a table in both as "table.key", sorted."""
    found = []
    for key in sorted({*one, *other}):
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += [f"{key}.{inner}" for inner in sorted({*left, *right}) if left.get(inner) != right.get(inner)]
        elif left != right:
            found.append(key)
    return found


def nearest(word: str, known: Any) -> str:
    """A hint for an unknown word: the nearest known one, and all of them."""
    known = list(known)
    if not known:
        return "; there is none to set"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(known)}"


def choose(name: str, known: Mapping[str, T], what: str) -> T:
    """The entry of a literal dict of variants.

    Raises:
        UserError: there is none of that name; the nearest is named.
    """
    if name not in known:
        raise UserError(f"unknown {what} {name!r}{nearest(name, known)}")
    return known[name]


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin is not None:
        return _composite(origin, get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return parse(hint, _table(value, where), where)  # type: ignore[arg-type]
    return _scalar(hint, value, where)


def _composite(origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if origin is Annotated:
        return _ranged(arguments[0], arguments[1], value, where)
    if origin is Literal:
        return _one_of(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, "a list", value)
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in _table(value, where).items()}
    if origin not in (Union, types.UnionType):
        raise UserError(
            f"{where}: a type that steelyard/parsing.py knows expected for this key, its field says {origin}"
        )
    return _union(arguments, value, where)


def _union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    """`X | None`, or one of several dataclasses: the one whose default of `kind` the table names, else the first."""
    if type(None) in arguments:
        return None if value is None else _value(next(a for a in arguments if a is not type(None)), value, where)
    table = _table(value, where)
    by_kind = {field.default: kind for kind in arguments for field in dataclasses.fields(kind) if field.name == "kind"}
    first, *_ = by_kind
    return parse(by_kind[_one_of(tuple(by_kind), table.get("kind", first), f"{where} kind")], table, where)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "a table", value)
    return value


def _one_of(known: tuple[Any, ...], value: Any, where: str) -> Any:
    if value in known:
        return value
    words = [str(k) for k in known]
    close = difflib.get_close_matches(value, words, n=1, cutoff=0.5) if isinstance(value, str) else []
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"{where}: one of {', '.join(map(repr, known))} expected, got {_shown(value)}{hint}")


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return _plain(value, where)
    if not _fits(value):
        raise _wrong(where, "a finite number of at most 64 bits", value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
        raise _wrong(where, names[hint], value)
    return value


def _fits(value: Any) -> bool:
    """Whether a value is no number, or one that every reader of TOML and JSON can hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _plain(value: Any, where: str) -> Any:
    """A value that JSON can carry on to the process that owns its schema; TOML's dates and times are none."""
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, bool | int | float | str | None) or not _fits(value):
        raise _wrong(where, "a finite number, a string, true or false, a list or a table", value)
    return value


def _ranged(hint: Any, bounds: Range, value: Any, where: str) -> Any:
    number = _value(hint, value, where)
    if not bounds.holds(number):
        raise UserError(f"{where}: {bounds} expected, got {value!r}")
    return number


def _wrong(where: str, expected: str, value: Any) -> UserError:
    return UserError(f"{where}: {expected} expected, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A value as an error shows it, cut where the line would stop being one that a person reads."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "an enormous number"
    return text if len(text) <= 100 else f"{text[:100]}..."
