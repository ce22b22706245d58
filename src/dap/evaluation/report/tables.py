"""A table as data, which is built once and shown by five renderings, and the table of accuracies, a report's main
table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dap.evaluation.report.against import STAR, Against, footnotes
from dap.evaluation.report.cells import Block, Cell, Column, cell
from dap.evaluation.report.drawings.charts import strip
from dap.evaluation.report.expected import Ceiling, Claim, Claims
from dap.evaluation.report.groups import varying
from dap.evaluation.report.meanings import MEANINGS, noun_of, worded
from dap.evaluation.report.records import MEASURES, is_number
from dap.evaluation.report.renderings import html, latex, markdown, spreadsheet, terminal
from dap.evaluation.report.summary import Row, Setting, reference, unlike
from dap.evaluation.report.text import (
    DASH,
    PENDING,
    accuracy,
    figure,
    interval,
    percent,
    scale,
    seeds,
    setting_name,
    signed,
    times,
    trainings,
)
from dap.evaluation.taken import ways

REAL = "All real images"
"""The name of the row of a network that was trained on all real images."""


@dataclass(frozen=True)
class Table:
    """Blocks of rows under a title. A notebook shows the table by itself.

    Attributes:
        key: the table's part of file names.
        title: what the table shows.
        blocks: most tables have one.
        note: sentences below the table, on the page.
        data: the lines of the CSV, one for each row of all blocks, where they hold more than the cells do; empty where the
            cells' values are the data.
    """

    key: str
    title: str
    blocks: tuple[Block, ...]
    note: str = ""
    data: tuple[Mapping[str, Any], ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the first block."""
        return self.blocks[0].columns

    @property
    def rows(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows of all blocks."""
        return tuple(row for block in self.blocks for row in block.rows)

    def html(self) -> str:
        """The table as a part of a page that has the report's style; all texts are escaped."""
        return html.part(self.title, self.blocks, self.note)

    def markdown(self) -> str:
        """The table as Markdown; columns in which no row says anything are left out."""
        return markdown.markdown(self.blocks)

    def csv(self) -> str:
        """The numbers behind the table as CSV; accuracies are fractions."""
        return spreadsheet.written(self.lines())

    def latex(self) -> str:
        """The table as LaTeX, which needs the packages booktabs and graphicx."""
        return latex.latex(self.title, self.blocks)

    def terminal(self, width: int, colour: bool | None = None) -> str:
        """The table for a terminal of this width in characters.

        Args:
            width: the width in characters. Columns that do not fit are left out, and the text names them.
            colour: whether bold and dim text is marked. By default it is marked where standard output is a terminal and
                the environment variable NO_COLOR is not set.
        """
        return terminal.terminal(self.blocks, width, colour=colour)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the CSV."""
        return [dict(line) for line in self.data] if self.data else spreadsheet.lines_of(self.blocks)

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows: the table with its own style, without a script and without any outside
        file."""
        return html.alone(self.title, self.blocks, self.note)


def plain_table(
    key: str, title: str, columns: Iterable[Column], rows: Iterable[Sequence[Cell]], note: str = ""
) -> Table:
    """A table of one block without a title of its own."""
    return Table(key, title, (Block("", tuple(columns), tuple(tuple(row) for row in rows)),), note)


def comma_separated(tables: Sequence[Table]) -> str:
    """Tables of the same columns as one CSV; where there are several, a column `table` holds the title of each."""
    if len(tables) == 1:
        return tables[0].csv()
    lines = [{"table": table.title, **line} for table in tables for line in table.lines()]
    return spreadsheet.written(lines)


def accuracy_table(rows: Sequence[Row], claims: Claims | None = None) -> Table:
    """The main table of a report: one block for each setting, one row for each group that was tested under it, and one for
    training on all real images where its accuracy is known.

    Args:
        rows: the rows, as `summary.summarise` returns them.
        claims: finds the earlier figures to show beside the measured accuracies, and those of all real images; default: what
            the sets themselves know.
    """
    claims = claims or Claims()
    settings = dict.fromkeys(row.setting for row in rows)
    against = [Against.of(rows, other) for other in ("vanilla", "random")]
    blocks = tuple(_block(setting, rows, claims, against) for setting in settings)
    return Table("", "Accuracy", blocks, _note(rows, against), tuple(_data(rows, claims, against)))


def _block(setting: Setting | None, rows: Sequence[Row], claims: Claims, against: Sequence[Against]) -> Block:
    places = [i for i, row in enumerate(rows) if row.setting == setting]
    here = [rows[i] for i in places]
    found = [claims.of(row) for row in here]
    claimed = [claim for claim in found if claim]
    # Scale and targets name a row where method and images per class do not.
    alike = len({(row.method, row.group.note, row.ipc) for row in here}) < len(here)
    told = [
        _method(here),
        (Column("ipc", names=True, spare=0), [Cell(str(row.ipc), row.ipc) for row in here]),
        (
            Column("scale", beside=True, names=alike, spare=0 if alike else 3, css="aside"),
            [_scale(row) for row in here],
        ),
        (
            Column("targets", False, names=alike, spare=0 if alike else 4, css="aside"),
            [cell(row.targets) for row in here],
        ),
        _accuracies(setting, here),
        *([_strips(here, rows)] if setting else []),
        *(_differences(places, one) for one in against),
        _claimed(found),
        (Column("sets × trials", short="sets ×\ntrials", spare=0), [Cell(times(row), row.n_trials) for row in here]),
        *_costs(here),
        *(_measure(name, here) for name in MEASURES),
    ]
    optional = {"scale", "targets", "vs random", "needs", "expected", "published", *MEASURES}
    optional |= {"vs vanilla"} if any(against[1].differences[i] for i in places) else set()
    kept = [(c, cells) for c, cells in told if c.name not in optional or any(one.text != DASH for one in cells)]
    ceilings = [_real(one, [column for column, _ in kept]) for one in claims.ceilings(setting, here)]
    over = [said for one in against for said in footnotes(rows, one, places)]
    elsewhere = {row.group.key: row.group.label for row in rows if row.setting and row.ipc in {r.ipc for r in here}}
    missing = [label for key, label in elsewhere.items() if setting and key not in {row.group.key for row in here}]
    return Block(
        setting_name(setting),
        tuple(column for column, _ in kept),
        (*zip(*(cells for _, cells in kept), strict=True), *ceilings),
        tuple(dict.fromkeys(claim.source for claim in claimed if claim.source)),
        (f"Without trials under this setting here: {', '.join(missing)}.",) if missing else (),
        (*(one.stars for one in against if one.concerns(places)), *over, *_ways(here)),
    )


def _ways(rows: Sequence[Row]) -> list[str]:
    """What must be known of the measures beside the accuracies of one block."""
    groups = list({row.group.key: row.group for row in rows}.values())
    known = any(is_number(s.measures.get(name)) for group in groups for s in group.sets for name in MEASURES)
    return ways(groups) if known else []


def _real(one: Ceiling, columns: Sequence[Column]) -> tuple[Cell, ...]:
    """The row of a network that was trained on all real images."""
    known = {
        columns[0].name: Cell(REAL, REAL, small=one.how),
        **{c.name: Cell(percent(one.accuracy), one.accuracy, css="main") for c in columns if c.field == "accuracy"},
        **{c.name: Cell("") for c in columns if c.drawn},
    }
    return tuple(known.get(column.name, Cell(DASH)) for column in columns)


Told = tuple[Column, list[Cell]]
"""A column and its cells."""


def _method(rows: Sequence[Row]) -> Told:
    return Column("method", False), [Cell(row.group.first.title, row.group.label, small=row.group.note) for row in rows]


def _scale(row: Row) -> Cell:
    text, unit = scale(row)
    return Cell(text, row.scale, small=unit, css="scale")


def _accuracies(setting: Setting | None, rows: Sequence[Row]) -> Told:
    name = f"accuracy ({setting.headline}), %" if setting else "accuracy, %"
    short = f"accuracy\n({setting.headline}), %" if setting else "accuracy\n%"
    cells = []
    for row in rows:
        within = trainings(row.score)
        css = "main" if row.score else "pending"
        mean = row.score.mean if row.score else None
        cells.append(Cell(accuracy(row.score), mean, small="" if within == DASH else within, css=css))
    return Column(name, field="accuracy", below="± trainings", short=short, spare=0), cells


def _strips(here: Sequence[Row], rows: Sequence[Row]) -> Told:
    """Every set as a dot on an axis that all rows of a setting share."""
    values = [value for row in here if row.score for value in row.score.sets]
    cells = []
    for row in here:
        level = reference(row, rows)
        mean = level.score.mean if level and level.score and not unlike(row, level) else None
        css = "strip vanilla" if row.group.first.unguided else "strip"
        drawing = strip(row.score.sets, min(values), max(values), mean, css) if row.score else ""
        cells.append(Cell("", drawing=drawing, css="cell-strip"))
    return Column("per set", False, drawn=True, css="plain"), cells


def _differences(places: Sequence[int], against: Against) -> Told:
    cells = []
    for i in places:
        difference = against.differences[i]
        if difference is None:
            cells.append(Cell(DASH))
            continue
        css = "shown" if difference.shown else "unsure" if difference.interval else ""
        text = signed(difference.value) + (STAR if against.survives(i) else "")
        cells.append(Cell(text, difference.value, small=interval(difference), css=css))
    spare = 0 if against.other == "vanilla" else 2
    name = f"vs {against.other}"
    return Column(name, below="95 % interval", short=name.replace(" ", "\n"), spare=spare), cells


def _claimed(found: Sequence[Claim | None]) -> Told:
    """The column of earlier figures. Its heading is "published" where all figures are published, else "expected". Each
    published figure also says that it is published."""
    published = all(claim.source for claim in found if claim)
    cells = [
        Cell(c.text, c.mean, small="published" if c.source else "", hint=c.source, css="claim")
        if c
        else Cell(DASH, css="claim")
        for c in found
    ]
    return Column("published" if published else "expected", spare=1), cells


def _costs(rows: Sequence[Row]) -> list[Told]:
    hint = "peak memory while a set is made, 10⁹ bytes"
    return [
        (Column("s per set", short="s per\nset", apart=True), [Cell(figure(r.seconds), r.seconds) for r in rows]),
        (Column("GB", hint=hint, short="peak\nGB", apart=True), [Cell(figure(r.memory), r.memory) for r in rows]),
        (
            Column("needs", False, hint="beside real images", apart=True),
            [cell(", ".join(r.group.needs) or None) for r in rows],
        ),
    ]


def _measure(name: str, rows: Sequence[Row]) -> Told:
    about, values = MEANINGS[name], [row.measures[name] for row in rows]
    meant = worded(about.text, noun_of(row.group.first.noun for row in rows))
    short = name.replace("representativeness", "representa-\ntiveness")
    column = Column(
        name,
        better=about.better,
        hint=meant,
        short=short,
        spare=5,
    )
    return column, [Cell(figure(value), value) for value in values]


def _note(rows: Sequence[Row], against: Sequence[Against]) -> str:
    """A note on how to read the table: the meaning of ±, of the lines below an accuracy and below a difference, and of stars.
    `against` has the differences of the rows."""
    differences = [found for one in against for found in one.differences if found and found.interval]
    said = "Accuracies are mean ± sample standard deviation over distilled sets, each set counting by the mean of its trials"
    if any(row.score and len(row.score.sets) == 1 and row.score.std is not None for row in rows):
        said += "; where a group has one set, ± is the spread of its trials, the noise of training alone"
    said += "."
    if any(trainings(row.score) != DASH for row in rows):
        said += " The smaller ± below is the spread over the trainings of one set."
    said += " “Last” is the last epoch, “best” the best epoch on the test set; both are in the CSV."
    if differences:
        by = "Welch, over sets"
        if any(difference.paired for difference in differences):
            by = "Student’s t over differences between sets of one seed, Welch’s where seeds are not shared"
        said += f" Under each difference stands its own 95\u00a0% interval ({by})"
        unsure = any(not difference.shown for difference in differences)
        said += "; in grey where it includes 0: no difference shown." if unsure else "."
    over = [told for one in against for told in footnotes(rows, one, range(len(rows)))]
    return " ".join([said, *(one.stars for one in against if one.stars), *over])


def _data(rows: Sequence[Row], claims: Claims, against: Sequence[Against]) -> list[dict[str, Any]]:
    """One line for each group and setting; accuracies and differences are fractions."""
    fields = [f for f in varying([row.group.first for row in rows]) if f not in {"method", "ipc"}]
    lines, last = [], len(rows) - 1
    for i, row in enumerate(rows):
        line: dict[str, Any] = {"group": row.group.label, "method": row.method, "ipc": row.ipc, "scale": row.scale}
        line |= {"unit": row.unit, "layer": row.layer, "targets": row.targets, "seeds": seeds(row.group)}
        line |= _of_setting(row.setting)
        line |= {"headline": row.headline or PENDING, "sets": row.n_sets, "trials": row.n_trials}
        for name, stat in (("last", row.last), ("best", row.best)):
            line |= {f"{name}_mean": stat and stat.mean, f"{name}_std_sets": stat and stat.std_sets}
            line |= {f"{name}_std_trials": stat and stat.std_trials}
        for one, end in zip(against, ("", "_random"), strict=True):
            found = one.differences[i]
            low, high = (found and found.interval) or (None, None)
            line |= {f"vs_{one.other}": found and found.value, f"low_95{end}": low, f"high_95{end}": high}
            line |= {f"paired{end}": found and found.paired, f"p{end}": found and found.p}
            line |= {f"n{end}": found and found.n[0], f"n_{one.other}": found and found.n[1]}
            line |= {f"unlike{end}": found and found.unlike}
            line |= {f"p_holm{end}": one.corrected[i]}
        claim = claims.of(row)
        line |= dict(row.measures) | {"seconds_per_set": row.seconds, "peak_memory_gb": row.memory}
        line |= {"needs": " ".join(row.group.needs), "expected": claim and claim.text}
        line |= {"expected_source": claim and claim.source}
        recipe = row.group.first.fields
        lines.append(line | {f"recipe.{field}": recipe.get(field) for field in fields})
        if i == last or rows[i + 1].setting != row.setting:  # the last row of a block
            for one in claims.ceilings(row.setting, [r for r in rows if r.setting == row.setting]):
                of = {**_of_setting(row.setting), "epochs": None}
                lines.append({"group": REAL, **of, "headline": "last", "last_mean": one.accuracy, "how": one.how})
    return lines


def _of_setting(setting: Setting | None) -> dict[str, Any]:
    return {name: setting and getattr(setting, name) for name in ("network", "protocol", "epochs", "n_test", "apart")}
