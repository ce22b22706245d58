"""Draws accuracy against images per class as SVG: a panel for each network, a line for each method.

The same input gives the same text. Every mark is a mean over sets. A bar is its 95 % interval; where there is one set, the mark
is hollow and has no bar. Marks that would cover each other are moved sideways a little. The names stand in the margins, so that
none is between lines: on the right those of lines and of marks in the last column, on the left those of all other marks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from scipy.optimize import isotonic_regression

PLOT, HEIGHT, INNER, GAP = 230.0, 330.0, 50.0, 12.5
"""Width and height of a panel's axes, the room beside its first column, and the least distance of two names, in pixels."""
CHARACTER, SHIFT, SPREAD = 6.3, 6.0, 56.0
"""Width of a character of a name; how far marks that would cover each other are apart, and how far all of them, in pixels."""
TOP, AXIS, SIDE, HEAD = 56.0, 46.0, 16.0, 40.0
"""Room above the first row, below and beside a panel, and for its title, in pixels."""

STYLE = """
  svg { --surface: #ffffff; --text: #1f2328; --muted: #59636e; --grid: #d8dee4; --rival: #9aa4af;
    --auto: #0a5fd0; --ours: #5a9ae6; --ours-text: #2b6cb8; }
  @media (prefers-color-scheme: dark) {
    svg { --surface: #0d1117; --text: #e6edf3; --muted: #9198a1; --grid: #2a313a; --rival: #656e79;
      --auto: #62adff; --ours: #3f7fc9; --ours-text: #5f9de0; }
  }
  text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: var(--muted); }
  .title { font-size: 15px; font-weight: 600; fill: var(--text); }
  .head { font-size: 13px; font-weight: 600; fill: var(--text); }
  .surface, .one { fill: var(--surface); }
  .grid { stroke: var(--grid); }
  .line { fill: none; }
  .lead { stroke-width: .7; opacity: .6; }
  g.rival { stroke: var(--rival); stroke-width: 1.1; } g.rival .many { fill: var(--rival); }
  g.plain { stroke: var(--text); stroke-width: 1.4; } g.plain .many { fill: var(--text); } text.plain { fill: var(--text); }
  g.dashed .line { stroke-dasharray: 4 3; }
  g.ours { stroke: var(--ours); stroke-width: 2; } g.ours .many { fill: var(--ours); }
  text.ours { fill: var(--ours-text); font-weight: 600; }
  g.auto { stroke: var(--auto); stroke-width: 3; } g.auto .many { fill: var(--auto); }
  text.auto { fill: var(--auto); font-weight: 700; font-size: 12.5px; }
"""


@dataclass(frozen=True)
class Point:
    """The mean accuracy of some sets in per cent, and half of its 95 % interval; None where there is one set."""

    ipc: int
    mean: float
    half: float | None
    sets: int


@dataclass(frozen=True)
class Series:
    """The points of a method. `css` is one or several of the classes in `STYLE`: auto, ours, plain, dashed, rival."""

    name: str
    css: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """The methods that one network judged."""

    title: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class _Scale:
    """The axes of all panels of a picture."""

    ipcs: tuple[int, ...]
    low: float
    high: float

    def x(self, ipc: float) -> float:
        if len(self.ipcs) == 1:
            return PLOT / 2
        first, last = math.log(self.ipcs[0]), math.log(self.ipcs[-1])
        return INNER + (PLOT - 1.7 * INNER) * (math.log(ipc) - first) / (last - first)

    def y(self, value: float) -> float:
        return HEIGHT * (self.high - value) / (self.high - self.low)


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions nearest to those that are wanted, in least squares, such that neighbours are `gap` apart or more.

    Args:
        wanted: positions in rising order.
        gap: the least distance of two neighbours.
        low, high: the bounds. Where there is too little room between them, the last positions lie above `high`.
    """
    if not wanted:
        return []
    free = isotonic_regression([y - gap * i for i, y in enumerate(wanted)]).x
    return [min(max(z, low), max(low, high - gap * (len(wanted) - 1))) + gap * i for i, z in enumerate(free)]


def drawn(title: str, notes: Sequence[str], rows: Sequence[Sequence[Panel]]) -> str:
    """The picture as the text of an SVG file.

    Args:
        title: the heading.
        notes: lines below the heading.
        rows: the panels. All panels share both axes.
    """
    points = [point for row in rows for panel in row for series in panel.series for point in series.points]
    low, high = min(p.mean for p in points), max(p.mean for p in points)
    scale = _Scale(tuple(sorted({p.ipc for p in points})), 5 * math.floor((low - 1) / 5), 5 * math.ceil((high + 1) / 5))
    top, width, parts = TOP + 14 * len(notes), 0.0, []
    for row in rows:
        x = SIDE + 24
        for panel in row:
            left, right = _margins(panel, scale)
            parts += _panel(panel, scale, x + left, top + HEAD)
            x += left + PLOT + right + SIDE
        width, top = max(width, x), top + HEAD + HEIGHT + AXIS
    width = max(width, 2 * SIDE + 8 * len(title), *(2 * SIDE + 5.6 * len(note) for note in notes))
    words = [_text(SIDE, 28, title, "title"), *(_text(SIDE, 48 + 14 * i, note) for i, note in enumerate(notes))]
    named = [p for row in rows for panel in row for p in _said(panel)]
    size = f"{width:.0f} {top:.0f}"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{width:.0f}" height="{top:.0f}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(' '.join(named))}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="surface" width="{width:.0f}" height="{top:.0f}"/>',
        *words,
        *parts,
        "</svg>",
        "",
    ])  # fmt: skip


def _said(panel: Panel) -> Iterator[str]:
    """The panel in words, for those who do not see it."""
    for series in panel.series:
        told = "; ".join(f"{_value(p)} with {p.ipc} per class" for p in series.points)
        yield f"{panel.title}, {series.name}: {told}."


def _value(point: Point) -> str:
    spread = "one set" if point.half is None else f"± {point.half:.1f}, {point.sets} sets"
    return f"{point.mean:.1f} % ({spread})"


def _label(series: Series, right: bool) -> str:
    point = series.points[-1 if right else 0]
    return f"{series.name} {point.mean:.1f}" if right else f"{point.mean:.1f} {series.name}"


def _sides(panel: Panel) -> tuple[list[Series], list[Series]]:
    """The series that have their names on the left and on the right of the panel."""
    last = max(point.ipc for series in panel.series for point in series.points)
    right = [s for s in panel.series if len(s.points) > 1 or any(point.ipc == last for point in s.points)]
    return [series for series in panel.series if series not in right], right


def _margins(panel: Panel, scale: _Scale) -> tuple[float, float]:
    """The room that names need on the left and on the right of the axes."""
    left, right = ([len(_label(s, bool(i))) * CHARACTER for s in side] for i, side in enumerate(_sides(panel)))
    end = max(x for x, _ in _places(panel, scale).values()) + 24
    return max(left, default=-6.0) + 6, max(0.0, end + max(right, default=0.0) - PLOT)


def _panel(panel: Panel, scale: _Scale, left: float, top: float) -> Iterator[str]:
    yield f'<g transform="translate({left:.1f} {top:.1f})">'
    yield _text(0, -22, panel.title, "head")
    for value in range(int(scale.low), int(scale.high) + 1, 5):
        yield f'<path class="grid" d="M0 {scale.y(value):.1f}H{PLOT:.1f}"/>'
        yield _text(1, scale.y(value) - 3, f"{value}")
    places = _places(panel, scale)
    for series in panel.series:
        yield from _series(series, scale, places)
    for right, side in enumerate(_sides(panel)):
        yield from _names(side, bool(right), scale, places)
    for ipc in scale.ipcs:
        yield _text(scale.x(ipc), HEIGHT + 16, f"{ipc}", anchor="middle")
    yield _text(PLOT / 2, HEIGHT + 31, "images per class", anchor="middle")
    yield "</g>"


Places = dict[tuple[str, int], tuple[float, float]]
"""Where the mark of a series and a number of images per class is."""


def _places(panel: Panel, scale: _Scale) -> Places:
    """The marks. Marks of one column whose bars would cover each other stand side by side around the middle of the column."""
    places: Places = {}
    for ipc in scale.ipcs:
        found = [(series, p) for series in panel.series for p in series.points if p.ipc == ipc]
        for lanes in _lanes([(s.name, scale.y(p.mean), *_extent(s, p, scale)) for s, p in found]):
            last = max(lane for _, _, lane in lanes)
            for name, y, lane in lanes:
                aside = min(SHIFT, SPREAD / max(1, last)) * (lane - last / 2)
                places[name, ipc] = (scale.x(ipc) + aside, y)
    return places


def _extent(series: Series, point: Point, scale: _Scale) -> tuple[float, float]:
    """The upper and the lower end of a mark and its bar."""
    y, radius = scale.y(point.mean), _radius(series) + 1
    ends = (y, y) if point.half is None else _bar(point, scale)
    return min(y - radius, ends[0]), max(y + radius, ends[1])


def _bar(point: Point, scale: _Scale) -> tuple[float, float]:
    """The ends of the bar, which is cut at the edges of the axes."""
    upper, lower = (scale.y(point.mean + sign * (point.half or 0)) for sign in (1, -1))
    return max(upper, 0.0), min(lower, HEIGHT)


def _radius(series: Series) -> float:
    return 4.5 if series.css == "auto" else 3


def _lanes(marks: Sequence[tuple[str, float, float, float]]) -> Iterator[list[tuple[str, float, int]]]:
    """Groups of marks that cover each other, each with its lane. A mark is its name, its place and its two ends. A mark takes
    the first lane in which there is room."""
    group: list[tuple[str, float, int]] = []
    ends: list[float] = []
    for name, y, upper, lower in sorted(marks, key=lambda mark: (mark[2], mark[0])):
        if ends and upper > max(ends):
            yield group
            group, ends = [], []
        lane = next((k for k, end in enumerate(ends) if upper > end), len(ends))
        ends[lane : lane + 1] = [lower]
        group.append((name, y, lane))
    if group:
        yield group


def _series(series: Series, scale: _Scale, places: Places) -> Iterator[str]:
    yield f'<g class="{series.css}">'
    route = [places[series.name, p.ipc] for p in series.points]
    if len(route) > 1:
        yield f'<path class="line" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in route)}"/>'
    for (x, y), point in zip(route, series.points, strict=True):
        if point.half is not None:
            upper, lower = _bar(point, scale)
            yield f'<path d="M{x:.1f} {upper:.1f}V{lower:.1f}"/>'
        about = f"{series.name}, {point.ipc} per class: {_value(point)}"
        css = "one" if point.half is None else "many"
        yield f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{_radius(series)}"><title>{escape(about)}</title></circle>'
    yield "</g>"


def _names(side: Sequence[Series], right: bool, scale: _Scale, places: Places) -> Iterator[str]:
    """The names of series and their values, each with a thin line to its mark."""
    ends = {s.name: places[s.name, s.points[-1 if right else 0].ipc] for s in side}
    ordered = sorted(side, key=lambda s: (ends[s.name][1], s.name))
    placed = spread_out([ends[s.name][1] for s in ordered], GAP, 0, HEIGHT)
    x = max((x for x, _ in ends.values()), default=0) + 24 if right else -6.0
    way, anchor = (1, "start") if right else (-1, "end")
    for series, y in zip(ordered, placed, strict=True):
        (px, py), css = ends[series.name], series.css
        yield f'<g class="{css}"><path class="lead" d="M{px + 5 * way:.1f} {py:.1f}L{x - 3 * way:.1f} {y:.1f}"/></g>'
        yield _text(x, y + 4, _label(series, right), css, anchor)


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "") -> str:
    more = (f' class="{css}"' if css else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'
