"""One self-contained HTML page about distilled sets and their trials, with its tables as Markdown, LaTeX and CSV beside it.

The page needs no network: styles, script, charts and images are inside the page, and its content security policy allows
nothing else. All that a set says about itself, such as class names, methods and commands, is escaped as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

from dap.base.disk import REFUSED, told
from dap.base.errors import DapError
from dap.base.files import write_atomically
from dap.base.parsing import shown
from dap.data.sets.differences import flatten
from dap.evaluation.comparable import TESTED
from dap.evaluation.report import sections
from dap.evaluation.report.confusion import SHOWN, Confusion, by_class, confusions, long_form
from dap.evaluation.report.drawings.curves import curves, training
from dap.evaluation.report.drawings.scatter import maps, undrawn
from dap.evaluation.report.expected import Ceiling, Claims, Published
from dap.evaluation.report.findings import summary
from dap.evaluation.report.gallery import gallery
from dap.evaluation.report.groups import Group, group_sets
from dap.evaluation.report.meanings import MEANINGS, noun_of, worded
from dap.evaluation.report.records import MEASURES, SetRecord, load
from dap.evaluation.report.renderings import html, markdown, spreadsheet
from dap.evaluation.report.summary import Row, summarise
from dap.evaluation.report.suspicious import doubted, near_copies
from dap.evaluation.report.tables import Table, accuracy_table, comma_separated
from dap.evaluation.report.text import DASH, seeds
from dap.evaluation.taken import ways

__all__ = ["Group", "Row", "SetRecord", "load", "summarise", "write_report"]


@dataclass(frozen=True)
class Content:
    """The contents that the page, the Markdown, the LaTeX and the CSV files share."""

    title: str
    sets: Sequence[SetRecord]
    groups: Sequence[Group]
    rows: Sequence[Row]
    claims: Claims
    accuracy: Table
    measures: Table | None
    networks: Sequence[Table]
    classes: Sequence[Table]
    confusions: Sequence[Confusion]
    ranking: Table | None
    recipes: Table
    shared: Sequence[tuple[str, str]]
    cost: Table
    protocols: Sequence[tuple[str, list[tuple[str, str]]]]

    @property
    def beside(self) -> dict[str, str]:
        """The texts of the CSV files, by the part of the file name that differs. This part is empty for the
        accuracies."""
        one = {t.key: [t] for t in (self.measures, self.ranking, self.recipes, self.cost) if t}
        several = {"networks": self.networks, "classes": self.classes}
        texts = {key: comma_separated(found) for key, found in {**one, **several}.items() if found}
        texts |= {"confusion": spreadsheet.written(long_form(self.confusions))} if self.confusions else {}
        fields = [{"protocol": name, "field": f, "value": v} for name, pairs in self.protocols for f, v in pairs]
        texts |= {"protocols": spreadsheet.written(fields)} if fields else {}
        return {"": self.accuracy.csv(), **texts}


SHOWN_AS, MIME = {"tex": "LaTeX", "csv": "CSV"}, {"tex": "application/x-tex", "csv": "text/csv"}
"""The words on the links to a section's files, and the types of these files."""
BESIDE = ("measures", "ranking", "recipes", "cost", "networks", "classes", "confusion", "protocols")
"""Parts of the names of the CSV files. Files of an earlier report that the new report does not have are removed."""


def page_of(out: Path) -> Path:
    """The file of the page for `--out`: `out` itself where its name ends in .html, else report.html in that folder."""
    return out if out.suffix.lower() in {".html", ".htm"} else out / "report.html"


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    title: str,
    expected: Mapping[str, str] | None = None,
    published: Published | None = None,
    full: Sequence[Ceiling] = (),
) -> Path:
    """Write the report on these sets: the page, and its tables as `.md`, `.tex` and `.csv` of the same name beside it.

    The accuracies are `report.csv`; every other table has a file of its own such as `report-measures.csv`.

    Args:
        paths: folders of distilled sets; those without trials are shown without an accuracy.
        out: the page (a name ending in .html), or a folder to hold `report.html`.
        title: the page's heading.
        expected: earlier figures by group label or by method. They are shown beside the measured accuracies.
        published: finds the published values for a set; they are shown with their source.
        full: accuracies of training on all real images, beside those that the sets know.

    Returns:
        The path of the page. Each file is replaced as a whole, the page last.

    Raises:
        FileNotFoundError: a path is not the folder of a distilled set.
        DapError: there is no set, a JSON file cannot be read, or `out` cannot be written.
    """
    out = Path(out)
    page = page_of(out)
    content = _content(load(paths), title, Claims(expected, published, full))
    beside = {f"{page.stem}{'-' if key else ''}{key}.csv": text for key, text in content.beside.items()}
    files = {**beside, f"{page.stem}.md": _markdown(content), f"{page.stem}.tex": _latex(content)}
    files[page.name] = _html(content, page.stem)  # last, because a reader of the page expects the other files
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(page.with_name(name), text.encode())
        for key in BESIDE:
            if (name := f"{page.stem}-{key}.csv") not in files:
                page.with_name(name).unlink(missing_ok=True)
    except OSError as error:
        if error.errno in REFUSED:
            raise DapError(told(error)) from error
        raise DapError(f"cannot write the report to {page}: {error.strerror or error}; choose another place") from error
    return page


def _content(sets: Sequence[SetRecord], title: str, claims: Claims) -> Content:
    groups, rows = group_sets(sets), summarise(sets)
    found = confusions(groups, rows)
    recipes, shared = sections.recipes_table(groups)
    return Content(
        title=title,
        sets=sets,
        groups=groups,
        rows=rows,
        claims=claims,
        accuracy=accuracy_table(rows, claims),
        measures=sections.measures_table(groups),
        networks=sections.networks_tables(groups, rows),
        classes=by_class(found),
        confusions=found,
        ranking=sections.ranking_table(groups),
        recipes=recipes,
        shared=shared,
        cost=sections.cost_table(groups),
        protocols=sections.protocols_used(sets),
    )


def _html(content: Content, page: str) -> str:
    css, script = html.source("report.css"), html.source("report.js")
    groups, rows = content.groups, content.rows
    sentence, findings = summary(rows, content.sets)
    noun = noun_of(one.noun for one in content.sets)
    return (
        html.templates()
        .get_template("report.html.j2")
        .render(
            content=content,
            css=css,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            sentence=_unbroken(sentence),
            findings=[_unbroken(line) for line in findings],
            figures=curves(groups, rows),
            training=training(groups, rows),
            maps=maps(groups),
            heats=[one.heat for one in content.confusions[:SHOWN]],
            unshown=max(0, len(content.confusions) - SHOWN),
            gallery=gallery(groups),
            commands=_commands(groups),
            recipes=[(g.label, seeds(g), json.dumps(g.first.recipe, indent=2, ensure_ascii=False)) for g in groups],
            versions=_versions(content.sets),
            downloads=_downloads(content, page),
            warnings=near_copies(groups),
            doubts=doubted(groups),
            notes=_notes(content),
            measures={name: worded(MEANINGS[name].short, noun) for name in _taken(rows)},
            noun=noun,
            worded=lambda text: worded(text, noun),
            described=_described(content),
            dash=DASH,
        )
    )


def _downloads(content: Content, page: str) -> dict[str, list[tuple[str, str, str]]]:
    """For each section with tables, its files: the kind, the name, and the file itself as a data URI."""
    sections_of: dict[str, Sequence[Table | None]] = {
        "accuracy": [content.accuracy],
        "networks": content.networks,
        "measures": [content.measures],
        "classes": content.classes,
        "ranking": [content.ranking],
        "recipes": [content.recipes],
        "cost": [content.cost],
    }
    made: dict[str, list[tuple[str, str, str]]] = {}
    for section, found in sections_of.items():
        tables = [table for table in found if table and table.rows]
        kinds = {
            "tex": "\n\n".join(table.latex() for table in tables),
            "csv": comma_separated(tables) if tables else "",
        }
        made[section] = [
            (SHOWN_AS[kind], f"{page}-{section}.{kind}", f"data:{MIME[kind]};charset=utf-8,{quote(text)}")
            for kind, text in kinds.items()
            if text
        ]
    return made


def _taken(rows: Sequence[Row]) -> list[str]:
    """The measures of the accuracy table that some row has."""
    return [name for name in MEASURES if any(row.measures[name] is not None for row in rows)]


def _unbroken(text: str) -> str:
    """The text with no-break spaces where a line should not end: in "n = 5" and "95 %"."""
    return text.replace("n = ", "n\u00a0=\u00a0").replace(" %", "\u00a0%")


def _commands(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The distinct commands of each group. Groups that were made by the same commands, as in a sweep, are named together."""
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
    distinct = sections.distinct
    made = {"written": f"{datetime.now():%Y-%m-%d %H:%M}", "dap": ours, "python": platform.python_version()}
    trained = {"torch (trials)": ", ".join(distinct(t.get("torch") for s in sets for t in s.trials))}
    features = {"features (measures)": ", ".join(distinct(s.measures.get("features") for s in sets))}
    stated = [flatten({k: s.env.get(k) for k in ("versions", "weights", "device") if s.env.get(k)}) for s in sets]
    names = dict.fromkeys(name for part in stated for name in part)
    texts = {name: ", ".join(distinct(part.get(name) for part in stated)) for name in names}
    sampled = {f"{name.removeprefix('versions.')} (sets)": text for name, text in texts.items()}
    return [(name, text) for name, text in (made | trained | features | sampled).items() if text]


def _notes(content: Content) -> list[str]:
    bad = [(shown(s.path), s.unreadable, s.problems) for s in content.sets if s.unreadable]
    notes = [
        f"{path}: {n} unreadable line(s) of trials.jsonl or manifest.jsonl left out. The first: {' '.join(why[:3])}"
        for path, n, why in bad
    ]
    notes += [why for record in content.sets if (why := undrawn(record.path)) is not None]
    for record in content.sets:
        absent = record.measures.get("notes")
        failed = absent.items() if isinstance(absent, Mapping) else ()
        notes += [f"{shown(record.path)}: {text}" for name, text in failed if ":" in str(name)]
    notes += sections.choices(content.groups)
    notes += ways(content.groups)
    several = any(row.setting and row.setting.apart.startswith(TESTED) for row in content.rows)
    if several and any(not one.tested for one in content.claims.full):
        unsaid = "it does not say of which test images it is, and the trials are on several"
        notes.append(f"The accuracy of all real images that was given is not shown everywhere: {unsaid}.")
    notes += content.claims.unshown(content.rows)
    known = {name for row in content.rows for name in (row.group.label, row.method)}
    absent = [f"{name} {text}" for name, text in content.claims.given.items() if name not in known]
    return notes + ([f"Expected, but not among these sets: {', '.join(absent)}."] if absent else [])


def _markdown(content: Content) -> str:
    sentence, findings = summary(content.rows, content.sets)
    lines = [*near_copies(content.groups), *doubted(content.groups), *findings]
    parts = [f"# {content.title}", sentence, "\n".join(f"- {line}" for line in lines)]
    spread = "± is the sample standard deviation over sets, or over trials where there is one set; that over the trainings of "
    spread += "one set stands apart. Differences to vanilla are taken seed by seed where both have the seeds."
    parts += ["## Accuracy", spread, content.accuracy.markdown()]
    parts += _titled("Networks", content.networks)
    if found := content.measures:
        told = [f"- {name}: {text}." for name, text in _described(content)]
        parts += ["## Measures", found.note, found.markdown(), "\n".join(told)]
    parts += _titled("Accuracy by class, %", content.classes)
    parts += _titled("Confusion, % of each true class", [one.heat for one in content.confusions])
    if content.ranking:
        parts += ["## DD-Ranking", content.ranking.note, content.ranking.markdown()]
    shared = ", ".join(f"{field} {value}" for field, value in content.shared)
    parts += [f"## {content.recipes.title}", content.recipes.markdown(), f"Shared: {shared}." if shared else ""]
    for name, pairs in content.protocols:
        parts += [f"## Protocol {name}", markdown.grid(["field", "value"], pairs)]
    parts += ["## Cost", content.cost.markdown()]
    parts += ["\n".join(f"- {note}" for note in _notes(content))]
    return "\n\n".join(part.strip() for part in parts if part.strip()).replace("<", "&lt;") + "\n"


def _latex(content: Content) -> str:
    """The tables that a paper may show, without a preamble."""
    found = [content.accuracy, *content.networks, content.measures, content.ranking, content.cost]
    tables = "\n\n".join(one.latex() for one in found if one)
    return "% Tables to be read by \\input; they need \\usepackage{booktabs,graphicx}.\n\n" + tables + "\n"


def _described(content: Content) -> list[tuple[str, str]]:
    """Each column of the table of measures, with its meaning and the direction that is better."""
    columns = content.measures.columns[1:] if content.measures else ()
    return [(c.name, f"{c.hint}; {c.better} is better" if c.better else c.hint) for c in columns]


def _titled(heading: str, found: Sequence[Table]) -> list[str]:
    """A heading, and below it each table with its title and its note. An empty list where there is no table."""
    each = [text for one in found for text in (f"### {one.title}", one.note, one.markdown())]
    return [f"## {heading}", *each] if found else []
