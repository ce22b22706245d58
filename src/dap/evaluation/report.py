"""One self-contained HTML page about distilled sets and their trials, with its tables as Markdown and CSV beside it.

The page needs no network: styles, script, charts and images are inside it, and its content security policy allows
nothing else. Whatever a set says about itself (class names, methods, commands) is text and is escaped as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dap.errors import DapError
from dap.evaluation.charts import NARROW, SMALL, WIDE, Series, line_chart, logarithmic, positions, strip
from dap.evaluation.gallery import gallery
from dap.evaluation.records import MEASURES, SetRecord, is_number, load
from dap.evaluation.summary import Group, Row, described, flatten, group_sets, reference, summarise, sweeps, varying
from dap.evaluation.wording import (
    DASH,
    accuracy,
    anticipated,
    comma_separated,
    differing,
    figure,
    grid,
    interval,
    scale,
    seeds,
    setting_name,
    signed,
    summary,
    table,
    times,
)

__all__ = ["Group", "Row", "SetRecord", "load", "summarise", "table", "write_report"]

DIRECTION = {
    "representativeness": "mean distance to real images; lower is closer",
    "diversity": "mean distance between a set's images; higher is more varied",
    "coverage": "share of real images with a distilled one nearby; higher is more",
}
SWEPT = {"scale": "Guidance scale", "layer": "Guidance layer"}
UNITS = {"step": "scale, relative to the sampler's step", "paper": "scale γ, in the paper's unit"}
"""What the x axis of a scale sweep says, by unit."""


def write_report(paths: Sequence[Path], out: Path, *, title: str, expected: Mapping[str, str] | None = None) -> Path:
    """Write the report on these sets: the page, and its tables as `.md` and `.csv` of the same name beside it.

    Args:
        paths: folders of distilled sets; those without trials are shown as not evaluated yet.
        out: the page (a name ending in .html), or a folder to hold `report.html`.
        title: the page's heading.
        expected: published or earlier figures by group label or method, shown beside the measured ones.

    Returns:
        The path of the page. Each file is replaced as a whole, the page last.

    Raises:
        FileNotFoundError: a path is not the folder of a distilled set.
        DapError: no set, an unreadable JSON file, or `out` cannot be written.
    """
    out = Path(out)
    page = out if out.suffix.lower() in {".html", ".htm"} else out / "report.html"
    sets = load(paths)
    rows = summarise(sets)
    expected = dict(expected or {})
    files = {
        page.with_suffix(".csv"): comma_separated(rows, expected),
        page.with_suffix(".md"): _markdown(rows, sets, title, expected),
        page: _html(rows, sets, title, expected),
    }
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            _replace(path, text)
    except OSError as error:
        raise DapError(f"cannot write the report to {page}: {error.strerror or error}; choose another place") from error
    return page


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _html(rows: Sequence[Row], sets: Sequence[SetRecord], title: str, expected: Mapping[str, str]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("dap.evaluation")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    css, script = (Markup(loader.get_source(page, f"report.{kind}")[0]) for kind in ("css", "js"))
    groups = group_sets(sets)
    sentence, findings = summary(rows, sets)
    fields, differences, shared = differing(groups)
    return page.get_template("report.html.j2").render(
        title=title,
        css=css,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sentence=_unbroken(sentence),
        findings=[_unbroken(line) for line in findings],
        tables=_tables(rows, expected),
        figures=[chart for field in SWEPT for chart in _figures(groups, rows, field)],
        gallery=gallery(groups),
        fields=fields,
        differences=differences,
        shared=shared,
        costs=_costs(groups),
        commands=_commands(groups),
        recipes=[(g.label, seeds(g), json.dumps(g.first.recipe, indent=2, ensure_ascii=False)) for g in groups],
        versions=_versions(sets),
        notes=_notes(rows, sets, expected),
        measures=DIRECTION,
        dash=DASH,
    )


def _unbroken(text: str) -> str:
    """With no-break spaces where a line should not end: "n = 5", "95 %"."""
    return text.replace("n = ", "n\u00a0=\u00a0").replace(" %", "\u00a0%")


def _tables(rows: Sequence[Row], expected: Mapping[str, str]) -> list[dict[str, Any]]:
    tables = []
    for setting in dict.fromkeys(row.setting for row in rows):
        here = [row for row in rows if row.setting == setting]
        values = [value for row in here if row.score for value in row.score.sets]
        present, sizes = {row.group.key for row in here}, {row.ipc for row in here}
        elsewhere = {row.group.key: row.group.label for row in rows if row.setting and row.ipc in sizes}
        lines = [_line(row, rows, (min(values), max(values)) if values else None, expected) for row in here]
        tables.append(
            {
                "name": "Not evaluated yet" if setting is None else setting_name(setting),
                "headline": setting.headline if setting else None,
                "rows": lines,
                "missing": [label for key, label in elsewhere.items() if setting and key not in present],
                "expected": any(line["expected"] for line in lines),
                "over_trials": any(
                    row.score and len(row.score.sets) == 1 and row.score.std is not None for row in here
                ),
                "unsure": any(row.difference and row.difference.interval and not row.difference.shown for row in here),
                "intervals": any(row.difference and row.difference.interval for row in here),
            }
        )
    return tables


def _line(
    row: Row, rows: Sequence[Row], span: tuple[float, float] | None, expected: Mapping[str, str]
) -> dict[str, Any]:
    level = reference(row, rows)
    css = "strip vanilla" if row.group.first.unguided else "strip"
    mean = level.score.mean if level and level.score else None
    return {
        "row": row,
        "note": row.group.note,
        "scale": scale(row),
        "accuracy": accuracy(row.score),
        "mean": row.score.mean if row.score else "",
        "strip": strip(row.score.sets, *span, mean, css) if row.score and span else "",
        "difference": signed(row.difference.value) if row.difference else DASH,
        "interval": interval(row.difference) if row.difference else "",
        "times": times(row),
        "measures": [(row.measures[name], figure(row.measures[name])) for name in MEASURES],
        "seconds": figure(row.seconds),
        "expected": anticipated(row, expected),
    }


def _figures(groups: Sequence[Group], rows: Sequence[Row], field: str) -> list[dict[str, Any]]:
    """Charts of sweeps over one guidance field, up to four sweeps of the same unit together."""
    families = sweeps(groups, field)
    units = dict.fromkeys(family[0].first.guidance("unit") if field == "scale" else None for family in families)
    figures = []
    for unit in units:
        alike = [f for f in families if field != "scale" or f[0].first.guidance("unit") == unit]
        for start in range(0, len(alike), 4):
            drawn = _figure(alike[start : start + 4], families, rows, field)
            figures += [drawn] if drawn["charts"] or drawn["small"] else []
    return figures


def _figure(
    together: list[list[Group]], families: list[list[Group]], rows: Sequence[Row], field: str
) -> dict[str, Any]:
    unit = str(together[0][0].first.guidance("unit") or "")
    x_title = UNITS.get(unit, f"scale ({unit})" if unit else "scale") if field == "scale" else "layer"
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
    for name in MEASURES:
        found = {g.key: g.measure(name) for family in together for g in family}
        if series := drawn([found] * len(together)):
            level = _level(together, rows)
            mean = level.measures[name] if level else None
            chart = line_chart(series, xs, SMALL, x_title=x_title.partition(",")[0], y_title=name, reference=mean)
            small.append((name, DIRECTION[name], chart))
    axis = ("logarithmic axis, 0 set apart" if 0 in xs else "logarithmic axis") if logarithmic(xs) else ""
    return {"name": SWEPT[field], "axis": axis, "legend": names, "charts": charts, "small": small}


def _x(group: Group, field: str) -> float | str:
    value = group.first.guidance(field)
    return value if is_number(value) else str(value)


def _sweep_name(family: list[Group], families: list[list[Group]], field: str) -> str:
    first = family[0].first
    rivals = [other[0].first for other in families if other[0].first.method == first.method]
    detail = described(first, [f for f in varying(rivals) if f != f"guidance.{field}"])
    return f"{first.method} ({detail})" if detail else first.method


def _level(together: list[list[Group]], rows: Sequence[Row]) -> Row | None:
    """The vanilla row that all sweeps of a chart share and none of them draws; None where there is no such row."""
    keys = {group.key for family in together for group in family}
    levels = [reference(row, [r for r in rows if r.group.key not in keys]) for row in rows if row.group.key in keys]
    found = {level.group.key for level in levels if level}
    return levels[0] if len(found) == 1 and levels[0] else None


def _costs(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Per group: seconds a set, seconds an image, peak GB, seconds a trial, and the devices trials ran on."""
    lines = []
    for group in groups:
        costs, trials = [s.cost for s in group.sets], [t for s in group.sets for t in s.trials]
        each = [c["seconds"] / c["images"] for c in costs if c.get("images") and is_number(c.get("seconds"))]
        peak = max((c["peak_memory_gb"] for c in costs if is_number(c.get("peak_memory_gb"))), default=None)
        devices = ", ".join(_distinct(t.get("device") for t in trials)) or DASH
        means = [group.mean([c.get("seconds") for c in costs]), group.mean(each), peak]
        lines.append((group.label, *map(figure, [*means, group.mean([t.get("seconds") for t in trials])]), devices))
    return lines


def _commands(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The distinct commands of each group; groups made by the same ones (a sweep) are named together."""
    made: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        made.setdefault(tuple(dict.fromkeys(s.command for s in group.sets if s.command)), []).append(group.label)
    names = {lines: ", ".join(labels) if len(labels) < len(groups) else "All sets" for lines, labels in made.items()}
    return [(names[lines] if len(groups) > 1 else groups[0].label, list(lines)) for lines in made]


def _versions(sets: Sequence[SetRecord]) -> list[tuple[str, str]]:
    try:
        ours = version("diffusion-as-priors")
    except PackageNotFoundError:
        ours = "source tree"
    made = {"written": f"{datetime.now():%Y-%m-%d %H:%M}", "dap": ours, "python": platform.python_version()}
    trained = {"torch (trials)": ", ".join(_distinct(t.get("torch") for s in sets for t in s.trials))}
    features = {"features (measures)": ", ".join(_distinct(s.measures.get("features") for s in sets))}
    stated = [flatten({k: s.env.get(k) for k in ("versions", "weights", "device") if s.env.get(k)}) for s in sets]
    names = dict.fromkeys(name for part in stated for name in part)
    texts = {name: ", ".join(_distinct(part.get(name) for part in stated)) for name in names}
    sampled = {f"{name.removeprefix('versions.')} (sets)": text for name, text in texts.items()}
    return [(name, text) for name, text in (made | trained | features | sampled).items() if text]


def _distinct(values: Iterable[Any]) -> list[str]:
    return sorted({str(value) for value in values if value is not None})


def _notes(rows: Sequence[Row], sets: Sequence[SetRecord], expected: Mapping[str, str]) -> list[str]:
    bad = [(s.path, s.unreadable) for s in sets if s.unreadable]
    notes = [f"{path}: {n} unreadable line(s) of trials.jsonl or manifest.jsonl left out." for path, n in bad]
    features = _distinct(s.measures.get("features") for s in sets)
    if len(features) > 1:
        notes.append(f"Measures were taken with different features ({', '.join(features)}) and do not compare.")
    known = {name for row in rows for name in (row.group.label, row.method)}
    absent = [f"{name} {text}" for name, text in expected.items() if name not in known]
    return notes + ([f"Expected, but not among these sets: {', '.join(absent)}."] if absent else [])


def _markdown(rows: Sequence[Row], sets: Sequence[SetRecord], title: str, expected: Mapping[str, str]) -> str:
    groups = group_sets(sets)
    sentence, findings = summary(rows, sets)
    fields, body, shared = differing(groups)
    parts = [f"# {title}", sentence, *([] if not findings else ["\n".join(f"- {line}" for line in findings)])]
    spread = "± is the sample standard deviation over sets, or over trials where there is one set."
    parts += ["## Accuracy", spread, table(rows, expected)]
    parts += ["## Recipes: what differs", grid(["group", "seeds", *fields], body)]
    parts += ["Shared: " + ", ".join(f"{field} {value}" for field, value in shared) + "."] if shared else []
    cost = ["group", "s per set", "s per image", "peak GB", "s per trial", "device"]
    parts += ["## Cost", grid(cost, _costs(groups))]
    parts += ["\n".join(f"- {note}" for note in _notes(rows, sets, expected))]
    return "\n\n".join(part.strip() for part in parts if part).replace("<", "&lt;") + "\n"
