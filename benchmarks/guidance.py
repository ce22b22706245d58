"""Keeps docs/guidance.csv, with a line for each set of the sweeps over DAP's own choices, and makes their tables.

    python benchmarks/guidance.py --add runs/paper-unit runs/two-by-two     # adds the sets of `dap sweep`, each once
    python benchmarks/guidance.py --write                                   # puts the tables into docs/results.md

Accuracies are those of the last epoch on training images that distillation never saw (`--on validation`), so that
choices can be made on them. The commands stand in docs/results.md beside the tables.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = (
    "scale", "unit", "last_step", "targets", "repulsion", "ipc", "set_seed", "protocol", "network", "trial_seed",
    "n_test", "last_percent", "representativeness", "diversity", "coverage",
)  # fmt: skip

Line = dict[str, str]
BEGIN, END = "<!-- {} made by benchmarks/guidance.py --write -->", "<!-- {} made until here -->"


def lines_of(folder: Path) -> list[Line]:
    """The lines of all sets in the folder of a sweep that have been judged."""
    found: list[Line] = []
    for file in sorted(folder.glob("*/seed*/trials.jsonl")):
        recipe = json.loads((file.parent / "recipe.json").read_text())
        measures = json.loads((file.parent / "measures.json").read_text())
        guidance = recipe["guidance"]
        known = {name: guidance[name] for name in ("scale", "unit", "last_step", "targets", "repulsion")}
        known |= {"ipc": recipe["ipc"], "set_seed": recipe["seed"]}
        known |= {name: f"{measures[name]:.4g}" for name in ("representativeness", "diversity", "coverage")}
        for trial in map(json.loads, file.read_text().splitlines()):
            known |= {"protocol": trial["protocol"], "network": trial["network"], "trial_seed": trial["seed"]}
            known |= {"n_test": trial["n_test"], "last_percent": f"{100 * trial['last']:.2f}"}
            found.append({name: str(known[name]) for name in COLUMNS})
    return found


def table(lines: list[Line], label: str, row_of: Callable[[Line], str | None]) -> str:
    """A table with one row for each value of `row_of`, in the order of the lines; None leaves a line out."""
    rows: dict[str, list[Line]] = {}
    for line in lines:
        if (name := row_of(line)) is not None:
            rows.setdefault(name, []).append(line)
    written = [
        f"| {label} | accuracy, % | n sets | representativeness | diversity | coverage |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, group in rows.items():
        values = [float(line["last_percent"]) for line in group]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        means = [fmean(float(line[part]) for line in group) for part in ("representativeness", "diversity", "coverage")]
        cells = [name, f"{fmean(values):.1f}{spread}", str(len(values)), *(f"{mean:.3g}" for mean in means)]
        written.append(f"| {' | '.join(cells)} |")
    return "\n".join(written)


def of_eq8(line: Line) -> str | None:
    """γ and whether the last step is guided, of the rows in the unit of Eq. 8."""
    if line["unit"] != "paper":
        return None
    return f"{float(line['scale']):g}" + ("" if line["last_step"] == "True" else ", no last push")


def of_choice(line: Line) -> str | None:
    """Targets and repulsion, of the rows at γ = 0.06 steps."""
    return f"`{line['targets']}`, λ = {float(line['repulsion']):g}" if line["unit"] == "step" else None


def tables(lines: list[Line]) -> dict[str, str]:
    """All tables, by the name that stands in their marks."""
    lines = sorted(lines, key=lambda line: [float(line["scale"]), line["last_step"] != "True", line["targets"],
                                            float(line["repulsion"]), int(line["set_seed"])])  # fmt: skip
    return {"eq8": table(lines, "γ of Eq. 8", of_eq8), "choices": table(lines, "targets, repulsion", of_choice)}


def read() -> list[Line]:
    """The lines of docs/guidance.csv."""
    with (DOCS / "guidance.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="DIR", help="folders of dap sweep")
    parser.add_argument("--write", action="store_true", help="write the tables")
    args = parser.parse_args()
    if args.add:
        kept = read() if (DOCS / "guidance.csv").exists() else []
        kept += [line for folder in args.add for line in lines_of(folder) if line not in kept]
        with (DOCS / "guidance.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list[str](COLUMNS), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
    if args.write:
        page = DOCS / "results.md"
        text = page.read_text(encoding="utf-8")
        for name, made in tables(read()).items():
            begin, end = BEGIN.format(name), END.format(name)
            pattern = re.escape(begin) + ".*?" + re.escape(end)
            text = re.sub(pattern, lambda _, b=begin, e=end, m=made: f"{b}\n\n{m}\n\n{e}", text, flags=re.DOTALL)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
