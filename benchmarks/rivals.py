"""Keeps docs/rivals.csv, with a line for each training of the rivals, and makes the tables of docs/results.md from it.

    python benchmarks/rivals.py --add runs/ipc1 runs/ipc10     # adds the trainings of `dap compare`, each once
    python benchmarks/rivals.py --write                        # puts the tables into docs/results.md, between its marks
    python benchmarks/rivals.py --picture                      # draws docs/accuracy.svg and docs/accuracy-small-hard.svg

Accuracies are those of the last epoch. The mean of a set is the mean over its trainings. The tables show mean and sample
standard deviation over these per-set means (of a single set: over its trainings), and the difference to vanilla of the same
backbone with its 95 % interval. A star marks a difference that survives Holm's correction over all differences of its table.
All these numbers are computed as `dap compare` computes them (`dap.evaluation.spread`).
Where a set was drawn from a larger set, `ipc` is its own ipc and `drawn_from` is the ipc of the larger set.

`set_seconds` is `seconds` of the set's `cost.json`: the seconds that this set took itself. Sets may share work, such as
a trained network or clusters. Shared work that an earlier set had done already is not in `set_seconds`. Reports
(`dap.evaluation.report.summary.full_seconds`) count shared work in full for each set, so their "s per set" is larger
for methods that share work.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dap.base.files import write_atomically
from dap.evaluation.report.against import STAR, starred, survived
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.records import load_set
from dap.evaluation.report.text import DASH, accuracy, interval, signed
from dap.evaluation.spread import Difference, Stat, difference, holm, spread_of
from dap.methods import find

DOCS = Path(__file__).parents[1] / "docs"

COLUMNS = (
    "method", "backbone", "ipc", "drawn_from", "set_seed", "protocol", "network", "trial_seed",
    "last_percent", "best_percent", "set_seconds", "set_peak_gb", "options", "variant",
)  # fmt: skip

PUBLISHED: dict[str, dict[str, str]] = {
    "random": {"1": "51.4 ± 3.8", "10": "73.8 ± 0.7", "50": "82.5 ± 0.7"},
    "herding": {"1": "67.0", "10": "71.1", "50": "71.9"},
    "k-center": {"1": "66.9", "10": "54.7", "50": "68.3"},
    "dc": {"1": "70.5", "10": "82.3", "50": "83.6"},
    "dsa": {"1": "70.6", "10": "84.6", "50": "88.7"},
    "dm": {"1": "70.7", "10": "83.5", "50": "88.1"},
    "mtt": {"1": "75.3", "10": "87.2", "50": "88.3"},
}
"""Published accuracies in per cent, by method and images per class. The figures of DC and DSA are from the README of
VICO-UoE/DatasetCondensation. The other figures are from memory of papers."""

AUGMENTED = {"dsa", "dm", "mtt"}
"""Methods whose published figures are with DSA's augmentation. The figures of all other methods are without it."""

NETWORKS = {"convnet3": "ConvNet-3", "resnetap10": "ResNetAP-10", "resnet18": "ResNet-18"}
BACKBONES = {"starter": "DiT starter", "starter-unet": "U-Net starter"}
PICTURES = {"quick-hard": "accuracy.svg", "small-hard": "accuracy-small-hard.svg"}
"""The pictures in docs, by protocol."""
LAYERS = ("rival", "plain dashed", "plain", "ours", "auto")
"""The emphasis of lines, from the back to the front."""

BEGIN, END = "<!-- made by benchmarks/rivals.py --write -->", "<!-- made until here -->"

Line = dict[str, str]
ROW = ("method", "backbone", "options", "variant")
Row = tuple[str, ...]
"""What a row of a table stands for: the values of the columns in `ROW`."""


def trainings(folders: Iterable[Path], variant: str = "") -> list[Line]:
    """The lines of all trainings in folders of `dap compare`. `variant` is a name for what their recipes have other than
    the default and no column holds. Sets of several seeds with the same images, such as Herding's, are taken once."""
    found: list[Line] = []
    records = [load_set(f.parent) for folder in folders for f in sorted(folder.glob("*/seed*/trials.jsonl"))]
    for group in group_sets(records):
        for record in group.sets:
            known = {
                "method": record.method,
                "backbone": record.value("backbone.path") or "",
                "ipc": record.ipc,
                "drawn_from": record.recipe.get("drawn_from", ""),
                "set_seed": record.seed,
                "set_seconds": record.cost.get("seconds", ""),
                "set_peak_gb": record.cost.get("peak_memory_gb", ""),
                "options": json.dumps(record.recipe.get("options") or {}),
                "variant": variant,
            }
            for trial in record.trials:
                known |= {"protocol": trial["protocol"], "network": trial["network"], "trial_seed": trial["seed"]}
                known |= {f"{name}_percent": f"{100 * trial[name]:.2f}" for name in ("last", "best")}
                found.append({name: str(known[name]) for name in COLUMNS})
    return found


def merged(old: Iterable[Line], new: Iterable[Line]) -> list[Line]:
    """The lines of both, with each training once, sorted by ipc, protocol, network, method and so on. Where a training
    has several lines, the last line counts."""
    numbers = {"ipc", "drawn_from", "set_seed", "trial_seed"}
    first = (
        "ipc",
        "drawn_from",
        "protocol",
        "network",
        "method",
        "backbone",
        "options",
        "variant",
        "set_seed",
        "trial_seed",
    )

    def which(line: Line) -> tuple[Any, ...]:
        return tuple(int(line[name] or 0) if name in numbers else line[name] for name in first)

    every = {which(line): line for lines in (old, new) for line in lines}
    return [every[key] for key in sorted(every)]


def tables(lines: Sequence[Line]) -> str:
    """The tables of docs/results.md, as Markdown. Each ipc and protocol has a table for ConvNet-3, and a table of the
    sets that several networks judged. Sets that were drawn from larger sets have tables of their own."""
    made: list[str] = []
    whole = [line for line in lines if not line["drawn_from"]]
    for (ipc, protocol), of in _grouped(whole, "ipc", "protocol").items():
        own = [line for line in of if line["network"] == "convnet3"]
        title = (
            f"### {ipc} image{'s' if ipc != '1' else ''} per class, `{protocol.removesuffix('+looks=1')}`, ConvNet-3"
        )
        made += [title, _setting(own, ipc, protocol)] if own else []
    drawn = [line for line in lines if line["drawn_from"]]
    for (larger, protocol, network), of in _grouped(drawn, "drawn_from", "protocol", "network").items():
        full = [o for o in whole if (o["ipc"], o["protocol"], o["network"]) == (larger, protocol, network)]
        title = f"### Sets of {larger} images per class drawn down, `{protocol.removesuffix('+looks=1')}`, {network}"
        made += [title, _side_by_side([*full, *of], "ipc", lambda ipc: f"{ipc} per class")]
    for (ipc, protocol), of in _grouped([line | _judge(line) for line in whole], "ipc", "protocol").items():
        judged = _grouped(of, *ROW, "set_seed").values()
        across = [line for sets in judged if len({line["network"] for line in sets}) > 1 for line in sets]
        # A network that judged a single set allows no comparison.
        across = [line for sets in _grouped(across, "network").values() if len(sets) > 1 for line in sets]
        title = f"### {ipc} images per class, `{protocol}`, sets judged by several networks"
        made += [title, _side_by_side(across, "network", lambda name: name)] if across else []
    return "\n\n".join(made)


def picture(lines: Sequence[Line], protocol: str) -> str:
    """Accuracy against images per class by a protocol, as SVG: a panel for each backbone and network, and a line for each
    method. Methods without a backbone are in the panels of all. A cell that was not measured is not drawn."""
    import picture as drawing

    of = [o for o in lines if not o["drawn_from"] and not o["variant"] and o["network"] in NETWORKS]
    of = [o for o in of if o["protocol"].removesuffix("+looks=1") == protocol]
    panels = []
    for backbone in sorted({o["backbone"] for o in of} - {""}):
        here = [o for o in of if o["backbone"] in (backbone, "")]
        own = {o["network"] for o in here if o["backbone"]}
        for network in (name for name in NETWORKS if name in own):
            methods = _grouped((o for o in here if o["network"] == network), "method")
            series = tuple(
                drawing.Series(method, _emphasis(method), tuple(_points(found)))
                for (method,), found in sorted(methods.items())
            )
            ordered = sorted(series, key=lambda one: LAYERS.index(one.css))
            panels.append(drawing.Panel(f"{NETWORKS[network]}, {BACKBONES.get(backbone, backbone)}", tuple(ordered)))
    title = f"Fashion-MNIST: accuracy on the test images, %, by {protocol}"
    notes = (
        "Filled: mean of two sets or more, with its 95 % interval. Hollow: one set, so no interval is known.",
        "Of a method that was measured with several options, the one with most sets is shown. Crowded marks stand side by side.",
    )
    return drawing.drawn(title, notes, [panels[i : i + 3] for i in range(0, len(panels), 3)])


def _emphasis(method: str) -> str:
    base = method.removesuffix("+refine")
    known = {"auto": "auto", "dap": "ours", "dap-slots": "ours", "vanilla": "plain", "random": "plain dashed"}
    return known.get(base, "rival")


def _points(lines: Iterable[Line]) -> Iterator[Any]:
    """The points of a method's line. Of rows with several options the one with most sets counts, and of these the first."""
    from scipy.special import stdtrit

    from picture import Point

    for (ipc,), of in sorted(_grouped(lines, "ipc").items(), key=lambda group: int(group[0][0])):
        stat = max((_stat(row) for _, row in sorted(_grouped(of, *ROW).items())), key=lambda stat: len(stat.sets))
        n, std = len(stat.sets), stat.std_sets
        half = None if std is None else 100 * float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
        yield Point(int(ipc), 100 * stat.mean, half, n)


def _judge(line: Line) -> Line:
    """The line's protocol without the settings that were changed in it, and the network with these settings in
    brackets."""
    protocol, *changed = line["protocol"].split("+")
    said = ", ".join(part for part in changed if part != "looks=1")
    return {"protocol": protocol, "network": line["network"] + (f" ({said})" if said else "")}


def _setting(lines: Sequence[Line], ipc: str, protocol: str) -> str:
    rows = _stats(lines)
    augmented = "-dsa" in protocol
    shown: list[tuple[str, ...]] = []
    gaps = [_against_vanilla(row, rows) for row in rows]
    corrected = holm([gap.p if gap else None for gap in gaps])
    stars = starred(corrected)
    for (row, (stat, of)), found, p in zip(rows.items(), gaps, corrected, strict=True):
        method = row[0]
        each = sorted({len(scores) for scores in _scores(of).values()})
        gap = DASH
        if found is not None:
            gap = signed(found.value) + (STAR if stars and survived(p) else "")
            gap += f" ({interval(found)})" if found.interval else ""
        published = DASH
        if method in PUBLISHED and (method in AUGMENTED) == augmented and protocol.startswith("small-hard"):
            published = PUBLISHED[method].get(ipc, DASH)
        seconds = [float(line["set_seconds"]) for line in of if line["set_seconds"]]
        needs = ", ".join(sorted(find(method).needs - {"training"})) or DASH
        n = f"{len(stat.sets)} × {'/'.join(map(str, each))}"
        shown.append((_called(row, rows), accuracy(stat), n, gap, published, needs, f"{fmean(seconds):,.0f}"))
    heads = ("method", "accuracy, %", "sets × trainings", "against vanilla (95 %)", "published", "needs", "s a set")
    return _table(heads, shown) + (f"\n\n{stars.replace(STAR, chr(92) + STAR)}" if stars else "")


def _against_vanilla(row: Row, rows: Mapping[Row, tuple[Stat, list[Line]]]) -> Difference | None:
    """The difference of a row to vanilla of its backbone; None for vanilla itself, and where there is no vanilla."""
    method, backbone, *_ = row
    vanilla = rows.get(("vanilla", backbone or "starter", "{}", ""))
    return None if vanilla is None or method == "vanilla" else difference(rows[row][0], vanilla[0])


def _side_by_side(lines: Sequence[Line], by: str, called: Callable[[str], str]) -> str:
    """A table with a row for each method and a column for each value of `by`. Each cell says its number of sets. Columns that are
    numbers stand from large to small, columns that are names by name."""
    columns = sorted(
        {line[by] for line in lines}, key=lambda value: (-int(value), "") if value.isdigit() else (0, value)
    )
    rows = _stats(lines)
    shown = []
    for row, (_, of) in rows.items():
        cells = _grouped(of, by)
        stats = [_stat(cells[(value,)]) if (value,) in cells else None for value in columns]
        cells_of = (DASH if stat is None else f"{accuracy(stat)} ({len(stat.sets)})" for stat in stats)
        shown.append((_called(row, rows), *cells_of))
    return _table(("method", *(f"{called(column)} (sets)" for column in columns)), shown)


def _stats(lines: Sequence[Line]) -> dict[Row, tuple[Stat, list[Line]]]:
    """For each row its mean and spread, and its lines. The row with the highest mean comes first."""
    rows = {row: (_stat(of), of) for row, of in _grouped(lines, *ROW).items()}
    return {row: rows[row] for row in sorted(rows, key=lambda row: (-rows[row][0].mean, row))}


def _stat(lines: Sequence[Line]) -> Stat:
    scores = _scores(lines)
    return spread_of([*scores.values()], tuple(scores))


def _scores(lines: Sequence[Line]) -> dict[int, list[float]]:
    """The accuracies of the trainings of each set as fractions, by the seed of the set."""
    scores: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        scores[int(line["set_seed"])].append(float(line["last_percent"]) / 100)
    return scores


def _called(row: Row, rows: Iterable[Row]) -> str:
    """The name of a row: its method, its backbone unless this is the starter, the options in which rows of the same
    method and backbone differ, and its variant."""
    method, backbone, options, variant = row
    own = json.loads(options)
    others = [json.loads(other[2]) for other in rows if other[:2] == row[:2]]
    differing = [f"{name}={value}" for name, value in own.items() if any(other.get(name) != value for other in others)]
    differing += [variant] if variant else []
    name = method + (f"@{backbone}" if backbone not in ("", "starter") else "")
    return f"`{name}`" + (f" ({', '.join(differing)})" if differing else "")


def _grouped(lines: Iterable[Line], *by: str) -> dict[tuple[str, ...], list[Line]]:
    groups: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        groups[tuple(line[name] for name in by)].append(line)
    return groups


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def ledger(file: Path) -> list[Line]:
    """The lines of a ledger such as rivals.csv. A column that the file lacks is empty."""
    with file.open(newline="") as opened:
        return [{name: line.get(name) or "" for name in COLUMNS} for line in csv.DictReader(opened)]


def add(file: Path, new: Iterable[Line]) -> list[Line]:
    """The lines of a ledger with new lines, which are written to the file. A file that does not exist is made."""
    lines = merged(ledger(file) if file.exists() else (), new)
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([COLUMNS, *(line.values() for line in lines)])
    write_atomically(file, written.getvalue().encode())
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs="+", type=Path, default=[], metavar="DIR", help="folders of dap compare")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="with rivals.csv and results.md")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="another ledger than rivals.csv of that folder")
    parser.add_argument("--write", action="store_true", help="put the tables into results.md; else they are printed")
    parser.add_argument("--picture", action="store_true", help=f"draw {' and '.join(PICTURES.values())} in that folder")
    parser.add_argument(
        "--variant", default="", help="what the recipes of the added folders have other than the default"
    )
    args = parser.parse_args()
    file = args.ledger or args.docs / "rivals.csv"
    lines = add(file, trainings(args.add, args.variant)) if args.add else ledger(file)
    if args.picture:
        for protocol, name in PICTURES.items():
            (args.docs / name).write_text(picture(lines, protocol), encoding="utf-8")
    if not args.write:
        print("" if args.picture else tables(lines), end="" if args.picture else "\n")
        return
    page = args.docs / "results.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{tables(lines)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
