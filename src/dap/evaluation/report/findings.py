"""What came out, in sentences: what was run and what came first, and one line for each further finding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from dap.evaluation.report.against import Against, compared, difference_to
from dap.evaluation.report.groups import recipe_key, varying
from dap.evaluation.report.meanings import noun_of
from dap.evaluation.report.records import SetRecord
from dap.evaluation.report.renderings.names import network_title
from dap.evaluation.report.summary import Row, Setting
from dap.evaluation.report.text import count, percent, setting_name
from dap.protocol_names import ON_VALIDATION


def summary(rows: Sequence[Row], sets: Sequence[SetRecord]) -> tuple[str, list[str]]:
    """One sentence that says what was run and what came first, and one line for each further finding."""
    groups = list(dict.fromkeys(row.group.key for row in rows))
    scored = [row for row in rows if row.score is not None]
    where = f"{count(len(sets), 'distilled set').capitalize()} in {count(len(groups), 'group')}{_data(sets)}"
    pending = [row.group.label for row in rows if row.score is None]
    outdated = [told for record in sets for told in record.outdated]
    if not scored:
        return (
            f"{where}. This page holds no trials: `dap evaluate` trains networks on sets, and writes a page of its own.",
            outdated,
        )
    # Choices are made on validation images, so a result on test images comes first.
    head = next((row for row in scored if not _on_validation(row)), scored[0])
    alike = [row for row in scored if row.setting == head.setting]
    first = [row for row in alike if row.ipc == alike[0].ipc]
    top = max(first, key=_mean)
    prefixes = _prefixes([row.setting for row in scored])
    several = len(prefixes) > 1
    told = _against(top, rows)
    chosen = _pick(top, first)
    main = difference_to(top, _other(top, rows))
    name = "it" if main and main.shown else top.group.label
    level = [row.group.label for row in first if percent(_mean(row)) == percent(_mean(top))]
    share = f"{', '.join(level[:-1])} and {level[-1]} share" if len(level) > 1 else f"{name} has"
    ahead = f"{share} the highest mean accuracy, {percent(_mean(top))} % ({top.headline} epoch){chosen}"
    ahead += f", at {count(top.ipc, top.group.first.noun)} per class" if len(first) < len(alike) else ""
    if len(first) == 1:
        ahead = f"{top.group.label} reaches {percent(_mean(top))} % ({top.headline} epoch)"
    outcome = "; ".join(filter(None, (told, ahead)))
    lines = [line for setting in dict.fromkeys(row.setting for row in scored) for line in _findings(setting, scored)]
    rest = [prefixes[setting] + line for setting, line in lines if (setting, line) != (top.setting, told + chosen)]
    if top.difference and top.over_random:
        rest.insert(0, prefixes[top.setting] + _told(top, rows, "random"))
    if not _has_vanilla(scored):
        lacks = "No vanilla set here has trials" if _has_vanilla(rows) else "There is no vanilla set here"
        rest.append(f"{lacks}, so no difference to vanilla can be given")
    for group in {row.group.key: row.group for row in scored if row.group.repeats}.values():
        those = "one set" if len(group.sets) == 1 else f"{len(group.sets)} sets"
        only = "" if len(group.sets) == 1 else " in part"
        held = f"The {group.repeats + len(group.sets)} sets of {group.label} hold the same images{only}"
        rest.append(f"{held}, so they count as {those}")
    if all(row.n_sets == 1 for row in scored):
        rest.append("Each group has one evaluated set, so no spread between sets is known")
    rest += _of_sizes(scored)
    if pending:
        rest.append(f"Without trials here: {', '.join(pending)}")
    closed = [f"N{line[1:]}." if line.startswith("no difference") else f"{line}." for line in rest]
    judged = setting_name(head.setting) if several or _on_validation(head) else network_title(str(top.network))
    return f"{where}, judged by {judged}: {outcome}.", [*outdated, *closed]


def _on_validation(row: Row) -> bool:
    return row.setting is not None and row.setting.protocol.endswith(ON_VALIDATION)


def _prefixes(settings: Sequence[Setting | None]) -> dict[Setting | None, str]:
    """The words that name the setting of a finding: none for a single setting, else the network, or the whole setting where a
    network has several."""
    distinct = list(dict.fromkeys(settings))
    networks = {setting.network for setting in distinct if setting}
    short = {s: network_title(s.network) if s and len(networks) == len(distinct) else setting_name(s) for s in distinct}
    return {setting: f"{name}: " if len(distinct) > 1 else "" for setting, name in short.items()}


def _of_sizes(rows: Sequence[Row]) -> list[str]:
    """A sentence where the images of the sets have several sizes."""
    sides = {row.group.label: row.group.first.fields.get("data.size") for row in rows}
    known = sorted({side for side in sides.values() if isinstance(side, int)})
    if len(known) < 2:
        return []
    of = "; ".join(f"{side} px: {', '.join(name for name, its in sides.items() if its == side)}" for side in known)
    return [
        f"The sets have images of several sizes, so their accuracies do not compare ({of}). Make them with one --size"
    ]


def _has_vanilla(rows: Sequence[Row]) -> bool:
    return any(row.group.first.unguided for row in rows)


def _against(row: Row, rows: Sequence[Row]) -> str:
    """The difference of a row to vanilla in words, or to random real images where no row is vanilla; "" without either."""
    return _told(row, rows, _other(row, rows))


def _other(row: Row, rows: Sequence[Row]) -> str:
    return "vanilla" if row.difference or _has_vanilla([one for one in rows if one.score]) else "random"


def _told(row: Row, rows: Sequence[Row], other: str) -> str:
    """The difference of a row to vanilla or to random real images in words, and whether it survives; "" without one."""
    if not (difference := difference_to(row, other)):
        return ""
    return compared(row.group.label, difference, other) + Against.of(rows, other).doubted(row)


def _mean(row: Row) -> float:
    return row.score.mean if row.score else 0.0


def _data(sets: Sequence[SetRecord]) -> str:
    names = {PurePath(str(record.fields.get("data.path", ""))).name for record in sets}
    ipc = {record.ipc for record in sets}
    images = f", {count(next(iter(ipc)), noun_of(one.noun for one in sets))} per class" if len(ipc) == 1 else ""
    return images + (f" of {next(iter(names))}" if len(names) == 1 and names != {""} else "")


def _family(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The rows that differ from this one in guidance scale and layer only."""
    key = recipe_key(row.group.first, "guidance.scale", "guidance.layer")
    return [other for other in rows if recipe_key(other.group.first, "guidance.scale", "guidance.layer") == key]


def _tried(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The rows of the same method, for as many images of the same data and backbone: whichever is best was picked among them."""
    fixed = ("method", "ipc", "data.", "backbone.", "drawn_from")
    apart = {one.group.key: varying([row.group.first, one.group.first]) for one in rows}
    return [one for one in rows if not any(f.startswith(fixed) or " " in f for f in apart[one.group.key])]


def _pick(row: Row, rows: Sequence[Row]) -> str:
    tried = _tried(row, rows)
    best = len(tried) >= 3 and row is max(tried, key=_mean)
    return f", the best of {len(tried)} tried and so an optimistic pick" if best else ""


def _findings(setting: Setting | None, rows: Sequence[Row]) -> list[tuple[Setting | None, str]]:
    """A line for each row with a difference. Of a sweep only the best point has a line, and the line says that it is the best."""
    here = [row for row in rows if row.setting == setting]
    lines = []
    for row in here:
        family = _family(row, here)
        if (told := _against(row, rows)) and (len(family) < 3 or row is max(family, key=_mean)):
            lines.append((setting, told + _pick(row, here)))
    return lines
