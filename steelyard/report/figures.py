"""Figures as SVG text, drawn by a few small functions. They know numbers and words, no run; every word is escaped.

Pixels throughout, y downwards. A figure needs no script, no font file and no style sheet, so that it stands in a page
and alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 330
LEFT, RIGHT, TOP, BOTTOM = 68, 20, 56, 50
ROW = 30
INK, FAINT, HONEST, BENIGN, ATTACKER = "#1f2933", "#d5dbe1", "#a9b4bf", "#3f72a6", "#c43d2b"
FONTS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MAX_LABELS = 24


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One bar per client: heights (None: no number), standard errors (None: not known) and a colour each."""

    label: str
    heights: Sequence[float | None]
    errors: Sequence[float | None]
    colours: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve through points at x = first, first + 1, ...; None is no number, and no point."""

    label: str
    values: Sequence[float | None]
    colour: str
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Span:
    """One row of an interval figure: a mean, its interval (infinite ends: not known), and the numbers in words."""

    label: str
    words: str
    mean: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True)
class Axis:
    """Maps the span of its marks to the plot's height."""

    marks: Sequence[float]

    def y(self, value: float) -> float:
        """The pixel row of a value."""
        low, high = self.marks[0], self.marks[-1]
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def bar_figure(title: str, unit: str, groups: Sequence[Bars], names: Sequence[str], legend: Sequence[Line]) -> str:
    """Bars side by side, one group of them per name; `legend` gives labels and colours alone."""
    known = [(h, e or 0.0) for bars in groups for h, e in zip(bars.heights, bars.errors, strict=True) if h is not None]
    axis = Axis(ticks(min([0.0, *(h - e for h, e in known)]), max([0.0, *(h + e for h, e in known)])))
    pitch = (WIDTH - LEFT - RIGHT) / len(names)
    width = min(pitch * 0.76 / len(groups), 34)
    parts = []
    for index, name in enumerate(names):
        middle = LEFT + pitch * (index + 0.5)
        for place, bars in enumerate(groups):
            x = middle + (place - len(groups) / 2) * width
            parts.append(_bar(axis, x, width - 2, bars.heights[index], bars.errors[index], bars.colours[index]))
        if index % math.ceil(len(names) / MAX_LABELS) == 0:
            colour = ATTACKER if ATTACKER in {bars.colours[index] for bars in groups} else INK
            parts.append(_text(middle, HEIGHT - BOTTOM + 18, name, colour=colour))
    parts.append(_rule(axis.y(0), INK))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "client"))
    return _figure(title, unit, axis, parts, legend)


def line_figure(title: str, unit: str, lines: Sequence[Line], first: int) -> str:
    """Curves by round, the first point of each at round `first`."""
    values = [value for line in lines for value in line.values if value is not None]
    axis = Axis(ticks(min(values, default=0.0), max(values, default=0.0)))
    last = first + max(len(line.values) for line in lines) - 1
    step = (WIDTH - LEFT - RIGHT - 30) / max(1, last - first)

    def x(round_: int) -> float:
        return LEFT + 15 + (round_ - first) * step

    parts = [
        _text(x(r), HEIGHT - BOTTOM + 18, str(r))
        for r in range(first, last + 1)
        if (r - first) % math.ceil((last - first + 1) / MAX_LABELS) == 0
    ]
    for line in sorted(lines, key=lambda line: line.dashed):  # dashes on top: two equal curves both show
        points = [(x(first + at), axis.y(value)) for at, value in enumerate(line.values) if value is not None]
        parts.extend(_curve(points, line))
    parts.append(_rule(HEIGHT - BOTTOM, INK))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "round"))
    return _figure(title, unit, axis, parts, lines)


def interval_figure(title: str, unit: str, spans: Sequence[Span]) -> str:
    """Means with their intervals from top to bottom, on one horizontal axis with a line at 0; bare without any."""
    left = 40 + 7 * max((len(span.label) for span in spans), default=0)
    right = WIDTH - 40 - 7 * max((len(span.words) for span in spans), default=0)
    height = TOP + BOTTOM + ROW * len(spans)
    ends = [end for span in spans for end in (span.mean, span.low, span.high) if math.isfinite(end)]
    marks = ticks(min([0.0, *ends]), max([0.0, *ends]))

    def x(value: float) -> float:
        return left + (min(max(value, marks[0]), marks[-1]) - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    parts = []
    for mark in marks:
        colour = INK if abs(mark) < 1e-12 else FAINT
        parts.append(
            f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{height - BOTTOM}" stroke="{colour}"/>'
        )
        parts.append(_text(x(mark), height - BOTTOM + 18, f"{mark:.{_digits(marks)}f}"))
    for row, span in enumerate(spans):
        y = TOP + ROW * (row + 0.5)
        bounds = f'x1="{x(span.low):.1f}" x2="{x(span.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(_text(16, y + 4, span.label, anchor="start"))
        if math.isfinite(span.low) and math.isfinite(span.high):
            parts.append(f'<line {bounds} stroke="{span.colour}" stroke-width="2.2"/>')
        parts.append(f'<circle cx="{x(span.mean):.1f}" cy="{y:.1f}" r="4" fill="{span.colour}"/>')
        parts.append(_text(WIDTH - 16, y + 4, span.words, anchor="end"))
    return _page(title, unit, height, parts)


def curve_figure(title: str, unit: str, lines: Sequence[Line], names: Sequence[str], axis_name: str) -> str:
    """Curves over named places, side by side at equal distances; the values' axis begins at 0."""
    axis = Axis(ticks(0.0, max(value for line in lines for value in line.values if value is not None)))
    step = (WIDTH - LEFT - RIGHT - 30) / max(1, len(names) - 1)
    parts = [_text(LEFT + 15 + at * step, HEIGHT - BOTTOM + 18, name) for at, name in enumerate(names)]
    for line in lines:
        points = [(LEFT + 15 + at * step, axis.y(v)) for at, v in enumerate(line.values) if v is not None]
        parts.extend(_curve(points, line))
    parts.append(_rule(HEIGHT - BOTTOM, INK))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, axis_name))
    return _figure(title, unit, axis, parts, lines)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that span low..high: multiples of 1, 2 or 5 times a power of ten, 4 to 9 of them."""
    span = high - low if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * at for at in range(start, max(stop, start + 1) + 1)]


def _figure(title: str, unit: str, axis: Axis, parts: Sequence[str], legend: Sequence[Line]) -> str:
    digits = _digits(axis.marks)
    grid = []
    for mark in axis.marks:
        grid.append(_rule(axis.y(mark), FAINT))
        grid.append(_text(LEFT - 8, axis.y(mark) + 4, f"{mark:.{digits}f}", anchor="end"))
    return _page(title, unit, HEIGHT, [*_legend(legend), *grid, *parts])


def _page(title: str, unit: str, height: int, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img" font-family="{FONTS}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(16, 22, title, anchor="start", size=15, weight="600"),
            _text(16, 42, unit, anchor="start", colour="#5b6875"),
            *parts,
            "</svg>",
        ]
    )


def _digits(marks: Sequence[float]) -> int:
    """Decimals that tell neighbouring marks apart."""
    return max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))


def _legend(lines: Sequence[Line]) -> list[str]:
    parts, x = [], WIDTH - RIGHT
    for line in reversed(lines):
        x -= 7 * len(line.label)
        parts.append(_text(x, 42, line.label, anchor="start"))
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        mark = f'x1="{x - 26}" x2="{x - 6}" y1="38" y2="38" stroke="{line.colour}" stroke-width="5"{dash}'
        parts.append(f"<line {mark}/>")
        x -= 44
    return parts


def _bar(axis: Axis, x: float, width: float, height: float | None, error: float | None, colour: str) -> str:
    if height is None:
        return ""
    top, foot = axis.y(max(height, 0.0)), axis.y(min(height, 0.0))
    parts = [f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{foot - top:.1f}" fill="{colour}"/>']
    if error:
        middle, up, down = x + width / 2, axis.y(height + error), axis.y(height - error)
        cap = min(4.0, width / 3)
        path = (
            f"M{middle:.1f} {up:.1f}V{down:.1f}"
            f"M{middle - cap:.1f} {up:.1f}h{2 * cap:.1f}M{middle - cap:.1f} {down:.1f}h{2 * cap:.1f}"
        )
        parts.append(f'<path d="{path}" stroke="{INK}" stroke-width="1.1" fill="none"/>')
    return "".join(parts)


def _curve(points: Sequence[tuple[float, float]], line: Line) -> list[str]:
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    circles = [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.8" fill="{line.colour}"/>' for px, py in points]
    return [f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2.2"{dash}/>', *circles]


def _rule(y: float, colour: str) -> str:
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", colour: str = INK, size: int = 12, weight: str = "400"
) -> str:
    style = f'text-anchor="{anchor}" fill="{colour}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
