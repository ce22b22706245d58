"""A report's numbers in words: how each number is written, one sentence that sums a report up, and further findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from dap.evaluation.report.meanings import noun_of
from dap.evaluation.report.records import SetRecord, is_number
from dap.evaluation.report.renderings.names import network_title
from dap.evaluation.report.spread import Difference, Stat, holm
from dap.evaluation.report.summary import Group, Row, Setting, recipe_key, spoken
from dap.protocol_names import ON_VALIDATION

DASH = "–"
PENDING = "no trials here"
"""For sets without a trial. A set may have been judged elsewhere since, so that a page cannot say that it never was."""


def percent(fraction: float | None) -> str:
    """A fraction as per cent with one decimal; a dash for None."""
    return DASH if fraction is None else f"{100 * fraction:.1f}"


def signed(fraction: float) -> str:
    """A difference of fractions in points, always with a sign: "+2.1", "−0.4", "0.0"."""
    points = f"{100 * fraction:+.1f}"
    return "0.0" if float(points) == 0 else points.replace("-", "−")


def figure(value: float | None) -> str:
    """A measured quantity to three significant digits ("5.40"), a dash for None."""
    if value is None:
        return DASH
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def plain(value: object) -> str:
    """A value of a recipe as it was set; a dash where there is no value."""
    if is_number(value):
        return f"{value:g}"
    return DASH if value is None or value == "" else str(value)


def scale(row: Row) -> tuple[str, str]:
    """The guidance scale and its unit; a dash and an empty text where the sample is unguided."""
    return (DASH, "") if not row.scale else (f"{row.scale:g}", row.unit)


def accuracy(stat: Stat | None) -> str:
    """An accuracy in per cent and its spread, as in "73.1 ± 0.9"; without "±" for a single trial."""
    if stat is None:
        return PENDING
    return percent(stat.mean) + ("" if stat.std is None else f" ± {percent(stat.std)}")


def trainings(stat: Stat | None) -> str:
    """The spread over trainings of one set, as in "± 0.5", where `accuracy` gives the spread over sets; else a dash."""
    return DASH if stat is None or stat.std_sets is None or stat.std_trials is None else f"± {percent(stat.std_trials)}"


def times(row: Row) -> str:
    """The numbers of sets and of trials per set, as in "3 × 2" or "3 of 5 × 2". Where sets have unequal numbers of
    trials, the total numbers of sets and trials."""
    of = len(row.group.sets)
    if not row.trials:
        return f"{of} × 0"
    sets = str(row.n_sets) if row.n_sets == of else f"{row.n_sets} of {of}"
    return f"{sets} × {row.trials[0]}" if len(set(row.trials)) == 1 else f"{sets} sets, {row.n_trials} trials"


def interval(difference: Difference) -> str:
    """The interval of a difference in points, as in "+0.6 to +3.6"; an empty text where there is no interval."""
    return f"{signed(difference.interval[0])} to {signed(difference.interval[1])}" if difference.interval else ""


STAR = "*"
"""The mark on a difference that survives Holm's correction."""


def survived(corrected: float | None) -> bool:
    """Whether a p-value that `spread.holm` corrected is below 5 %."""
    return corrected is not None and corrected < 0.05


def starred(corrected: Sequence[float | None], other: str = "vanilla") -> str:
    """The sentence on the stars of a column, from the corrected p-values of all its differences. Empty for less than two
    tests.

    Args:
        corrected: the p-values of the column in all blocks of the table.
        other: what the rows are compared with.
    """
    n = sum(p is not None for p in corrected)
    if n < 2:
        return ""
    over = f"Holm’s correction over {_all(n)} comparisons with {other}"
    if not any(map(survived, corrected)):
        return f"No difference survives {over} at 5\u00a0%."
    return f"{STAR}: the difference survives {over} at 5\u00a0%."


def _all(n: int) -> str:
    """How many comparisons there are in all, as a word of a sentence."""
    return "both" if n == 2 else f"all {n}"


@dataclass(frozen=True)
class Against:
    """The differences of all rows of a table to one kind of set, and which of them survive Holm's correction.

    Attributes:
        other: "vanilla" or "random".
        differences: of each row.
        corrected: the p-value of each row, corrected for all differences in `differences`.
    """

    other: str
    differences: tuple[Difference | None, ...]
    corrected: tuple[float | None, ...]

    @staticmethod
    def of(rows: Sequence[Row], other: str) -> Against:
        """The differences of these rows to "vanilla" or "random"."""
        found = tuple(_difference(row, other) for row in rows)
        return Against(other, found, tuple(holm([one.p if one else None for one in found])))

    def survives(self, i: int) -> bool:
        """Whether the difference of row i keeps its star. A single comparison needs no correction, and has none."""
        return self.tests > 1 and survived(self.corrected[i])

    @property
    def tests(self) -> int:
        """The number of differences that have a p-value."""
        return sum(p is not None for p in self.corrected)

    def doubted(self, row: Row) -> str:
        """What must be said of a difference whose interval is without 0 and that the correction does not leave; else ""."""
        difference = _difference(row, self.other)
        alike = (i for i, one in enumerate(self.differences) if one is difference)
        if difference is None or not difference.shown or self.tests < 2 or any(map(self.survives, alike)):
            return ""
        return f", which does not survive Holm’s correction over {_all(self.tests)} comparisons"

    def concerns(self, places: Iterable[int]) -> bool:
        """Whether the sentence on stars says something of these rows: a difference has a star or lacks one."""
        shown = (difference.shown for i in places if (difference := self.differences[i]))
        return self.tests > 1 and any(shown)

    @property
    def stars(self) -> str:
        """The sentence on the stars of this column."""
        return starred(self.corrected, self.other)


def setting_name(setting: Setting | None) -> str:
    """A setting in words, as in "convnet3, small-hard, 300 epochs, 10,000 test images"."""
    if setting is None:
        return PENDING
    epochs = f"{setting.epochs:,} epoch{'' if setting.epochs == 1 else 's'}" if setting.epochs else ""
    kind = "validation" if setting.protocol.endswith(ON_VALIDATION) else "test"
    images = f"{setting.n_test:,} {kind} {setting.noun}s" if setting.n_test else ""
    parts = (network_title(setting.network), setting.protocol, epochs, images, setting.apart)
    return ", ".join(filter(None, parts))


def count(n: int, noun: str) -> str:
    """A number and a noun, as in "one set" or "3 sets"."""
    return f"one {noun}" if n == 1 else f"{n:,} {noun}s"


def compared(name: str, difference: Difference, other: str = "vanilla") -> str:
    """A difference to vanilla or another kind of set in words, with interval and n: "no difference shown" where the interval
    includes 0."""
    n, m = difference.n
    sets = f"n = {n} sets each" if n == m else f"n = {n} and {m} sets"
    sets = f"n = {n} sets of the same seeds" if difference.paired else sets
    points = signed(difference.value)
    if difference.interval is None and min(n, m) > 1:
        equal = "gaps" if difference.paired else "accuracies of each"
        return f"{name}: {points} points against {other} ({sets}, and the {equal} are equal, so no spread is known)"
    if difference.interval is None:
        sets = "one set each" if n == m else f"{count(n, 'set')} against {m}"
        return f"{name}: {points} points against {other} ({sets}, so no spread is known and this may be chance)"
    where = f"95 % interval {interval(difference)}, {sets}"
    if not difference.shown:
        return f"no difference shown between {name} and {other} ({points} points, {where})"
    side = f"{points} points over" if difference.value > 0 else f"{points.lstrip('−')} points under"
    return f"{name} is {side} {other} ({where})"


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
    main = top.difference or (None if _has_vanilla(rows) else top.over_random)
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
        rest.append("There is no vanilla set here, so no difference to vanilla can be given")
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
    other = "vanilla" if row.difference or _has_vanilla(rows) else "random"
    return _told(row, rows, other)


def _told(row: Row, rows: Sequence[Row], other: str) -> str:
    """The difference of a row to vanilla or to random real images in words, and whether it survives; "" without one."""
    if not (difference := _difference(row, other)):
        return ""
    return compared(row.group.label, difference, other) + Against.of(rows, other).doubted(row)


def _difference(row: Row, other: str) -> Difference | None:
    return row.difference if other == "vanilla" else row.over_random


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


def _pick(row: Row, rows: Sequence[Row]) -> str:
    tried = len(_family(row, rows))
    return f", the best of {tried} tried and so an optimistic pick" if tried >= 3 else ""


def _findings(setting: Setting | None, rows: Sequence[Row]) -> list[tuple[Setting | None, str]]:
    """A line for each row with a difference. Of a sweep only the best point has a line, and the line says that it is the best."""
    here = [row for row in rows if row.setting == setting]
    lines = []
    for row in here:
        family = _family(row, here)
        if (told := _against(row, rows)) and (len(family) < 3 or row is max(family, key=_mean)):
            lines.append((setting, told + _pick(row, here)))
    return lines


def differing(groups: Sequence[Group]) -> tuple[list[str], list[list[str]], list[tuple[str, str]]]:
    """The recipe fields in which groups differ, each group's label, seeds and values of them, and the other fields.

    Groups differ in a field where the groups that set the field differ. Some fields are known to some methods only: a vanilla
    sample has no guidance. Such a field is among the other fields where all groups that set it agree.
    """
    recipes = [group.first.fields for group in groups]
    found: dict[str, list[str]] = {}
    for recipe in recipes:
        for field, value in recipe.items():
            if value is not None and field != "seed":
                found.setdefault(field, []).append(plain(value))
    fields = [field for field, values in found.items() if len(set(values)) > 1]
    body = [[g.label, seeds(g), *(plain(r.get(f)) for f in fields)] for g, r in zip(groups, recipes, strict=True)]
    shared = [
        (spoken(field), values[0] if len(values) == len(groups) else f"{values[0]} (in {len(values)} of {len(groups)})")
        for field, values in found.items()
        if field not in fields
    ]
    return fields, body, shared


def seeds(group: Group) -> str:
    """The seeds of a group's sets, as in "0, 1, 2"."""
    return ", ".join(DASH if seed is None else str(seed) for seed in group.seeds)
