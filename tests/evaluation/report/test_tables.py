"""One table, five renderings: each says the same numbers, escapes what it must, and claims no more than is shown."""

from __future__ import annotations

import csv
import io
import re

import pytest

from dap.evaluation.report.cells import Cell, Column
from dap.evaluation.report.expected import Claims
from dap.evaluation.report.page import write_report
from dap.evaluation.report.records import load
from dap.evaluation.report.renderings.latex import escaped
from dap.evaluation.report.summary import summarise
from dap.evaluation.report.tables import Table, accuracy_table, comma_separated, plain_table
from reported import HOSTILE, Outline, hostile, make_set, recipe, sweep, trial

RUNS = {
    "vanilla": [[0.73, 0.74], [0.72, 0.73]],
    "dap": [[0.80, 0.8098], [0.79, 0.8002]],
    "random": [[0.75, 0.7], [0.6, 0.9]],
}


@pytest.fixture
def table(tmp_path) -> Table:
    paths = [
        make_set(tmp_path / f"{method}-{seed}", recipe(method, seed), [trial(s, i) for i, s in enumerate(scores)])
        for method, runs in RUNS.items()
        for seed, scores in enumerate(runs)
    ]
    return accuracy_table(summarise(load(paths)), Claims({"dap": "79.0"}))


def test_every_rendering_says_the_same(table):
    page = " ".join(Outline(table.html()).texts)
    told = [page, " ".join(Outline(table._repr_html_()).texts), table.markdown(), table.terminal(200, colour=False)]
    told.append(table.latex().replace("$\\pm$", "±").replace("$-$", "−").replace("$\\times$", "×"))
    for text in told:
        for part in ("vanilla", "73.0 ± 0.7", "80.0 ± 0.7", "73.8 ± 1.8", "± 0.7", "+7.0", "79.0", "2 × 2", "0.900"):
            assert part in text, (part, text)
        assert "ConvNet-3, small-hard, 300 epochs, 10,000 test images" in text
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(table.csv()))}
    assert float(lines["dap"]["vs_vanilla"]) == pytest.approx(0.07) and lines["dap"]["expected"] == "79.0"


def test_rows_and_data_belong_together(table):
    assert [row[0].value for row in table.rows] == [line["group"] for line in table.lines()]
    assert all(len(row) == len(block.columns) for block in table.blocks for row in block.rows)


def test_in_bold_is_only_a_difference_that_is_shown(table):
    """The largest mean is not: nothing here says that it is larger than the second one."""
    bold = re.findall(r"\\textbf\{([^}]*)\}", table.latex())
    assert bold == ["+7.0*"], "of random the interval includes 0"
    assert "excludes 0" in table.latex()


def test_latex_escapes_what_has_a_meaning(tmp_path):
    assert escaped("a_b & 5 % {x} \\y #1 $ ^~") == (
        r"a\_b \& 5 \% \{x\} \textbackslash{}y \#1 \$ \textasciicircum{}\textasciitilde{}"
    )
    assert escaped("a\nb\x1b") == "a b "
    write_report(hostile(tmp_path), tmp_path / "out", title=HOSTILE, expected={f"dap{HOSTILE}": r"\input{secret}"})
    text = (tmp_path / "out" / "report.tex").read_text()
    assert r"\input{secret}" not in text and r"\textbackslash{}input" in text and HOSTILE not in text
    for kind in ("{", "}"):  # escaped ones aside, every brace is closed
        assert len(re.findall(rf"(?<!\\)\{kind}", text)) == len(re.findall(r"(?<!\\)\{", text))
    rows = re.findall(r"^    (?!\\)(.*) \\\\$", text, re.M)
    specs = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert rows and {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} <= set(map(len, specs))


def test_wide_latex_is_split_and_nothing_is_lost(tmp_path):
    table = accuracy_table(summarise(load(sweep(tmp_path, "scale", [0.1, 0.2, 0.3]))))
    tables = table.latex().split("\n\n")
    assert len(tables) == 2 and all(one.count(r"\midrule") == 1 for one in tables)
    for scale in (0.1, 0.2, 0.3):  # rows of one method are told apart in both
        assert all(f"{scale} step" in one for one in tables)
    assert "accuracy" in tables[0] and "representativeness" in tables[1] and "s per set" in tables[1]


def test_a_notebook_gets_all_it_needs_and_nothing_it_should_not(tmp_path):
    table = accuracy_table(summarise(load(hostile(tmp_path))))
    html = table._repr_html_()
    outline = Outline(html)
    assert HOSTILE not in html and "<script" not in html and "http" not in html and "@import" not in html
    assert not [name for _, attrs in outline.tags for name in attrs if name.startswith("on") or name in ("src", "href")]
    styles = re.findall(r"<style>(.*)</style>", html, re.S)
    rules = [line.split("{")[0] for line in styles[0].strip().splitlines()]
    assert all(part.strip().startswith(".dap-table") for rule in rules for part in rule.split(",")), (
        "others keep theirs"
    )


def test_a_plain_table_has_the_same_renderings():
    columns = [
        Column("group", numeric=False),
        Column("speed", better="higher"),
        Column("nothing"),
        Column("mean", field="m"),
    ]
    rows = [[Cell("a|b", "a|b"), Cell("1.0", 1.0, 0.25, "± 0.2"), Cell("–"), Cell("<3>", 3)]]
    table = plain_table("t", "Title", columns, rows, "A note.")
    assert table.markdown().splitlines()[0].split() == ["|", "group", "|", "speed", "|", "mean", "|"]
    assert "a\\|b" in table.markdown() and "1.0 (± 0.2)" in table.markdown()
    assert table.csv() == "group,speed,speed_std,nothing,m\na|b,1.0,0.25,,3\n"
    assert comma_separated([table, table]).splitlines()[1:] == ["Title,a|b,1.0,0.25,,3"] * 2
    assert "&lt;3&gt;" in table.html() and "A note." in table.html() and r"\caption{Title}" in table.latex()
    assert table.terminal(40, colour=False).splitlines()[-1].split() == ["a|b", "1.0", "(±", "0.2)", "<3>"]
    narrow = table.terminal(20, colour=False)
    assert "in the report: mean." in " ".join(narrow.split()) and max(map(len, narrow.splitlines())) <= 20


def test_no_rows_make_an_empty_table():
    table = accuracy_table([])
    assert (table.markdown(), table.latex(), table.rows) == ("", "", ())
    assert table._repr_html_().startswith("<div") and table.terminal(80, colour=False).strip() == ""


def test_sets_with_the_same_images_are_one_set(tmp_path):
    """A method that ignores the seed, such as Herding, makes one set, however many are asked for."""
    paths = []
    for seed, last in enumerate((0.5, 0.6, 0.7)):
        paths.append(make_set(tmp_path / f"vanilla{seed}", recipe("vanilla", seed), [trial(last)]))
        # The folders have one name, so the images of the made-up sets are the same.
        paths.append(make_set(tmp_path / str(seed) / "a" / "b", recipe("herding", seed), [trial(0.7), trial(0.72, 1)]))
    rows = {row.method: row for row in summarise(load(paths))}
    herding, vanilla = rows["herding"], rows["vanilla"]
    assert (herding.n_sets, herding.trials, herding.last.sets) == (1, (2,), (pytest.approx(0.71),))
    assert (vanilla.n_sets, vanilla.last.std_sets) == (3, pytest.approx(0.1))
    assert herding.difference.interval is None and herding.difference.value == pytest.approx(0.11)
    page = write_report(paths, tmp_path / "page", title="x").read_text()
    assert "The 3 sets of Herding hold the same images, so they count as one set." in page
