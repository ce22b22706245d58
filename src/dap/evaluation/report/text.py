"""A report's numbers in words: how each number is written, and the names of settings and groups."""

from __future__ import annotations

from collections.abc import Sequence

from dap.evaluation.report.groups import Group, spoken
from dap.evaluation.report.records import is_number
from dap.evaluation.report.renderings.names import network_title
from dap.evaluation.report.summary import Row, Setting
from dap.evaluation.spread import Difference, Stat
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
