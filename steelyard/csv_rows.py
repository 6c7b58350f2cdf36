"""Rows of CSV files that a person may have cut or edited: what is wrong with one is said by file, line and column."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from steelyard.errors import UserError


class Row(dict[str, str]):
    """A row's cells by column, and where it stands."""

    def __init__(self, cells: Iterable[tuple[str, str]], path: Path, line: int) -> None:
        super().__init__(cells)
        self.path, self.line = path, line

    def number(self, column: str) -> float:
        """A cell as a number; nan and inf are some.

        Raises:
            UserError: it is none.
        """
        try:
            return float(self[column])
        except ValueError:
            raise self.wrong(f"a number as {column}", repr(self[column])) from None

    def whole(self, column: str) -> int:
        """A cell as a whole number.

        Raises:
            UserError: it is none.
        """
        try:
            return int(self[column])
        except ValueError:
            raise self.wrong(f"a whole number as {column}", repr(self[column])) from None

    def wrong(self, expected: str, got: object) -> UserError:
        """The error that says what was expected in this row and what came."""
        return UserError(f"{self.path}, line {self.line}: {expected} expected, got {got}")


def read_rows(path: Path, columns: Iterable[str]) -> list[Row]:
    """Read a CSV file whose header has at least some columns.

    Raises:
        UserError: a column is missing, a row has more or fewer cells than the header, the last one is not ended (the
            rest of its last cell may be gone), or the file is no such text.
        FileNotFoundError: there is no file.
    """
    needed = tuple(columns)
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = next(lines, [])
            if missing := [column for column in needed if column not in header]:
                raise UserError(
                    f"{path}, line 1: columns {', '.join(needed)} expected, {missing[0]} is not among "
                    f"{', '.join(header) or 'none: the file is empty'}"
                )
            rows = []
            for cells in lines:
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"{path}, line {lines.line_num}: {len(header)} cells expected, got {len(cells)}; is it cut?"
                    )
                if cells:
                    rows.append(Row(zip(header, cells, strict=True), path, lines.line_num))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {lines.line_num + 1}: a row of CSV in UTF-8 expected: {error}") from None
    if not path.read_bytes().endswith(b"\n"):
        raise UserError(
            f"{path}, line {lines.line_num}: an end of the line expected, got none: the file may be cut; if it is "
            "whole, end its last line"
        )
    return rows
