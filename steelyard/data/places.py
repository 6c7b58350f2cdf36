"""Where a data set's files may lie: the places to look, in order, and the cache that a download fills.

It owns the order and the message when all fails, and knows no data set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steelyard.errors import UserError

FOLDER_VARIABLE = "STEELYARD_DATA"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What finding a data set takes.

    Args:
        name: the data set's name.
        expected: what a place must hold, for a person.
        folders: names that its folder below STEELYARD_DATA may have; the cache has the first one.
        missing: names a file that a place lacks; "" when the place has all it needs.
        fill: fetches what a folder lacks, and raises `UserError` when it can't be had.
        installed: where a package of the system puts the files.
        hint: another way to get them, as "install ..."; "" if there is none.
    """

    name: str
    expected: str
    folders: tuple[str, ...]
    missing: Callable[[Path], str]
    fill: Callable[[Path], None]
    installed: tuple[Path, ...] = ()
    hint: str = ""


def find(source: Source, folder: str) -> Path:
    """The first place that has the files; else the cache, filled.

    The places, in order: the folder that STEELYARD_DATA names, and in it the source's folders; where packages put it;
    the cache, which is below STEELYARD_DATA or ~/.cache/steelyard. A `folder` that is named is the only one: other
    data than what was asked for would make a result of something else.

    Raises:
        UserError: no place has them and they cannot be fetched; every place is named.
    """
    if folder:
        named = Path(folder).expanduser()
        if lacking := source.missing(named):
            there = f"it has no {lacking}" if named.is_dir() else "there is no such folder"
            raise UserError(f"[data] folder: {source.expected} of {source.name} expected in {named}, {there}")
        return named
    tried: list[str] = []
    for place in _places(source):
        lacking = source.missing(place)
        if not lacking:
            return place
        tried.append(f"{place} (has no {lacking})" if place.is_dir() else f"{place} (no such folder)")
    cache = _cache(source)
    try:
        source.fill(cache)
    except UserError as error:
        by_hand = f"put the files into a folder and name it in [data] folder or in {FOLDER_VARIABLE}"
        advice = f"{source.hint}, or {by_hand}" if source.hint else by_hand
        raise UserError(
            f"{source.name}: {source.expected} expected in one of: {'; '.join(tried)}; "
            f"nor could they be fetched: {error}. {advice[0].upper()}{advice[1:]}"
        ) from None
    return cache


def _places(source: Source) -> list[Path]:
    places = []
    if root := os.environ.get(FOLDER_VARIABLE):
        places += [Path(root), *(Path(root, name) for name in source.folders)]
    return [*places, *source.installed, *([] if root else [_cache(source)])]


def _cache(source: Source) -> Path:
    root = os.environ.get(FOLDER_VARIABLE)
    return Path(root, source.folders[0]) if root else Path.home() / ".cache" / "steelyard" / source.folders[0]
