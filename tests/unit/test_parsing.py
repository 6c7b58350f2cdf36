"""Tables into dataclasses: what is taken, and the one line that says what is wrong with the rest."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from steelyard.errors import UserError
from steelyard.parsing import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Range,
    choose,
    differing,
    nearest,
    parse,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: Positive = 3
    rate: PositiveFloat = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    count: NonNegative = 1
    momentum: NonNegativeFloat = 0.0
    share: Fraction = 0.5
    flag: bool = False
    plain: float = 0.0
    kind: Literal["iid", "labels"] = "iid"
    seed: NonNegative | None = None
    sizes: tuple[Positive, ...] = ()
    inner: Inner = field(default_factory=Inner)
    several: tuple[Inner, ...] = ()
    table: dict[str, Any] = field(default_factory=dict)
    ages: dict[str, Positive] = field(default_factory=dict)
    between: Annotated[int, Range(2, 5)] = 3


def parsed(**table: Any) -> Outer:
    return parse(Outer, {"name": "x", **table}, "file")


def mistake(**table: Any) -> str:
    with pytest.raises(UserError) as caught:
        parsed(**table)
    return str(caught.value)


def test_defaults_fill_what_is_left_out() -> None:
    assert parse(Outer, {"name": "x"}, "file") == Outer(name="x")


def test_every_kind_of_field() -> None:
    outer = parsed(
        count=0,
        momentum=1,
        share=1,
        flag=True,
        kind="labels",
        seed=3,
        sizes=[1, 2],
        inner={"rate": 2},
        several=[{"size": 1}, {}],
        table={"a": [1, {"b": 2.5}], "c": True, "d": "word"},
        ages={"k": 4},
        between=5,
    )
    assert outer.momentum == 1.0
    assert isinstance(outer.momentum, float), "an integer becomes a float where one is asked for"
    assert (outer.count, outer.share, outer.flag, outer.kind, outer.seed) == (0, 1.0, True, "labels", 3)
    assert outer.sizes == (1, 2)
    assert outer.inner == Inner(size=3, rate=2.0)
    assert outer.several == (Inner(size=1), Inner())
    assert outer.table == {"a": [1, {"b": 2.5}], "c": True, "d": "word"}
    assert (outer.ages, outer.between) == ({"k": 4}, 5)
    assert parsed(seed=None).seed is None


def test_tables_differ_in_keys_and_in_keys_of_tables() -> None:
    one = {"a": 1, "b": {"x": 1, "y": [2]}, "c": {}, "d": 4}
    assert differing(one, one) == []
    assert differing(one, {"a": 2, "b": {"x": 1, "y": [3], "z": 0}, "c": 3}) == ["a", "b.y", "b.z", "c", "d"]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"cuont": 1}, "file: unknown key 'cuont'; did you mean 'count'? known: name, count, momentum"),
    ({"xyzzy": 1}, "file: unknown key 'xyzzy'; known: name, count"),
    ({"inner": {"sise": 1}}, "file inner: unknown key 'sise'; did you mean 'size'? known: size, rate"),
    ({"name": 3}, "file name: a string expected, got 3"),
    ({"count": True}, "file count: an integer expected, got True"),
    ({"count": 1.0}, "file count: an integer expected, got 1.0"),
    ({"count": "1"}, "file count: an integer expected, got '1'"),
    ({"count": -1}, "file count: >= 0 expected, got -1"),
    ({"count": 2**63}, "file count: a finite number of at most 64 bits expected, got 9223372036854775808"),
    ({"count": 10**5000}, "file count: a finite number of at most 64 bits expected, got an enormous number"),
    ({"momentum": True}, "file momentum: a number expected, got True"),
    ({"momentum": "fast"}, "file momentum: a number expected, got 'fast'"),
    ({"momentum": -0.5}, "file momentum: >= 0 expected, got -0.5"),
    ({"momentum": 10**400}, "file momentum: a finite number of at most 64 bits expected, got 1000"),
    ({"plain": math.nan}, "file plain: a finite number of at most 64 bits expected, got nan"),
    ({"plain": math.inf}, "file plain: a finite number of at most 64 bits expected, got inf"),
    ({"share": 1.5}, "file share: >= 0 and <= 1 expected, got 1.5"),
    ({"share": math.nan}, "file share: a finite number of at most 64 bits expected, got nan"),
    ({"between": 6}, "file between: >= 2 and <= 5 expected, got 6"),
    ({"inner": {"rate": 0}}, "file inner rate: > 0 expected, got 0"),
    ({"flag": 1}, "file flag: true or false expected, got 1"),
    ({"kind": "label"}, "file kind: one of 'iid', 'labels' expected, got 'label'; did you mean 'labels'?"),
    ({"kind": ["iid"]}, "file kind: one of 'iid', 'labels' expected, got ['iid']"),
    ({"kind": 10**5000}, "file kind: one of 'iid', 'labels' expected, got an enormous number"),
    ({"seed": "no"}, "file seed: an integer expected, got 'no'"),
    ({"sizes": 3}, "file sizes: a list expected, got 3"),
    ({"sizes": "12"}, "file sizes: a list expected, got '12'"),
    ({"sizes": [1, 0]}, "file sizes[1]: >= 1 expected, got 0"),
    ({"inner": 3}, "file inner: a table expected, got 3"),
    ({"inner": [{"size": 1}]}, "file inner: a table expected, got [{'size': 1}]"),
    ({"several": [{}, {"size": 0}]}, "file several[1] size: >= 1 expected, got 0"),
    ({"several": {"size": 1}}, "file several: a list expected, got {'size': 1}"),
    ({"table": 3}, "file table: a table expected, got 3"),
    ({"table": {"a": [1, dt.date(2024, 1, 1)]}}, "file table.a[1]: a finite number, a string, true or false,"),
    ({"table": {"a": {"b": math.nan}}}, "file table.a.b: a finite number, a string, true or false,"),
    ({"ages": {"k": 0}}, "file ages.k: >= 1 expected, got 0"),
    ({"name": ["long"] * 1000}, "file name: a string expected, got ['long', 'long',"),
]


@pytest.mark.parametrize(("table", "line"), MISTAKES, ids=lambda value: None if isinstance(value, dict) else value[:60])
def test_a_mistake_is_one_line_that_names_place_expected_and_got(table: dict[str, Any], line: str) -> None:
    message = mistake(**table)
    assert message.startswith(line)
    assert "\n" not in message
    assert len(message) < 300


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match=r"^file: key 'name' is missing; add it$"):
        parse(Outer, {}, "file")


@pytest.mark.parametrize("table", [[], 3, "name", None, [1]])
def test_what_is_no_table_at_all_is_said_to_be_none(table: Any) -> None:
    with pytest.raises(UserError, match=r"^file: a table expected, got "):
        parse(Outer, table, "file")


def test_line_breaks_in_what_came_do_not_break_the_line() -> None:
    assert "\n" not in mistake(kind="i\nid")
    assert "\n" not in mistake(**{"a\nb": 1})


@dataclass(frozen=True, kw_only=True)
class Round:
    kind: Literal["round"] = "round"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square"] = "square"
    side: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Table:
    top: Round | Square = field(default_factory=Round)


def test_a_union_of_dataclasses_is_told_apart_by_kind() -> None:
    assert parse(Table, {"top": {"kind": "square", "side": 3}}, "x").top == Square(side=3.0)
    assert parse(Table, {"top": {"radius": 4}}, "x").top == Round(radius=4.0)  # left out: the first
    for top, line in (
        ({"kind": "sqare"}, "x top kind: one of 'round', 'square' expected, got 'sqare'; did you mean 'square'?"),
        ({"kind": "square", "radius": 1}, "x top: unknown key 'radius'"),
        ({"kind": []}, r"x top kind: one of 'round', 'square' expected, got \[\]"),
        ("round", "x top: a table expected, got 'round'"),
    ):
        with pytest.raises(UserError, match=f"^{line.replace('?', chr(92) + '?')}"):
            parse(Table, {"top": top}, "x")


def test_choosing_from_a_literal_dict() -> None:
    assert choose("loo", {"loo": 1, "fedsv": 2}, "evaluator") == 1
    with pytest.raises(UserError, match=r"^unknown evaluator 'fedvs'; did you mean 'fedsv'\? known: loo, fedsv$"):
        choose("fedvs", {"loo": 1, "fedsv": 2}, "evaluator")
    assert nearest("zzz", ["loo"]) == "; known: loo"


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Range(1), ">= 1"),
        (Range(above=0), "> 0"),
        (Range(0, 1), ">= 0 and <= 1"),
        (Range(high=3), "<= 3"),
        (Range(), "a finite number"),
    ],
)
def test_bounds_in_words(bounds: Range, words: str) -> None:
    assert str(bounds) == words


def test_bounds_by_hand() -> None:
    assert [Range(0, 1).holds(x) for x in (-0.1, 0, 1, 1.1)] == [False, True, True, False]
    assert [Range(above=0).holds(x) for x in (-1, 0, 1e-300)] == [False, False, True]
    assert [Range().holds(x) for x in (math.nan, math.inf, -math.inf, 10**400)] == [False, False, False, True]


any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(sorted(Outer.__dataclass_fields__)), any_value)
def test_any_value_anywhere_is_taken_or_a_users_mistake(key: str, value: Any) -> None:
    with contextlib.suppress(UserError):
        parse(Outer, {"name": "x", key: value}, "file")
