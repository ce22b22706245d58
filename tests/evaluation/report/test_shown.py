"""What a report shows around its numbers: names of papers, the row of all real images, tables as files, a phone's columns."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from browser import CHROMIUM, Browser
from dap.base.errors import DapError
from dap.cli.main import main
from dap.evaluation.report.expected import Ceiling, Claims, trained_on_all
from dap.evaluation.report.page import write_report
from dap.evaluation.report.ranking import rank_sets
from dap.evaluation.report.records import load
from dap.evaluation.report.renderings.names import METHODS, method_title, network_title
from dap.evaluation.report.summary import summarise
from dap.evaluation.report.tables import REAL, accuracy_table
from dap.evaluation.training.loading import load_trained
from dap.evaluation.training.networks import KNOWN
from dap.evaluation.training.trained import trained_facts
from dap.methods import METHODS as ALL_METHODS
from dap.starter import REFERENCE
from dap.verbs.report import ceilings_of, report
from reported import Outline, make_set, page_of, recipe, trial, write_lines


def test_every_method_and_network_has_a_name_of_its_own():
    assert set(METHODS) == set(ALL_METHODS)
    titles = [method_title(name) for name in ALL_METHODS] + [network_title(name) for name in KNOWN]
    assert len(set(titles)) == len(titles) and all(title != title.lower() for title in titles)
    assert method_title("mgd3+refine") == "MGD3 + refinement" and network_title("convnet3") == "ConvNet-3"
    for others in ("file.py:Mine", "torchvision:resnet18", "my folder"):
        assert method_title(others) == network_title(others) == others


def test_a_folder_of_others_keeps_its_own_name(tmp_path):
    """A folder may be called as a method is, and was not made by it."""
    made = make_set(tmp_path / "dm", None, [trial(0.7)])
    assert summarise(load([made]))[0].group.label == "dm"


def known(path: Path, **facts: object) -> Path:
    measures = json.loads((path / "measures.json").read_text())
    told = {"network": "convnet3", "protocol": "reference", "epochs": 5, "accuracy": 0.9012} | facts
    (path / "measures.json").write_text(json.dumps(measures | {"trained": told}))
    return path


@pytest.fixture
def judged(tmp_path: Path) -> list[Path]:
    trials = [trial(0.7), trial(0.6, network="resnet18"), trial(0.5, protocol="small-hard on validation")]
    return [known(make_set(tmp_path / m, recipe(m, 0), trials)) for m in ("random", "dap")]


def test_the_row_of_all_real_images_stands_where_its_network_was_tested(judged, tmp_path):
    table = accuracy_table(summarise(load(judged)))
    test, validation = (b for b in table.blocks if b.title.startswith("ConvNet-3"))
    assert [row[0].text for row in test.rows] == ["Random", "DAP", REAL], "once, although both sets know it"
    assert REAL not in [row[0].text for row in validation.rows], (
        "an accuracy on test images is none on validation images"
    )
    assert "90.1" in table.markdown() and "protocol reference, 5 epochs" in table.latex()
    lines = [line for line in csv.DictReader(io.StringIO(table.csv())) if line["group"] == REAL]
    assert [(line["network"], line["last_mean"], line["how"]) for line in lines] == [
        ("convnet3", "0.9012", "protocol reference, 5 epochs")
    ]
    assert len(table.lines()) == len(table.rows)
    given = accuracy_table(summarise(load(judged)), Claims(full=[Ceiling(0.95, "as given")]))
    assert given.markdown().count("as given") == 2, "without a network it stands beside every network"


def blocks(rows: list, claims: Claims | None = None) -> dict[str, list[str]]:
    """By the words that tell each block apart, the names of its rows and the texts of its column of published values."""
    table = accuracy_table(rows, claims)
    claimed = [[i for i, c in enumerate(b.columns) if c.name == "published"] for b in table.blocks]
    return {
        b.title.partition("test images")[2].removeprefix(", "): [
            *(row[0].text for row in b.rows),
            *(row[i].text for row in b.rows for i in places),
        ]
        for b, places in zip(table.blocks, claimed, strict=True)
    }


def test_nothing_is_shown_beside_other_test_images(tmp_path):
    """Published values, and the accuracy of all real images, stood beside accuracies on the test images of other data."""
    one = SimpleNamespace(network="convnet3", labels="hard", protocol="small-hard", mean=70.0, std=None, source="paper")
    claims = Claims(published=lambda _: SimpleNamespace(values=[one]), full=[Ceiling(0.5, "given")])  # pyright: ignore[reportArgumentType]
    own, other = {"tested": "a" * 16, "data": "fashion-mnist"}, {"tested": "b" * 16, "data": "others"}
    path = make_set(tmp_path / "dap", recipe("dap", 0), [trial(0.6, **own)])
    assert blocks(summarise(load([path])), claims) == {"": ["DAP", REAL, "70.0", "–"]}
    write_lines(path / "trials.jsonl", [trial(0.6, **own), trial(0.3, 1, **other)])
    note = json.loads((path / "measures.json").read_text())
    for tested in (None, "b" * 16):
        trained = {"network": "convnet3", "protocol": "reference", "accuracy": 0.93} | (
            {"tested": tested} if tested else {}
        )
        (path / "measures.json").write_text(json.dumps(note | {"trained": trained}))
        found = blocks(summarise(load([path])), claims)
        assert found["tested on fashion-mnist"] == ["DAP", "70.0"], "the tests of the set's own data"
        assert found["tested on others"] == (["DAP", REAL] if tested else ["DAP"])
    page = write_report([path], tmp_path, title="t", full=[Ceiling(0.5, "given")]).read_text()
    assert "it does not say of which test images it is" in page
    twice = [trial(0.6, **own), trial(0.3, 1, **(other | {"data": "fashion-mnist"}))]
    write_lines(path / "trials.jsonl", twice)
    assert all("70.0" not in texts for texts in blocks(summarise(load([path])), claims).values()), (
        "one name, two test sets"
    )


@pytest.mark.parametrize("accuracy", [None, -1, 2.0, "0.9", 1e30, True])
def test_what_is_no_accuracy_makes_no_row(judged, accuracy):
    for path in judged:
        known(path, accuracy=accuracy)
    assert REAL not in accuracy_table(summarise(load(judged))).markdown()


def test_the_network_that_measures_tells_its_accuracy():
    whole = load_trained(REFERENCE)
    facts = trained_facts(whole)["trained"]
    found = trained_on_all(facts)
    assert found is not None and found.accuracy == whole.accuracy and found.network == "convnet3"
    assert whole.class_names and trained_facts(whole.select(whole.class_names[:2])) == {}, "tested on all its classes"
    assert trained_facts(None) == {}


def test_full_is_a_fraction_or_a_file_of_train_teacher(judged, tmp_path, capsys):
    assert ceilings_of("0.5")[0].accuracy == 0.5 and ceilings_of(None) == ()
    names = load_trained(REFERENCE).class_names
    own = make_set(tmp_path / "own", recipe("dap", 0), [trial(0.7)], names)
    assert main(["report", str(own), "--out", str(tmp_path / "r"), "--full", str(REFERENCE)]) == 0
    assert REAL in capsys.readouterr().out and REAL in (tmp_path / "r" / "report.html").read_text()
    for wrong, said in (("1.5", "between 0 and 1"), (tmp_path / "none.safetensors", "none.safetensors")):
        with pytest.raises(DapError, match=said):
            report(judged, tmp_path / "out", full=wrong)


TESTED, OTHER = "a" * 16, "b" * 16
CLASSES = ("shirt", "bag")


@pytest.mark.parametrize(
    ("said", "of_trials", "fits"),
    [
        ({"tested": TESTED, "classes": CLASSES}, TESTED, True),
        ({"tested": TESTED, "classes": ("named", "otherwise")}, TESTED, True),  # the same test images
        ({"tested": TESTED}, TESTED, True),
        ({"tested": OTHER, "classes": CLASSES}, TESTED, False),
        ({"tested": OTHER}, TESTED, False),
        ({"classes": ("cat", "dog")}, TESTED, False),  # files of earlier versions say no test images
        ({"classes": (*CLASSES, "dog")}, None, False),
        ({"tested": OTHER, "classes": ("cat", "dog")}, None, False),
        ({"tested": OTHER, "classes": CLASSES[::-1]}, None, True),  # not known to be others
        ({"tested": OTHER}, None, True),
        ({"classes": CLASSES}, TESTED, True),
        ({}, TESTED, True),
    ],
)
def test_an_accuracy_of_other_test_images_is_no_ceiling(said, of_trials, fits, tmp_path):
    """`dap rank` refuses it and writes nothing; a report leaves it out and says so."""
    lines = [trial(0.6, **({"tested": of_trials} if of_trials else {}))]
    paths = [make_set(tmp_path / name, recipe(name, 0), lines) for name in ("random", "dap")]
    ceiling = Ceiling(0.9, "protocol reference", "convnet3", source="real.safetensors", **said)
    ranked = partial(rank_sets, paths, network="convnet3", full=ceiling, hard="small-hard")
    table = accuracy_table(summarise(load(paths)), Claims(full=[ceiling])).markdown()
    page = write_report(paths, tmp_path / "out", title="t", full=[ceiling]).read_text()
    unshown = "real.safetensors is not shown: it is of other test images"
    assert (REAL in table, unshown in page) == (fits, not fits)
    if fits:
        assert dict(ranked())[paths[1]].hlr == pytest.approx(0.3)
        return
    with pytest.raises(
        DapError, match="The file real.safetensors .*so it is not the accuracy of all real images.*--full FRACTION"
    ):
        dict(ranked())
    assert not (paths[1] / "ranking.json").exists()


def test_why_an_accuracy_of_all_real_images_is_not_shown(judged, tmp_path, capsys):
    def told(network: str, lines: list) -> list[str]:
        path = make_set(tmp_path / str(len(list(tmp_path.iterdir()))), recipe("dap", 0), lines)
        return Claims(full=[Ceiling(0.9, "h", network, source="f")]).unshown(summarise(load([path])))

    assert told("convnet3", [trial(0.6)]) == told("", [trial(0.6)]) == told("ConvNet-3", [trial(0.6)]) == []
    begins = "The accuracy of all real images f is not shown: "
    assert told("resnet18", [trial(0.6)]) == [f"{begins}it is a resnet18, and the trials are of convnet3."]
    for lines in ([], [trial(0.6, protocol="small-hard on validation")]):
        assert told("convnet3", lines) == [f"{begins}there is no trial on test images."]
    assert main(["report", *map(str, judged), "--out", str(tmp_path / "r"), "--full", str(REFERENCE)]) == 0
    said = capsys.readouterr().out
    assert f"{REFERENCE} is not shown: it is of other test images or of other classes" in said
    assert main(["rank", *map(str, judged), "--hard", "small-hard", "--full", str(REFERENCE)]) == 1
    said = capsys.readouterr().err
    assert f"{judged[1]} has the classes bag, shirt" in said and "Ankle boot" in said and str(REFERENCE) in said


def test_rank_says_what_each_missing_score_needs(judged, capsys):
    assert main(["rank", *map(str, judged), "--hard", "small-hard"]) == 0
    said = capsys.readouterr().out
    assert f"{judged[1]}: no score" in said and "HLR and LRS need the accuracy of all real images: give --full" in said
    assert "IOR and LRS need a protocol for --own." in said and "ARS need a protocol for --plain" in said
    assert main(["rank", *map(str, judged), "--hard", "small-hard", "--full", "0.9", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["sets"]
    assert one["hlr"] == pytest.approx(0.2) and not any("--full" in line for line in one["lacks"])
    own = make_set(judged[0].parent / "x", recipe("dm", 0), [trial(0.7, protocol="mine")])
    assert main(["rank", *map(str, [*judged, own]), "--own", "mine", "--json"]) == 0
    lacks = {Path(one["set"]).name: one["lacks"] for one in json.loads(capsys.readouterr().out)["sets"]}
    assert f"IOR and LRS: {judged[1]} has no trial of convnet3 by mine; dap evaluate makes one." in lacks["dap"]
    assert any("no random set of 2 images per class has a trial of convnet3 by mine" in line for line in lacks["x"])


def test_every_table_is_a_file_on_the_page(judged, tmp_path):
    page = page_of(judged, tmp_path / "out")
    links = [a for tag, a in Outline(page).tags if tag == "a" and "download" in a]
    files = {a["download"]: unquote(a["href"].partition(",")[2]) for a in links}
    assert {"report-accuracy.tex", "report-accuracy.csv", "report-networks.csv", "report-cost.tex"} <= set(files)
    assert files["report-accuracy.csv"] == (tmp_path / "out" / "report.csv").read_text()
    assert r"\toprule" in files["report-accuracy.tex"] and files["report-cost.csv"].startswith("group,")


def test_a_page_never_says_that_a_set_was_not_evaluated(tmp_path):
    """The set may have been judged since, with its results elsewhere."""
    page = page_of([make_set(tmp_path / "a", recipe("dap", 0))], tmp_path / "out")
    assert "valuated yet" not in page and "This page holds no trials" in page and "<h3>No trials here</h3>" in page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM} on this machine")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_a_phone_shows_the_accuracy_and_a_desktop_how_far_a_table_goes(browser, judged, tmp_path):
    page = report([*judged, make_set(tmp_path / "v", recipe("vanilla", 0), [trial(0.65)])], tmp_path / "out")
    browser.open(page, 360, 700)
    box = "document.querySelector('td.main').getBoundingClientRect().toJSON()"
    assert browser.run(box)["right"] <= 360, "without a scroll"
    seen = "[...document.querySelectorAll('.accuracy tbody th')].map((t) => t.innerText)"
    assert any("scale 0.05 step" in text and "targets class" in text for text in browser.run(seen))
    wide = "(() => { const s = document.querySelector('.scroll'); return s.scrollWidth > s.clientWidth; })()"
    assert browser.run(wide), "the rest of the table is there"
    assert "linear-gradient" in browser.run("getComputedStyle(document.querySelector('.scroll')).backgroundImage")
    browser.open(page, 1280)
    assert not any("scale 0.05 step" in text for text in browser.run(seen)), "the columns say it themselves"
    script = """(() => {
      const table = document.querySelector("table.accuracy");
      const i = [...table.tHead.rows[0].cells].findIndex((cell) => cell.innerText.startsWith("accuracy"));
      table.tHead.rows[0].cells[i].querySelector("button").click();
      return [...table.tBodies[0].rows].map((row) => Number(row.cells[i].dataset.sort));
    })()"""
    accuracies = browser.run(script)
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] == 0.9012, "the ceiling is sorted too"
    assert re.search("vs random", browser.run("document.querySelector('table.accuracy').innerText"))
