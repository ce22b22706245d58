"""The report's tables beside the accuracies: measures, cost, recipes, networks, protocols and DD-Ranking's scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from dap.data.sets.differences import flatten
from dap.evaluation.report.cells import Cell, Column, cell, named
from dap.evaluation.report.drawings.charts import bar
from dap.evaluation.report.groups import Group, spoken
from dap.evaluation.report.meanings import MEANINGS, meaning, noun_of, ordered, own_meanings, worded
from dap.evaluation.report.records import MEASURES, Json, SetRecord, is_number
from dap.evaluation.report.renderings.names import network_title
from dap.evaluation.report.summary import Row, Setting, full_seconds, setting_of
from dap.evaluation.report.suspicious import known
from dap.evaluation.report.tables import Table, plain_table
from dap.evaluation.report.text import DASH, accuracy, count, differing, figure, percent, setting_name
from dap.evaluation.spread import Stat
from dap.evaluation.taken import ways

BOOKKEEPING = frozenset({"k", "classes", "images", "copies"})
"""Names of numbers in `measures.json` that are not measures."""
COPIES = "share of images that are near-copies of a real training image"


def distinct(values: Iterable[Any]) -> list[str]:
    """The values that are not None, as sorted strings."""
    return sorted({str(value) for value in values if value is not None})


def choices(groups: Sequence[Group]) -> list[str]:
    """What recipes left to `auto`, with the score of each candidate by each criterion; sets that share a choice share a line."""
    told: dict[str, None] = {}
    for group in groups:
        took = group.mean([full_seconds(record.cost) for record in group.sets])
        for choice in (choice for s in group.sets for choice in s.chosen.get("choices", [])):
            if set(choice["scores"]) == {"seconds"}:
                line = f"{group.label}: {_by_the_time(choice, took)}"
            else:
                line = f"{group.label}: {_by_a_criterion(choice, group.first.noun)}"
            told |= dict.fromkeys([line, *([f"{group.label}: {choice['warning']}"] if choice.get("warning") else [])])
    return list(told)


def _by_the_time(choice: Mapping[str, Any], took: float | None) -> str:
    """A choice of the method, or of how much work it does, by the time that each candidate was expected to take.

    The time that a set took stands behind the expected one, which may have been far off.
    """
    times = ", ".join(
        f"about {score:,.0f} s with {candidate}"
        for candidate, score in zip(choice["candidates"], choice["scores"]["seconds"], strict=False)
        if score is not None
    )
    budget = f", within {choice['limit']:,.0f} s" if choice.get("limit") else ""
    measured = "" if took is None else f"; a set took {took:,.0f} s"
    expected = f" Expected time: {times}{measured}." if times else ""
    return f"dap chose {choice['field']} = {choice['value']} by {choice['by']}{budget}.{expected}"


def _by_a_criterion(choice: Mapping[str, Any], noun: str) -> str:
    """A choice by criteria that were measured on real images or trial samples."""
    curves = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{candidate} {DASH if score is None else f'{score:.3f}'}"
            for candidate, score in zip(choice["candidates"], row, strict=False)
        )
        for name, row in choice["scores"].items()
    )
    limit = f"; at most {choice['limit']:.3f} is allowed" if choice.get("limit") is not None else ""
    return (
        f"{choice['field']} was left to auto and is {choice['value']}, by {choice['by']} on {choice['images']} {noun}s in "
        f"{choice['seconds']:.0f} s ({curves}{limit})."
    )


def measures_table(groups: Sequence[Group]) -> Table | None:
    """Every measure that some set has: the mean over a group's sets ± their spread. None without any but `MEASURES`."""
    found = {n for g in groups for s in g.sets for n, v in s.measures.items() if is_number(v) and n not in BOOKKEEPING}
    names = ordered(found)
    if not set(names) - set(MEASURES) and not any(map(_copied, groups)):
        return None
    columns = [Column("group", numeric=False)]
    own = own_meanings(s.measures for g in groups for s in g.sets)
    noun = noun_of(g.first.noun for g in groups)
    about = {name: own[name] if name in own and name not in MEANINGS else meaning(name) for name in names}
    columns += [
        Column(n.replace("_", " "), better=about[n].better, hint=worded(about[n].text, noun), field=n) for n in names
    ]
    copies = {g.key: _copied(g) if g.averaged else [] for g in groups}
    looked = any(copies.values())
    columns += (
        [Column("near-copies, %", better="lower", hint=worded(COPIES, noun), field="near_copies")] if looked else []
    )
    rows = []
    for g in groups:
        cells = [_measured(g.measure(name)) for name in names]
        if looked:
            share = copies[g.key]
            cells.append(Cell(percent(fmean(share)), fmean(share)) if share else Cell(DASH))
        if any(one.value is not None for one in cells):
            rows.append((named(g.label), *cells))
    features = distinct(s.measures.get("features") for g in groups for s in g.sets)
    note = f"Distances and neighbourhoods are within each class, in the features of: {', '.join(features)}."
    notes = [note] if features else []
    notes += ways(groups)
    if len(among := _searched(groups)) > 1:
        several = " and ".join(f"{n:,}" for n in among)
        notes.append(f"Near-copies were searched for among {several} real images, so their shares do not compare.")
    notes += distinct(_classifier(s.zeroshot) for g in groups for s in g.sets)
    return plain_table("measures", "Measures", tuple(columns), tuple(rows), " ".join(notes))


def _classifier(zeroshot: Json) -> str | None:
    """A sentence that says which backbone predicts the labels of `dap classify`, and how well; None where there are none."""
    real = zeroshot.get("real")
    if not (isinstance(real, dict) and is_number(real.get("accuracy")) and is_number(real.get("images"))):
        return None
    right = f"{percent(real['accuracy'])} % of {real['images']} real test images"
    return f"Zero-shot, {zeroshot.get('backbone')} is right on {right}."


def _copied(group: Group) -> list[float]:
    """The share of near-copies in every set of whose images it can all be said whether they are near-copies. [] where sets were
    searched for copies of unlike numbers of real images: among more images, more copies are found."""
    if len(_searched([group])) > 1:
        return []
    return [fmean(one["copy"] for one in images) for record in group.sets if (images := known(record))]


def _searched(groups: Sequence[Group]) -> list[int]:
    """Among how many real images near-copies were searched, where it is known."""
    summaries = [record.inspected.get("searched") for group in groups for record in group.sets]
    found = {one["pixel"] for one in summaries if isinstance(one, dict) and isinstance(one.get("pixel"), int)}
    return sorted(found)


def _measured(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(DASH)
    mean = fmean(values)
    std = stdev(values) if len(values) > 1 else None
    std = 0.0 if std is not None and std < 1e-12 * abs(mean) else std  # equal values, up to rounding
    return Cell(figure(mean).replace("-", "−"), mean, std, small="" if std is None else f"± {std:.2g}")


def cost_table(groups: Sequence[Group]) -> Table:
    """For each group: seconds for a set, the part of these that sets share, seconds for an image, peak memory in GB, what the
    method needs, seconds for a trial, and the devices of the trials."""
    numbers = (
        Column("s per set", hint="everything a set takes alone, what is shared counted in full", field="s_per_set"),
        Column(
            "s shared", hint="of these: made once and kept for all sets (--cache): trained networks, weights, clusters"
        ),
        Column(f"s per {noun_of(g.first.noun for g in groups)}"),
        Column("peak memory, GB", hint="of the process while it made the set, PyTorch's own included"),
        Column("s per trial"),
    )
    words = (Column("needs", numeric=False), Column("trials ran on", numeric=False))
    columns = (Column("group", numeric=False), *numbers, *words)
    rows = []
    for group in groups:
        costs, trials = [s.cost for s in group.sets], [t for s in group.sets for t in s.trials]
        full = [full_seconds(c) for c in costs]
        each = [s / c["images"] for s, c in zip(full, costs, strict=True) if c.get("images") and s is not None]
        peak = max((c["peak_memory_gb"] for c in costs if is_number(c.get("peak_memory_gb"))), default=None)
        shared = [sum(part["seconds"] for part in c.get("prepared", {}).values()) or None for c in costs]
        means = [group.mean(full), group.mean(shared), group.mean(each), peak]
        devices = ", ".join(distinct(t.get("device") for t in trials))
        needs = cell(", ".join(group.needs))
        rows.append((named(group.label), *(Cell(figure(v), v) for v in means), _training(group), needs, cell(devices)))
    return plain_table("cost", "Cost", columns, tuple(rows))


def _training(group: Group) -> Cell:
    """The mean seconds of a trial; from the least to the largest mean, where trials are of several settings or devices."""
    found: dict[str, list[float]] = {}
    for record in group.sets:
        for trial in record.trials:
            if is_number(trial.get("seconds")):
                on = f"{setting_name(setting_of(trial, record.noun))}, on {trial.get('device')}"
                found.setdefault(on, []).append(float(trial["seconds"]))
    means = {on: fmean(seconds) for on, seconds in found.items()}
    if len(means) < 2:
        mean = next(iter(means.values()), None)
        return Cell(figure(mean), mean)
    hint = "; ".join(f"{on}: {figure(mean)} s" for on, mean in means.items())
    return Cell(f"{figure(min(means.values()))} to {figure(max(means.values()))}", hint=hint)


def recipes_table(groups: Sequence[Group]) -> tuple[Table, list[tuple[str, str]]]:
    """A table of the recipe fields in which groups differ, and the other fields with the value that all groups
    share."""
    fields, body, shared = differing(groups)
    columns = (
        Column("group", numeric=False),
        Column("seeds", numeric=False),
        *(Column(spoken(f), False, field=f) for f in fields),
    )
    rows = tuple((named(label), *(Cell(v, None if v == DASH else v) for v in values)) for label, *values in body)
    return plain_table("recipes", "Recipes: what differs", columns, rows), shared


def networks_tables(groups: Sequence[Group], rows: Sequence[Row]) -> list[Table]:
    """For every protocol by which two networks or more were trained: the accuracy of each group on each network, with bars."""
    tables = []
    kinds = dict.fromkeys(_but_network(row.setting) for row in rows if row.setting)
    for kind in kinds:
        here = {(r.group.key, r.network): r for r in rows if r.setting and _but_network(r.setting) == kind}
        networks = list(dict.fromkeys(network for _, network in here))
        if len(networks) < 2:
            continue
        score: dict[tuple[str, str | None], Stat] = {key: row.score for key, row in here.items() if row.score}
        top = max(stat.mean + (stat.std or 0) for stat in score.values())
        columns = [
            Column("group", numeric=False),
            *(Column(network_title(network or ""), field=network or "") for network in networks),
        ]
        columns.append(Column("mean", hint="mean over the networks, of groups whose sets all networks were trained on"))
        body = []
        for group in groups:
            stats = [score.get((group.key, network)) for network in networks]
            cells = [_bar(stat, top, group.first.unguided) for stat in stats]
            means = [stat.mean for stat in stats if stat]
            same = (
                means and len({stat.seeds if stat else None for stat in stats}) == 1
            )  # else the networks saw different sets
            overall = fmean(means) if same else None
            if means:
                body.append((named(group.label), *cells, Cell(percent(overall), overall)))
        _, protocol, *rest = setting_name(here[next(iter(here))].setting).split(", ", 2)
        title = ", ".join([protocol, *rest])
        tables.append(plain_table("networks", f"{title}: accuracy ({kind[-1]}), %", tuple(columns), tuple(body)))
    return tables


def _but_network(setting: Setting) -> tuple[str, str, int | None, int | None, str]:
    return setting.apart, setting.protocol, setting.epochs, setting.n_test, setting.headline


def _bar(stat: Stat | None, top: float, unguided: bool) -> Cell:
    if stat is None:
        return Cell(DASH)
    drawing = bar(stat.mean, stat.std, top, "bars vanilla" if unguided else "bars")
    of = f"over {count(len(stat.sets), 'set')}" if len(stat.sets) > 1 else "over the trials of one set"
    return Cell(accuracy(stat), stat.mean, stat.std, hint="" if stat.std is None else of, drawing=drawing)


def protocols_used(sets: Sequence[SetRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every recorded protocol that a trial used, and its fields. The key tells two protocols of one name apart."""
    used = dict.fromkeys(str(trial["by"]) for s in sets for trial in s.trials if trial.get("by") is not None)
    known = {key: fields for s in sets for key, fields in s.protocols.items() if isinstance(fields, dict)}
    keys = [key for key in used if key in known]
    names = [str(known[key].get("name", key)) for key in keys]
    titles = [name if names.count(name) == 1 else f"{name} ({key})" for name, key in zip(names, keys, strict=True)]
    return [(title, _pairs(known[key])) for title, key in zip(titles, keys, strict=True)]


def _pairs(fields: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _said(value)) for name, value in flatten(fields).items() if name != "unsettled"]


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or DASH
    return DASH if value is None or value == {} else str(value)


RANKED = {
    "hlr": Column("HLR", better="lower", hint="accuracy of the real data less that of the set, both with hard labels"),
    "ior": Column("IOR", better="higher", hint="accuracy of the set less that of random images, judged alike"),
    "lrs": Column("LRS", better="higher", hint="label-robust score of HLR and IOR, a fraction"),
    "beta": Column("β", better="higher", hint="gain over random images with and without augmentation", field="beta"),
    "ars": Column("ARS", better="higher", hint="augmentation-robust score of β, a fraction"),
}


def ranking_table(groups: Sequence[Group]) -> Table | None:
    """DD-Ranking's scores, and every accuracy that they were computed from; None where no set has scores."""
    ranked = [(group, record) for group in groups for record in group.sets if record.ranking]
    flat = [(group, record, flatten(record.ranking)) for group, record in ranked]
    raw = dict.fromkeys(n for _, _, r in flat for n, v in r.items() if n not in RANKED and is_number(v))
    scores = [name for name in RANKED if any(is_number(r.get(name)) for _, _, r in flat)]
    if not scores:
        return None
    columns = [Column("group", numeric=False), Column("seed"), Column("network", numeric=False)]
    columns += [Column("protocols", numeric=False), *(RANKED[name] for name in scores)]
    columns += [Column(name.replace("_", " ").replace(".", " "), field=name) for name in raw]
    rows = []
    for group, record, values in flat:
        told = [_ranked(values.get(name), 100 if name in ("hlr", "ior", "beta") else 1) for name in scores]
        accuracies = [_accuracy(values.get(name)) for name in raw]
        roles = record.ranking.get("protocols")
        by = [f"{role}: {name}" for role, name in roles.items()] if isinstance(roles, Mapping) else []
        network = record.ranking.get("network")
        of = (network_title(network) if isinstance(network, str) else DASH, ", ".join(by) or DASH)
        rows.append((named(group.label), cell(record.seed), *map(Cell, of), *told, *accuracies))
    note = "HLR, IOR and β in points, LRS and ARS in fractions of 1 as DD-Ranking defines them; beside them the "
    note += "accuracies they come from, in %."
    return plain_table("ranking", "DD-Ranking", tuple(columns), tuple(rows), note)


def _ranked(value: object, factor: int) -> Cell:
    if not is_number(value):
        return Cell(DASH)
    text = f"{100 * value:.1f}" if factor == 100 else f"{value:.3f}"
    return Cell(text.replace("-", "−"), value)


def _accuracy(value: object) -> Cell:
    if not is_number(value):
        return Cell(DASH)
    return Cell(percent(value) if 0 <= value <= 1 else figure(value), value)
