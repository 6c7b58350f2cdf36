"""A heat map as SVG text: panels of coloured cells with their numbers in words. It knows numbers, no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
CELL_W, CELL_H, GAP, TOP = 150, 34, 26, 74
UP, DOWN, NONE = (196, 61, 43), (63, 114, 166), "#f2f4f6"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value, its words, and whether its interval excludes 0, which is drawn bold."""

    value: float
    words: str
    sure: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Cells by (row, column); red above 0, blue below, strongest at the largest magnitude of the panel."""

    title: str
    cells: Mapping[tuple[str, str], Cell]


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], panels: Sequence[Panel]) -> str:
    """Panels side by side, each with the same rows; a cell that is missing is grey."""
    left = 24 + 7 * max((len(row) for row in rows), default=0)
    panel_w = max(CELL_W * len(columns), *(8 * len(panel.title) for panel in panels), 0) + GAP
    width, height = left + panel_w * len(panels), TOP + CELL_H * len(rows) + 16
    parts = [_text(16, 24, title, size=15, weight=600, anchor="start")]
    parts += [_text(left - 10, TOP + CELL_H * (i + 0.5) + 4, row, anchor="end") for i, row in enumerate(rows)]
    for at, panel in enumerate(panels):
        x = left + panel_w * at
        parts.append(_text(x, 46, panel.title, anchor="start", weight=600))
        top = max((abs(cell.value) for cell in panel.cells.values()), default=0.0)
        for j, column in enumerate(columns):
            parts.append(_text(x + CELL_W * (j + 0.5), TOP - 8, column))
            for i, row in enumerate(rows):
                parts += _cell(x + CELL_W * j, TOP + CELL_H * i, panel.cells.get((row, column)), top)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="{FONT}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>",
        ]
    )


def colour(value: float, top: float) -> str:
    """White at 0, red towards `top`, blue towards minus `top`."""
    part = min(1.0, abs(value) / top) if top > 0 else 0.0
    end = UP if value > 0 else DOWN
    return "#" + "".join(f"{round(255 + (channel - 255) * 0.8 * part):02x}" for channel in end)


def _cell(x: float, y: float, cell: Cell | None, top: float) -> list[str]:
    fill = NONE if cell is None else colour(cell.value, top)
    box = f'<rect x="{x}" y="{y}" width="{CELL_W - 2}" height="{CELL_H - 2}" fill="{fill}"/>'
    if cell is None:
        return [box]
    return [box, _text(x + CELL_W / 2, y + CELL_H / 2 + 3, cell.words, size=11, weight=700 if cell.sure else 400)]


def _text(x: float, y: float, words: str, *, anchor: str = "middle", size: int = 12, weight: int = 400) -> str:
    style = f'text-anchor="{anchor}" fill="#1f2933" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
