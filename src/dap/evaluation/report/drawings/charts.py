"""Small inline SVG charts. They take their colours from the CSS variables of the page, and so follow its light and dark theme.

This module computes the geometry; `templates/report.css` has the looks. All texts and attributes are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from markupsafe import Markup, escape

from dap.evaluation.report.records import is_number

Samples = tuple[float, ...]
X = float | str


@dataclass(frozen=True)
class Series:
    """One line of a chart: for each x the values of the sets at this x, in the unit of the y axis."""

    name: str
    points: tuple[tuple[X, Samples], ...]


@dataclass(frozen=True)
class Frame:
    """The size of a chart in pixels and its margins."""

    width: int
    height: int
    left: int = 44
    right: int = 14
    top: int = 30
    bottom: int = 46


COLOURS = 8
"""The number of series for which the page's CSS has colours, from `s1` on."""

WIDE, NARROW, SMALL = Frame(1136, 380, right=64), Frame(330, 280, right=52), Frame(360, 220)


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An SVG element: `class_` becomes class, `text_anchor` text-anchor; floats are rounded to a tenth of a pixel."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    texts = ((key, f"{value:.1f}" if isinstance(value, float) else value) for key, value in pairs)
    head = Markup("").join(Markup(' {}="{}"').format(Markup(key), value) for key, value in texts)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), head, Markup("").join(map(escape, children)))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within [low, high]; at least two for low < high."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return found if len(found) > 1 else ticks(low, high, about * 2)


def positions(values: Iterable[X], linear: bool = False) -> dict[X, float]:
    """Where each x lies between 0 and 1.

    The axis is logarithmic where the positive values span more than a factor of 8, unless `linear` is set; 0 then lies one mean
    step to the left of them. Else the axis is linear. Values that are not numbers, such as a layer named "mid", stand side by
    side in the given order.
    """
    named = list(dict.fromkeys(values))
    distinct = sorted(value for value in named if is_number(value))
    if len(distinct) < len(named) or distinct[0] < 0:
        return {value: (i + 0.5) / len(named) for i, value in enumerate(named)}
    positive = [value for value in distinct if value > 0]
    if logarithmic(distinct) and not linear:
        logs = [math.log(value) for value in positive]
        step = (logs[-1] - logs[0]) / (len(logs) - 1)
        placed = ([logs[0] - step] if distinct[0] == 0 else []) + logs
    else:
        placed = [float(value) for value in distinct]
    low, high = placed[0], placed[-1]
    return {value: (p - low) / (high - low) if high > low else 0.5 for value, p in zip(distinct, placed, strict=True)}


def logarithmic(values: Iterable[X]) -> bool:
    """Whether `positions` places these values on a logarithmic axis."""
    positive = [value for value in values if is_number(value) and value > 0]
    return len(positive) > 2 and max(positive) / min(positive) > 8


def _band(values: Samples) -> tuple[float, float]:
    spread = stdev(values) if len(values) > 1 else 0.0
    return fmean(values) - spread, fmean(values) + spread


def _extent(series: Sequence[Series], reference: float | None) -> tuple[float, float]:
    values = [v for s in series for _, sample in s.points for v in (*sample, *_band(sample))]
    values += [] if reference is None else [reference]
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def line_chart(
    series: Sequence[Series],
    xs: dict[X, float],
    frame: Frame,
    *,
    x_title: str,
    y_title: str,
    reference: float | None,
    dense: bool = False,
) -> Markup:
    """Means as a line, every set as a dot, ± one sample standard deviation as a band where points have several sets.

    Args:
        series: up to `COLOURS` lines, drawn in the colours `s1`, `s2`, ... of the page.
        xs: the place of each x, from `positions`. Charts with the same places line up.
        frame: size and margins.
        x_title: below the axis.
        y_title: above the axis, with its unit.
        reference: a dashed level (vanilla), or None.
        dense: whether there are many x on a linear axis. Then sets are not drawn, and not every x has a tick.
    """
    low, high = _extent(series, reference)
    inner_w, inner_h = frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
    inset = 10

    def px(x: X) -> float:
        return frame.left + inset + xs[x] * (inner_w - 2 * inset)

    def py(y: float) -> float:
        return frame.top + (high - y) / (high - low) * inner_h

    level = {"x1": frame.left, "x2": frame.width - frame.right}
    parts = [tag("text", y_title, x=0, y=13, class_="axis-title")]
    for value in ticks(low, high):
        parts.append(tag("line", **level, y1=py(value), y2=py(value), class_="grid"))
        parts.append(tag("text", f"{value:.6g}", x=frame.left - 8, y=py(value) + 4, text_anchor="end", class_="tick"))
    base = frame.height - frame.bottom
    parts += _x_axis(xs, px, base, frame, x_title, dense)
    if reference is not None:
        parts.append(tag("line", **level, y1=py(reference), y2=py(reference), class_="level"))
        if frame.right > 40:
            parts.append(tag("text", "vanilla", x=frame.width - frame.right + 5, y=py(reference) + 4, class_="tick"))
    for i, line in enumerate(series, start=1):
        parts.append(_line(line, px, py, f"series s{i}", dense))
    title = f"{y_title} against {x_title}: " + "; ".join(
        f"{s.name} " + ", ".join(f"{x} → {fmean(sample):.4g}" for x, sample in s.points) for s in series
    )
    return _svg(parts, frame.width, frame.height, title, "chart")


def _svg(parts: Iterable[Markup], width: int, height: int, label: str, css: str) -> Markup:
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return tag("svg", *parts, **size, role="img", aria_label=label, class_=css)


def _x_axis(
    xs: dict[X, float], px: Callable[[X], float], base: int, frame: Frame, title: str, dense: bool
) -> list[Markup]:
    parts = [tag("line", x1=frame.left, x2=frame.width - frame.right, y1=base, y2=base, class_="axis")]
    free = -math.inf
    for value in xs:
        text = f"{value:g}" if is_number(value) else str(value)
        half = 3.7 * len(text)
        if not dense or px(value) - half > free:
            parts.append(tag("line", x1=px(value), x2=px(value), y1=base, y2=base + 4, class_="axis"))
        if px(value) - half > free:
            parts.append(tag("text", text, x=px(value), y=base + 18, text_anchor="middle", class_="tick"))
            free = px(value) + half + 4
    if 0 in xs and logarithmic(xs) and not dense:
        middle = (px(0) + px(list(xs)[1])) / 2
        parts.append(tag("path", d=f"M{middle - 5:.1f} {base + 5}l4 -10m2 10l4 -10", class_="break"))
    centre = (frame.left + frame.width - frame.right) / 2
    parts.append(tag("text", title, x=centre, y=base + 38, text_anchor="middle", class_="axis-title"))
    return parts


def _line(series: Series, px: Callable[[X], float], py: Callable[[float], float], css: str, dense: bool) -> Markup:
    edges = [(px(x), *map(py, _band(sample))) for x, sample in series.points]
    parts = []
    if any(len(sample) > 1 for _, sample in series.points):
        around = [(x, high) for x, _, high in edges] + [(x, low) for x, low, _ in reversed(edges)]
        parts.append(tag("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in around), class_="band"))
    means = [(px(x), py(fmean(sample))) for x, sample in series.points]
    parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in means), class_="mean"))
    for x, sample in series.points:
        for value in () if dense else sample:
            hint = tag("title", f"{series.name}, {x}: {value:.4g}")
            parts.append(tag("circle", hint, cx=px(x), cy=py(value), r=3, class_="dot"))
    for (x, sample), (cx, cy) in zip(series.points, means, strict=True):
        spread = f" ± {stdev(sample):.2g}" if len(sample) > 1 else ""
        hint = tag("title", f"{series.name}, {x}: mean {fmean(sample):.4g}{spread} (n = {len(sample)})")
        parts.append(tag("circle", hint, cx=cx, cy=cy, r=3 if dense else 4.5, class_="point"))
    return tag("g", *parts, class_=css)


def strip(values: Samples, low: float, high: float, reference: float | None, css: str) -> Markup:
    """One row's sets as dots on an axis from `low` to `high`, their mean as a bar, vanilla's mean as a dashed line."""
    width, height, inset = 116, 34, 7

    def px(value: float) -> float:
        return inset + (value - low) / (high - low) * (width - 2 * inset) if high > low else width / 2

    parts = [tag("line", x1=0, x2=width, y1=height / 2, y2=height / 2, class_="grid")]
    if reference is not None:
        parts.append(tag("line", x1=px(reference), x2=px(reference), y1=0, y2=height, class_="level"))
    parts += [tag("circle", cx=px(value), cy=height / 2, r=3.5, class_="dot") for value in values]
    mean = px(fmean(values))
    parts.append(tag("line", x1=mean, x2=mean, y1=height / 2 - 8, y2=height / 2 + 8, class_="bar"))
    label = "per set: " + ", ".join(f"{100 * value:.1f}" for value in values)
    return _svg(parts, width, height, label, css)


def bar(mean: float, std: float | None, top: float, css: str) -> Markup:
    """A bar from 0 to `mean` on an axis that ends at `top`, and ± `std` as a whisker."""
    width, height = 132, 14

    def px(value: float) -> float:
        return width * min(max(value, 0.0), top) / top if top > 0 else 0.0

    parts = [tag("rect", x=0, y=0, width=width, height=height, class_="track")]
    parts.append(tag("rect", x=0, y=0, width=px(mean), height=height, class_="bar"))
    if std is not None:
        low, high, middle = px(mean - std), px(mean + std), height / 2
        path = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} 4v6M{high:.1f} 4v6"
        parts.append(tag("path", d=path, class_="whisker"))
    spread = "" if std is None else f" ± {100 * std:.1f}"
    return _svg(parts, width, height, f"{100 * mean:.1f}{spread}", css)
