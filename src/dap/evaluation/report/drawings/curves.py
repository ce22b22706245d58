"""Curves: accuracy and measures along a sweep of one recipe field, and accuracy along training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from dap.evaluation import taken
from dap.evaluation.report.drawings.charts import (
    COLOURS,
    NARROW,
    SMALL,
    WIDE,
    Series,
    line_chart,
    logarithmic,
    positions,
)
from dap.evaluation.report.groups import Group, described, sweeps, varying
from dap.evaluation.report.meanings import MEANINGS, noun_of, worded
from dap.evaluation.report.records import MEASURES, Json, is_number
from dap.evaluation.report.summary import Row, Setting, collect, reference, unlike
from dap.evaluation.report.text import setting_name

SWEPT = {
    "guidance.scale": ("Guidance scale", "scale"),
    "guidance.layer": ("Guidance layer", "layer"),
    "sampling.steps": ("Sampling steps", "sampling steps"),
    "ipc": ("Images per class", "images per class"),
}
"""Recipe fields whose sweeps are drawn: the heading, and the title of the x axis."""
UNITS = {"step": "scale, relative to the sampler's step", "paper": "scale γ, in the paper's unit"}
"""The title of the x axis of a scale sweep, by unit."""
LOOKS = 3
"""The smallest number of tested epochs of a trial for which its training is drawn."""


def curves(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Charts of all sweeps. A chart has up to four sweeps of the same field and unit."""
    return [chart for field in SWEPT for chart in _figures(groups, rows, field)]


def _figures(groups: Sequence[Group], rows: Sequence[Row], field: str) -> list[dict[str, Any]]:
    """Charts of the sweeps over one field. A chart has up to four sweeps of the same unit."""
    families = sweeps(groups, field)
    scaled = field == "guidance.scale"
    units = dict.fromkeys(family[0].first.guidance("unit") if scaled else None for family in families)
    figures = []
    for unit in units:
        alike = [f for f in families if not scaled or f[0].first.guidance("unit") == unit]
        for start in range(0, len(alike), 4):
            drawn = _figure(alike[start : start + 4], families, rows, field)
            figures += [drawn] if drawn["charts"] or drawn["small"] else []
    return figures


def _figure(
    together: list[list[Group]], families: list[list[Group]], rows: Sequence[Row], field: str
) -> dict[str, Any]:
    heading, x_title = (
        worded(text, noun_of(g.first.noun for family in together for g in family)) for text in SWEPT[field]
    )
    unit = str(together[0][0].first.guidance("unit") or "") if field == "guidance.scale" else ""
    x_title = UNITS.get(unit, f"{x_title} ({unit})") if unit else x_title
    names = [_sweep_name(family, families, field) for family in together]

    def drawn(samples: list[dict[str, tuple[float, ...]]]) -> list[Series]:
        lines = [
            Series(name, tuple((_x(g, field), found[g.key]) for g in family if found.get(g.key)))
            for name, family, found in zip(names, together, samples, strict=True)
        ]
        return lines if any(len(line.points) >= 3 for line in lines) else []

    xs = positions(_x(group, field) for family in together for group in family)
    charts, small = [], []
    for setting in dict.fromkeys(row.setting for row in rows if row.setting):
        here = [row for row in rows if row.setting == setting]
        found = {row.group.key: tuple(100 * v for v in row.score.sets) for row in here if row.score}
        if series := drawn([found] * len(together)):
            level = _level(together, here)
            mean = 100 * level.score.mean if level and level.score else None
            look = {"x_title": x_title, "y_title": f"accuracy ({setting.headline}), %", "reference": mean}
            charts.append(
                (setting_name(setting), line_chart(series, xs, WIDE, **look), line_chart(series, xs, NARROW, **look))
            )
    apart = taken.differing(record for family in together for group in family for record in group.sets)
    for name in () if apart else MEASURES:
        found = {g.key: g.measure(name) for family in together for g in family}
        if series := drawn([found] * len(together)):
            level = _level(together, rows)
            mean = level.measures[name] if level else None
            chart = line_chart(series, xs, SMALL, x_title=x_title.partition(",")[0], y_title=name, reference=mean)
            small.append((name, MEANINGS[name].short, chart))
    axis = ("logarithmic axis, 0 set apart" if 0 in xs else "logarithmic axis") if logarithmic(xs) else ""
    return {"name": heading, "axis": axis, "legend": names, "charts": charts, "small": small}


def _x(group: Group, field: str) -> float | str:
    value = group.first.value(field)
    return value if is_number(value) else str(value)


def _sweep_name(family: list[Group], families: list[list[Group]], field: str) -> str:
    first = family[0].first
    rivals = [other[0].first for other in families if other[0].first.method == first.method]
    detail = described(first, [f for f in varying(rivals) if f not in (field, "block")])
    return f"{first.title} ({detail})" if detail else first.title


def _level(together: list[list[Group]], rows: Sequence[Row]) -> Row | None:
    """The vanilla row that each point of a chart is compared with and that no sweep draws; None where there is no such row, where
    points have several, or where vanilla was sampled otherwise."""
    keys = {group.key for family in together for group in family}
    others = [row for row in rows if row.group.key not in keys]
    points = [(row, reference(row, others)) for row in rows if row.group.key in keys]
    alike = {level.group.key if level and not unlike(row, level) else None for row, level in points}
    return points[0][1] if len(alike) == 1 and None not in alike else None


def training(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Test accuracy by epoch, for each setting whose trials recorded it. Each group is a line: the mean of its sets."""
    figures = []
    for setting in dict.fromkeys(row.setting for row in rows if row.setting):
        here = [row for row in rows if row.setting == setting]
        lines = [line for row in here if (line := _along(row.group, setting))]
        for start in range(0, len(lines), COLOURS):
            drawn = lines[start : start + COLOURS]
            xs = positions((x for line in drawn for x, _ in line.points), linear=True)
            look = {"x_title": "epoch", "y_title": "accuracy, %", "reference": None, "dense": True}
            charts = [line_chart(drawn, xs, frame, **look) for frame in (WIDE, NARROW)]
            figures.append({"name": setting_name(setting), "legend": [line.name for line in drawn], "charts": charts})
    return figures


def _along(group: Group, setting: Setting) -> Series | None:
    """A group's accuracy in per cent at the epochs at which all of its trials were tested. Each set counts once."""
    sets = [[dict(_looks(trial)) for trial in trials] for _, trials in collect(group, setting)]
    shared = set.intersection(*(set(looks) for of_set in sets for looks in of_set)) if sets else set()
    if len(shared) < LOOKS:
        return None
    points = tuple((e, tuple(100 * fmean(looks[e] for looks in of_set) for of_set in sets)) for e in sorted(shared))
    return Series(group.label, points)


def _looks(trial: Json) -> list[tuple[float, float]]:
    curve = trial.get("curve")
    pairs = curve if isinstance(curve, list) else []
    return [(p[0], p[1]) for p in pairs if isinstance(p, list) and len(p) == 2 and all(map(is_number, p))]
