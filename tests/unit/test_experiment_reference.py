"""docs/experiment.md against the records that experiment files become: every key, default, range and digest."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest

from steelyard.config import EVALUATORS, LAUNCHERS_KEYS, Experiment, load_experiment
from steelyard.data.deal import deal
from steelyard.data.partition import PARTITIONS
from steelyard.defence import FRAME, DefenceConfig
from steelyard.network import ClientLine, Fault, LineConfig
from steelyard.parsing import Range, parse
from steelyard.participation import KEYS, Stay
from steelyard.scoring.evaluators.base import EvaluatorParams

ITSELF = "The file itself"
NEEDED = object()
PAGE = (Path(__file__).parents[2] / "docs" / "experiment.md").read_text(encoding="utf-8")
_HEADINGS = re.split(r"\n##+ (.*)\n", PAGE)
SECTIONS = {heading.strip("`[]"): text for heading, text in zip(_HEADINGS[1::2], _HEADINGS[2::2], strict=True)}


class Row(NamedTuple):
    """A key's line in a table of the page."""

    default: str
    values: str
    digest: str
    text: str


class Declared(NamedTuple):
    """A key's field in a record."""

    hint: Any
    default: Any


def rows(section: str) -> dict[str, Row]:
    table = SECTIONS[section].partition("| key |")[2].partition("\n\n")[0]
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()[2:]]
    return {key.strip("`"): Row(*others) for key, *others in cells}


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return NEEDED if field.default is dataclasses.MISSING else field.default


def fields(record: type[Any]) -> dict[str, Declared]:
    hints = get_type_hints(record, include_extras=True)
    return {field.name: Declared(hints[field.name], default_of(field)) for field in dataclasses.fields(record)}


def declared() -> dict[str, dict[str, Declared]]:
    """What the code knows, by section and key."""
    experiment = fields(Experiment)
    sections = {name: type(default) for name, (_, default) in experiment.items() if dataclasses.is_dataclass(default)}
    plain = ("attack", "defence", "evaluators")
    attacked = Experiment(name="x", attack={"name": "label_flip"})
    attack = {
        "name": NEEDED,
        "clients": attacked.attackers,
        "knowledge": "public" if attacked.knows_public(0) else "own",
        "collude": bool(attacked.ring_of(0)),
        "compare_honest": attacked.compares_honest,
    }
    assert set(attack) == {"name", *LAUNCHERS_KEYS}
    stay = dict(zip(KEYS, (NEEDED, Stay().join, None, None), strict=True))
    return {
        ITSELF: {name: field for name, field in experiment.items() if name not in (*sections, *plain)},
        **{name: fields(record) for name, record in sections.items()},
        "attack": {key: Declared(Any, default) for key, default in attack.items()},
        "clients.schedule": {key: Declared(Any, default) for key, default in stay.items()},
        "defence": {key: fields(DefenceConfig)[key] for key in FRAME} | {"name": Declared(str, NEEDED)},
        "evaluators": fields(EvaluatorParams),
        "network.clients": {k: f for k, f in fields(ClientLine).items() if k not in fields(LineConfig)},
        "network.faults": fields(Fault),
    }


def parts(hint: Any) -> Iterator[Any]:
    """A type's arguments, theirs, and so on: ranges and literal words among them."""
    yield hint
    for part in get_args(hint):
        yield from parts(part)


def test_the_page_has_every_section_and_no_other() -> None:
    assert {section for section, text in SECTIONS.items() if "| key |" in text} == set(declared())


@pytest.mark.parametrize(("section", "keys"), declared().items(), ids=list(declared()))
def test_the_page_has_every_key_its_default_and_its_values(section: str, keys: dict[str, Declared]) -> None:
    assert set(rows(section)) == set(keys)
    for key, (hint, default) in keys.items():
        row = rows(section)[key]
        if default is NEEDED or default is None:
            assert row.default == ("needed" if default is NEEDED else "-"), key
        else:
            assert tomllib.loads(f"value = {row.default}")["value"] == json.loads(json.dumps(default)), key
        for part in parts(hint):
            assert not isinstance(part, Range) or str(part) in row.values, (key, part)
            assert not isinstance(part, str) or json.dumps(part) in SECTIONS[section], (key, part)


def test_the_page_says_what_belongs_to_the_digest() -> None:
    table: dict[str, Any] = {"name": "x", "network": {"profile": "lan"}, "scoring": {"examples": 100}}
    deciding = parse(Experiment, table, "test").deciding()
    for section in declared():
        for key, row in rows(section).items():
            place = deciding if section == ITSELF else deciding.get(section, {})
            plain = section in ("attack", "defence", "evaluators") or "." in section  # as written, as a whole
            if section != "placement":  # of which the kinds alone count
                assert row.digest == ("yes" if plain or key in place else "no"), (section, key)
    assert [row.digest for row in rows("placement").values()] == ["no", "yes, their kinds"]


def test_the_page_names_partitions_and_default_evaluators_and_its_example_can_be_dealt(tmp_path: Path) -> None:
    assert all(f'\n| "{name}" |' in SECTIONS["data"] for name in PARTITIONS)
    assert all(f"`{table['name']}`" in SECTIONS["evaluators"] for table in EVALUATORS)
    path = tmp_path / "first.toml"
    path.write_text(PAGE.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    dealt = deal(load_experiment(path))
    assert [len(set(shard.labels.tolist())) for shard in dealt.shards] == [3] * 5
