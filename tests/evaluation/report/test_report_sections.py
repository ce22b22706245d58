"""The report's sections beyond the accuracies: each from files written by hand, against numbers computed here."""

from __future__ import annotations

import base64
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from PIL import Image

from dap import backbones, shipped
from dap.backbones.base import Card
from dap.base.errors import DapError
from dap.evaluation.current import joined, key_of
from dap.evaluation.report import page as report
from dap.evaluation.report.confusion import confusions
from dap.evaluation.report.drawings.scatter import layout, maps
from dap.evaluation.report.expected import Claims
from dap.evaluation.report.gallery import REAL_BUDGET
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.suspicious import doubted, near_copies
from dap.evaluation.training.protocol import load_protocol
from dap.methods import find
from dap.published import published
from dap.recipe import Recipe
from dap.shipped import Expected
from reported import HOSTILE, Outline, judged, looked, make_set, page_of, ranked, recipe, table, trial, write_lines

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Nesting(HTMLParser):
    """What is wrong with a page's nesting and ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.wrong: list[str] = []
        self.feed(page)
        self.wrong += [f"never closed: {tag}" for tag in self.open]
        self.wrong += [f"twice: {name}" for name in {i for i in self.ids if self.ids.count(i) > 1}]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.wrong += [f"{tag} repeats an attribute" for _ in range(len(attrs) - len(dict(attrs)))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"{tag} closed at {self.getpos()}")


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """Two methods of two sets, each judged in every way by two networks."""
    made = []
    for method, base in (("vanilla", 0.6), ("dap", 0.7)):
        for seed in (0, 1):
            trials = [looked(base + 0.01 * seed), looked(base - 0.1, network="resnet18")]
            made.append(judged(make_set(tmp_path / f"{method}{seed}", recipe(method, seed), trials)))
    return made


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_whole_page_is_well_formed(sets: list[Path], tmp_path: Path) -> None:
    page = page_of(sets, tmp_path / "out")
    assert Nesting(page).wrong == []
    sections = [attrs["id"] for tag, attrs in Outline(page).tags if tag == "section"]
    assert sections == [
        *("accuracy", "networks", "images", "map", "measures", "classes", "training", "ranking", "protocols"),
        *("recipes", "cost", "commands", "full"),
    ]
    plain = page_of([make_set(tmp_path / "plain", recipe("dap", 0), [trial(0.7)])], tmp_path / "bare")
    assert Nesting(plain).wrong == []
    sections = [attrs["id"] for tag, attrs in Outline(plain).tags if tag == "section"]
    assert sections == ["accuracy", "images", "recipes", "cost", "commands", "full"]


def test_a_tile_tells_neighbours_prediction_and_copy(sets: list[Path], tmp_path: Path) -> None:
    outline = Outline(page_of(sets, tmp_path / "out"))
    first, second, third = (outline.classed("tile")[i]["title"] or "" for i in (0, 1, 4))
    assert "predicted shirt (75 %), as labelled" in first and first.endswith("near-copy of a real training image")
    assert "nearest real image by features: shirt, train/0.png, distance 1.50" in first
    assert "nearest real image in pixels: shirt, train/1.png, distance 2.50" in second and "near-copy" not in second
    assert "predicted shirt (75 %), not bag" in third
    marks = [attrs["class"] for attrs in outline.classed("mark") if "aria-hidden" in attrs]
    assert marks.count("mark copy") == 2 and marks.count("mark wrong") == 4
    near = json.loads(outline.classed("tile")[0]["data-near"] or "")
    sources = [attrs["src"] or "" for tag, attrs in outline.tags if tag == "img" and attrs.get("alt") == ""]
    embedded = [base64.b64decode(source.partition(",")[2]) for source in sources if source]
    assert len(embedded) == 3, "two by features and one in pixels, however often they are the nearest"
    for one, space in zip(near, ("feature", "pixel"), strict=True):
        assert embedded[one["place"]] == (sets[0] / "neighbours" / f"{space}-0.png").read_bytes()


def doubtful(path: Path, doubts: dict[int, object]) -> Path:
    """Let lines of the manifest, by their number, say that the image is probably nothing."""
    lines = [json.loads(line) for line in (path / "manifest.jsonl").read_text().splitlines()]
    write_lines(
        path / "manifest.jsonl", [line | {"doubt": doubts[i]} if i in doubts else line for i, line in enumerate(lines)]
    )
    return path


def test_images_that_are_probably_nothing_are_told_and_marked(tmp_path: Path) -> None:
    first, second = (make_set(tmp_path / f"v{seed}", recipe("vanilla", seed), [trial(0.5, seed)]) for seed in (0, 1))
    doubtful(first, {0: "constant: it has one colour only", 3: f"saturated {HOSTILE}"})
    doubtful(second, {1: "saturated: 99% of its values are 0 or 1", 2: ["no text"]})
    page = page_of([first, second], tmp_path / "out")
    (said,) = doubted(group_sets(report.load([first, second])))
    assert said.startswith(
        "3 of 8 images in 2 sets of Vanilla are probably no images of anything: shirt slot 0 of seed 0 (constant: it has one "
        "colour only); bag slot 1 of seed 0"
    )
    outline = Outline(page)
    assert Nesting(page).wrong == [] and HOSTILE not in page
    assert [attrs["class"] for attrs in outline.classed("odd") if "aria-hidden" in attrs] == ["mark odd"] * 2, (
        "seed 0 alone"
    )
    assert "probably no image of anything: constant: it has one colour only" in (
        outline.classed("tile")[0]["title"] or ""
    )
    images = page[page.index('<section id="images"') : page.index('<section id="recipes"')]
    assert "3 of 8 images in 2 sets of Vanilla" in images and "probably no image of anything</li>" in images
    assert 'see <a href="#images">Images</a>' in page[: page.index("<main>")]
    assert said.replace("<", "&lt;") in (tmp_path / "out" / "report.md").read_text()


def test_one_doubtful_image_and_none(tmp_path: Path) -> None:
    one = doubtful(make_set(tmp_path / "one", recipe("dm", 0), [trial(0.5)]), {2: "constant"})
    assert doubted(group_sets(report.load([one]))) == [
        "1 of 4 images of DM is probably no image of anything: bag slot 0 (constant). An accuracy says little of such a set."
    ]
    none = page_of([make_set(tmp_path / "none", recipe("dm", 0), [trial(0.5)])], tmp_path / "out")
    assert "probably" not in none and "mark odd" not in none and 'class="warnings"' not in none


def test_a_backbone_that_has_never_seen_such_images_is_told(tmp_path: Path) -> None:
    made = make_set(tmp_path / "set", recipe("dap", 0), [trial(0.5)])
    (made / "env.json").write_text(json.dumps({"device": "cpu", "strangeness": 1.134}))
    page = page_of([made], tmp_path / "out")
    said = "starter, has probably never seen images like the real ones: it predicted their noise 1.13 times as badly as a guess"
    assert said in page[page.index('<section id="images"') :] and said in (tmp_path / "out" / "report.md").read_text()
    (made / "env.json").write_text(json.dumps({"device": "cpu", "strangeness": "x"}))
    assert "never seen" not in page_of([made], tmp_path / "out")


def test_near_copies_are_told_first(sets: list[Path], tmp_path: Path) -> None:
    groups = group_sets(report.load(sets))
    told = near_copies(groups)
    assert told[0].startswith(
        "2 of 8 images in 2 sets of Vanilla are flagged as near-copies of real training images: shirt slot 0 of seed 0, "
        "shirt slot 0 of seed 1."
    )
    page = page_of(sets, tmp_path / "out")
    assert page.index(told[0]) < page.index('id="accuracy"') and told[0] in (tmp_path / "out" / "report.md").read_text()
    every = judged(make_set(tmp_path / "random", recipe("random", 0), [trial(0.7)]), copies=4)
    none = judged(make_set(tmp_path / "none", recipe("dap", 0), [trial(0.7)]), copies=0)
    one = judged(make_set(tmp_path / "one", recipe("dap-slots", 0), [trial(0.7)]))
    told = near_copies(group_sets(report.load([every, none, one])))
    assert len(told) == 2 and told[0].startswith("All 4 images of Random are near-copies")
    assert told[1].startswith(
        "1 of 4 images of DAP-slots is flagged as a near-copy of a real training image: shirt slot 0."
    )


def test_what_images_json_lacks_or_points_outside_is_not_shown(tmp_path: Path) -> None:
    path = judged(make_set(tmp_path / "a", recipe("dap", 0), [trial(0.7)]))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "secret.png")
    found = json.loads((path / "images.json").read_text())
    found["images"][0]["nearest"]["feature"]["file"] = "../secret.png"
    found["images"][1] |= {"predicted": None, "nearest": {}, "copy": None}
    del found["images"][2]
    hashes = [json.loads(line)["sha256"] for line in (path / "manifest.jsonl").read_text().splitlines()]
    found["judged"] = joined(key_of(hashes), "x")
    (path / "images.json").write_text(json.dumps(found))
    page = page_of([path], tmp_path / "out")
    tiles = Outline(page).classed("tile")
    assert base64.b64encode((tmp_path / "secret.png").read_bytes()).decode() not in page
    assert json.loads(tiles[0]["data-near"] or "")[0]["place"] is None
    for tile in tiles[1:3]:
        assert "predicted" not in (tile["title"] or "") and "data-near" not in tile
    (path / "images.json").write_text(json.dumps({"images": {"a": 1}}))
    with pytest.raises(DapError, match=r"images\.json, line 1: images: the value should be a list"):
        page_of([path], tmp_path / "out")


def test_a_demo_with_neighbours_stays_small(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(10)]
    paths = []
    for i in range(4):
        path = make_set(tmp_path / str(i), recipe("dap", 0, scale=i), [trial(0.7)], names, 10, 32)
        paths.append(judged(path, names, slots=10))
        (path / "map.npz").unlink()
        found = json.loads((path / "images.json").read_text())
        for k, image in enumerate(found["images"]):
            image["nearest"] = {"feature": {"file": found["images"][(k * 7) % 100]["path"]}}
        (path / "images.json").write_text(json.dumps(found))
    page = report.write_report(paths, tmp_path / "out", title="demo")
    assert REAL_BUDGET < 3e6 and page.stat().st_size < 8e6
    assert len(Outline(page.read_text()).classed("tile")) == 400


def test_measures_have_mean_spread_and_direction(sets: list[Path], tmp_path: Path) -> None:
    for path, precision in zip(sets[2:], (0.5, 0.8), strict=True):
        measures = json.loads((path / "measures.json").read_text())
        (path / "measures.json").write_text(json.dumps(measures | {"precision": precision, "theirs": 3}))
    page = page_of(sets, tmp_path / "out")
    vanilla, dap = rows_of(tmp_path / "out" / "report-measures.csv")
    assert (vanilla["group"], float(vanilla["precision"]), float(vanilla["precision_std"])) == ("Vanilla", 0.5, 0)
    assert float(dap["precision"]) == pytest.approx(0.65)
    assert float(dap["precision_std"]) == pytest.approx(np.std([0.5, 0.8], ddof=1))
    assert (vanilla["theirs"], float(dap["theirs"]), float(dap["near_copies"])) == ("", 3, 0.25)
    assert "k" not in dap, "bookkeeping is no measure"
    heads = [attrs for tag, attrs in Outline(page).tags if tag == "th" and "data-better" in attrs]
    better = {(attrs["title"] or "").partition(";")[0]: attrs["data-better"] for attrs in heads}
    assert better["share of distilled images that lie among real ones"] == "higher"
    assert [v for k, v in better.items() if k.startswith("squared maximum mean discrepancy")] == ["lower"]
    assert "−0.00100" in page and "- precision: share of distilled" in (tmp_path / "out" / "report.md").read_text()


def test_networks_have_bars_from_zero(sets: list[Path], tmp_path: Path) -> None:
    outline = Outline(page_of(sets, tmp_path / "out"))
    lines = rows_of(tmp_path / "out" / "report-networks.csv")
    assert [(line["group"], float(line["convnet3"]), float(line["resnet18"])) for line in lines] == [
        ("Vanilla", pytest.approx(0.605), pytest.approx(0.5)),
        ("DAP", pytest.approx(0.705), pytest.approx(0.6)),
    ]
    assert float(lines[1]["mean"]) == pytest.approx((0.705 + 0.6) / 2)
    assert float(lines[1]["convnet3_std"]) == pytest.approx(0.01 / np.sqrt(2))
    bars = [attrs for attrs in outline.classed("bar") if attrs.get("x") == "0"]
    widths = [float(attrs["width"] or 0) for attrs in bars]
    assert np.array(widths) / widths[2] == pytest.approx(np.array([0.605, 0.5, 0.705, 0.6]) / 0.705, abs=2e-3)
    more = make_set(tmp_path / "more", recipe("dap", 9), [trial(0.9)])  # one network alone was trained on it
    page_of([*sets, more], tmp_path / "three")
    assert [bool(line["mean"]) for line in rows_of(tmp_path / "three" / "report-networks.csv")] == [True, False]
    one = [make_set(tmp_path / "one", recipe("dap", 0), [trial(0.7), trial(0.6, protocol="other", network="x")])]
    assert 'id="networks"' not in page_of(one, tmp_path / "single"), "other protocols do not compare"


@pytest.mark.parametrize(("field", "heading"), [("steps", "Sampling steps"), ("ipc", "Images per class")])
def test_curves_along_steps_and_ipc(tmp_path: Path, field: str, heading: str) -> None:
    paths = []
    for method in ("vanilla", "dap"):
        for i, value in enumerate((10, 20, 50)):
            made = recipe(method, 0)
            made |= {"sampling": {"steps": value}} if field == "steps" else {"ipc": value, "block": value}
            paths.append(make_set(tmp_path / f"{method}{i}", made, [trial(0.5 + i / 10)]))
    outline = Outline(page_of(paths, tmp_path / "out"))
    assert heading in outline.texts
    label = outline.classed("chart")[0]["aria-label"] or ""
    assert "Vanilla 10 → 50, 20 → 60, 50 → 70; DAP 10 → 50, 20 → 60, 50 → 70" in label
    levels = [attrs for attrs in outline.classed("level") if attrs.get("y1") == attrs.get("y2") is not None]
    assert not levels, "vanilla is a line of its own"


def test_training_is_the_mean_of_the_sets_by_epoch(sets: list[Path], tmp_path: Path) -> None:
    write_lines(sets[0] / "trials.jsonl", [looked(0.6, 0), looked(0.7, 1), looked(0.5, network="resnet18")])
    page = page_of(sets, tmp_path / "out")
    section = page[page.index('id="training"') :]
    label = Outline(section).classed("chart")[0]["aria-label"] or ""
    ours = np.mean([np.mean([0.6, 0.7]), 0.61]) - 0.1
    told = ", ".join(f"{epoch} → {100 * (ours + 0.1 * epoch / 300):.4g}" for epoch in (100, 200, 300))
    assert f"accuracy, % against epoch: Vanilla {told}; DAP " in label
    assert not Outline(section).classed("dot")
    for path in sets:
        write_lines(path / "trials.jsonl", [trial(0.6, curve=[[1, 0.2], [300, 0.6]])])
    assert 'id="training"' not in page_of(sets, tmp_path / "out"), "two looks are no curve"


def test_confusions_add_up_and_are_told_in_words(sets: list[Path], tmp_path: Path) -> None:
    write_lines(sets[0] / "trials.jsonl", [looked(0.6, 0), looked(0.6, 1, [[6, 4], [0, 10]])])
    records = report.load(sets)
    found = confusions(group_sets(records), report.summarise(records))
    first = next(one for one in found if one.group.label == "Vanilla" and one.setting.network == "convnet3")
    assert first.counts.tolist() == [[8 + 6 + 8, 2 + 4 + 2], [1 + 0 + 1, 9 + 10 + 9]]
    assert first.worst == "Most often: shirt taken for bag (26.7 %), bag taken for shirt (6.7 %)."
    page = page_of(sets, tmp_path / "out")
    titles = [attrs.get("title") for attrs in Outline(page).classed("wrong") + Outline(page).classed("right")]
    assert "shirt taken for bag: 26.7 % (8 of 30)" in titles and "bag recognised: 93.3 % (28 of 30)" in titles
    lines = rows_of(tmp_path / "out" / "report-confusion.csv")
    assert sum(int(line["count"]) for line in lines if line["group"] == "DAP" and line["network"] == "resnet18") == 40
    classes = rows_of(tmp_path / "out" / "report-classes.csv")
    assert float(classes[0]["class shirt"]) == pytest.approx(22 / 30)
    for bad in ([[1, 2, 3]], [["x", 1], [1, 1]], [[-1, 1], [0, 1]], None):
        write_lines(sets[0] / "trials.jsonl", [looked(0.6, 0), trial(0.6, 1, confusion=bad)])
        records = report.load(sets[:1])
        kept = 1 if bad is None or len(bad) == 1 else 0  # a line that is no trial is left out as a whole
        assert len(records[0].trials) == 1 + kept and records[0].unreadable == 1 - kept
        found = confusions(group_sets(records), report.summarise(records))
        assert (found == []) == bool(kept), "not of all trials"


def test_a_trial_may_name_its_classes_in_another_order(tmp_path: Path) -> None:
    path = make_set(tmp_path / "a", recipe("dap", 0), [looked(0.6, classes=["bag", "shirt"])])
    records = report.load([path])
    (found,) = confusions(group_sets(records), report.summarise(records))
    assert found.worst.startswith("Most often: bag taken for shirt (20.0 %)")


def test_panels_share_one_map(sets: list[Path], tmp_path: Path) -> None:
    groups = group_sets(report.load(sets))
    (one,) = maps(groups)
    (again,) = maps(groups)
    assert one == again, "the layout is a function of the features"
    assert [(label, seed) for label, seed, _ in one["panels"]] == [("Vanilla", 0), ("DAP", 0)]
    first, second = (Outline(svg) for _, _, svg in one["panels"])
    ground = next(attrs["id"] for tag, attrs in first.tags if tag == "g" and "id" in attrs)
    assert [attrs["href"] for tag, attrs in second.tags if tag == "use"] == [f"#{ground}"]
    real = [attrs for attrs in first.classed("train") + first.classed("test")]
    assert sorted((attrs["class"] or "").split()[0] for attrs in real) == ["test", "test", "train", "train"]
    assert sum((attrs["d"] or "").count("M") for attrs in real) == 48
    assert len(first.classed("own")) == len(second.classed("own")) == 4
    spots = [list(map(float, spot)) for svg in one["panels"] for spot in re.findall(r"M([\d.]+) ([\d.]+)", svg[2])]
    assert np.array(spots).min() >= 5 and np.array(spots).max() <= 355, "all inside the panel"
    assert one["legend"] == [(0, "shirt"), (1, "bag")]


def test_sets_of_other_data_have_maps_of_their_own(sets: list[Path], tmp_path: Path) -> None:
    other = judged(make_set(tmp_path / "other", recipe("dap-slots", 0), [trial(0.7)]), data=1)
    without = make_set(tmp_path / "without", recipe("random", 0), [trial(0.7)])
    broken = judged(make_set(tmp_path / "broken", recipe("herding", 0), [trial(0.7)]))
    (broken / "map.npz").write_bytes(b"PK\x03\x04 torn")
    found = maps(group_sets(report.load([*sets, other, without, broken])))
    assert [[label for label, _, _ in one["panels"]] for one in found] == [["Vanilla", "DAP"], ["DAP-slots"]]
    page = page_of([*sets, other, without, broken], tmp_path / "out")
    assert Nesting(page).wrong == []
    assert maps(group_sets(report.load([without]))) == []


def test_alike_images_lie_together() -> None:
    noise = np.random.default_rng(0)
    centres = np.repeat(noise.normal(scale=20, size=(3, 8)), 20, axis=0)
    placed = layout((centres + noise.normal(size=(60, 8))).astype(np.float32))
    distance = np.linalg.norm(placed[:, None] - placed[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(1) // 20 == np.arange(60) // 20).all()
    assert layout(np.zeros((5, 3), np.float32)).shape == (5, 2), "images that are all the same do not stop the report"


def test_protocols_and_ranking_are_shown_as_recorded(sets: list[Path], tmp_path: Path) -> None:
    page = page_of(sets, tmp_path / "out")
    assert "<dt><code>lr</code></dt><dd>0.01</dd>" in page
    assert {"protocol": "small-hard", "field": "lr", "value": "0.01"} in rows_of(
        tmp_path / "out" / "report-protocols.csv"
    )
    line = rows_of(tmp_path / "out" / "report-ranking.csv")[0]
    assert (line["LRS"], line["ARS"], line["accuracies.full_hard"]) == ("0.4", "0.5", "0.9")
    texts = Outline(page[page.index('id="ranking"') :]).texts
    assert texts[texts.index("Vanilla") + 1 :][:3] == ["0", "ConvNet-3", "hard: small-hard"]
    assert texts[texts.index("Vanilla") + 4 :][:6] == ["10.0", "2.0", "0.400", "3.0", "0.500", "90.0"]


def test_every_table_is_in_markdown_and_csv(sets: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report.write_report(sets, out, title="T")
    parts = ["classes", "confusion", "cost", "measures", "networks", "protocols", "ranking", "recipes"]
    assert sorted(path.name for path in out.glob("*.csv")) == [f"report-{part}.csv" for part in parts] + ["report.csv"]
    text = (out / "report.md").read_text()
    heads = re.findall("^## (.*)$", text, re.M)
    assert heads == [
        *("Accuracy", "Networks", "Measures", "Accuracy by class, %", "Confusion, % of each true class"),
        *("DD-Ranking", "Recipes: what differs", "Protocol small-hard", "Cost"),
    ]
    report.write_report([make_set(tmp_path / "plain", recipe("dap", 0), [trial(0.7)])], out, title="T")
    left = {path.name for path in out.glob("*.csv")}
    assert left == {"report.csv", "report-cost.csv", "report-recipes.csv"}, "no table of the earlier sets is left"


def claims() -> Claims:
    values: list[dict[str, Any]] = [
        {"network": "convnet3", "labels": "hard", "mean": 64.8, "std": 0.8, "source": "published, Table 3"},
        {"network": "convnet3", "labels": "soft", "mean": 90, "source": f"published, {HOSTILE}"},
    ]
    values = [{**value, "protocol": "small-hard"} for value in values]
    expected = Expected.model_validate({"values": values})
    return Claims(published=lambda recipe: expected if recipe["method"] == "dap" else None)


def test_published_values_stand_beside_measured_ones(sets: list[Path], tmp_path: Path) -> None:
    rows = report.summarise(report.load(sets))
    found = {(row.method, row.network): claims().of(row) for row in rows}
    assert [key for key, claim in found.items() if claim] == [("dap", "convnet3")]
    claim = found["dap", "convnet3"]
    assert claim and (claim.text, claim.mean, claim.source) == ("64.8 ± 0.8", 64.8, "published, Table 3")
    assert "64.8 ± 0.8 (published)" in table(rows, claims()) and "Source: published, Table 3." in table(rows, claims())
    protocols = {"p1": {"name": "small-hard", "labels": {"teacher": "resnet18"}}}
    for path in sets:
        (path / "protocols.json").write_text(json.dumps(protocols))
    soft = claims()
    report.write_report(sets, tmp_path / "out", title="T", published=soft._published)
    cells = [attrs for attrs in Outline((tmp_path / "out" / "report.html").read_text()).classed("claim")]
    assert [cell.get("title") for cell in cells] == [None, f"published, {HOSTILE}"]
    line = rows_of(tmp_path / "out" / "report.csv")[1]
    assert (line["expected"], line["expected_source"]) == ("90.0", f"published, {HOSTILE}")


def made_by(name: str, **changes: Any) -> dict[str, Any]:
    """A shipped recipe as a set records it, open choices filled in as a backbone's card would."""
    made = Recipe.parse(Recipe.load(name)).model_dump(mode="json")
    made["data"] |= {"path": "/somewhere/ilsvrc", "size": 256}
    made["guidance"] = {**(made["guidance"] or {}), "layer": "8"}
    for field, value in changes.items():
        section, _, leaf = field.partition("__")
        made[section] = {**made[section], leaf: value} if leaf else value
    return made


def test_a_set_of_a_shipped_recipe_is_recognised() -> None:
    name = "imagenette-dit-ipc10"
    found = published(made_by(name, seed=7))
    assert found and {value.network for value in found.values} == {"convnet6", "resnetap10", "resnet18"}
    assert published(made_by(name, backbone__path="/weights/DiT-XL-2-256")) == found
    unused = ("options", "classifier", "captions", "own_guidance")
    kept = {field: value for field, value in made_by(name).items() if field not in unused}
    assert published(kept) == found, "what the method has no use for is not recorded"
    others = [
        {"guidance__scale": 0.5},
        {"guidance__kernel": "rbf"},
        {"guidance__layer": "4"},
        {"ipc": 11},
        {"sampling__steps": 20},
        {"sampling__cfg_channels": "all"},
        {"data__classes": "imagewoof"},
        {"data__held_out": 0.1},
        {"data__size": 512},
        {"options": {"own": 1}},
        {"own_guidance": {"path": "mine.py:Mine"}},
        {"drawn_from": 50},
    ]
    for changes in [*others, {"method": "vanilla"}, {"backbone__path": "starter"}, {"guidance": None}]:
        assert published(made_by(name, **changes)) is None, changes
    assert published({}) is None


def test_a_recipe_file_with_another_layer_claims_nothing(tmp_path: Path) -> None:
    """What the user changed may be in a file as well as in the command; only the resolved recipe has it all."""
    shipped_one = resolve("imagenette-dit-ipc10")
    assert published(shipped_one)
    values = Recipe.load("imagenette-dit-ipc10")
    values["guidance"] = {**values["guidance"], "layer": "12"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    mine = resolve(str(tmp_path / "mine.yaml"))
    assert mine["guidance"]["layer"] == "12" and published(mine) is None
    path = make_set(tmp_path / "set", mine, [trial(0.6, network="resnetap10", protocol="minimax-hard")])
    (path / "command.txt").write_text("dap distill imagenette-dit-ipc10 --data /somewhere --out set")
    rows = report.summarise(report.load([path]))
    assert Claims(published=published).of(rows[0]) is None
    (path / "recipe.json").write_text(json.dumps(shipped_one))
    claim = Claims(published=published).of(report.summarise(report.load([path]))[0])
    assert claim is not None and claim.text == "67.8 ± 1.2"


def test_a_published_value_stands_beside_its_own_protocol_alone(tmp_path: Path) -> None:
    """Neither beside another protocol, nor beside the same with other fields, nor beside choices on validation images."""
    names = ["minimax-hard", "igd-hard", "minimax-hard+epochs=2", "minimax-hard+size=128", "minimax-hard on validation"]
    trials = [trial(0.6, network="resnetap10", protocol=name, headline="best") for name in names]
    path = make_set(tmp_path / "set", resolve("imagenette-dit-ipc10"), trials)
    rows = report.summarise(report.load([path]))
    found = {row.setting.protocol: Claims(published=published).of(row) for row in rows if row.setting}
    assert set(found) == set(names)
    assert [name for name, claim in found.items() if claim] == ["minimax-hard"]


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_labels_of_a_recorded_protocol_say_which_value_is_meant(tmp_path: Path, kind: str) -> None:
    path = make_set(tmp_path / "set", resolve("imagenette-dit-ipc10"))
    facts = load_protocol("minimax-hard").facts() | {"labels": {"kind": kind}}
    line = trial(0.6, network="resnetap10", protocol="minimax-hard", headline="best", by="p")
    write_lines(path / "trials.jsonl", [line])
    (path / "protocols.json").write_text(json.dumps({"p": facts}))
    (row,) = report.summarise(report.load([path]))
    assert bool(Claims(published=published).of(row)) is (kind == "hard")


def test_a_published_value_of_an_unknown_protocol_stands_beside_nothing(tmp_path: Path) -> None:
    values = [{"network": "convnet3", "labels": "hard", "mean": 64.8, "source": "published"}]
    path = make_set(tmp_path / "set", recipe("dap", 0), [trial(0.6)])
    (row,) = report.summarise(report.load([path]))
    assert Claims(published=lambda recipe: Expected.model_validate({"values": values})).of(row) is None


def test_shipped_values_name_protocols_that_ship_and_that_have_their_labels() -> None:
    found = [value for name in shipped.names() for value in getattr(shipped.expected(name), "values", ())]
    named = {(value.protocol, value.labels) for value in found if value.protocol}
    assert named == {("minimax-hard", "hard"), ("rded-soft", "soft")}
    assert all(load_protocol(name).labels.kind == labels for name, labels in named)


def resolve(name: str) -> dict[str, Any]:
    """The resolved recipe that a set made by this file or shipped recipe keeps; only the backbone's weights are missing."""
    recipe = Recipe.parse(Recipe.load(name))
    assert recipe.backbone is not None
    cards = yaml.safe_load((Path(backbones.__file__).parent / "cards.yaml").read_text())
    kind = "dit" if "DiT" in recipe.backbone.path else "unet"
    card = Card(**{"name": recipe.backbone.path, **cards[kind], **cards[recipe.backbone.path]})
    backbone = SimpleNamespace(card=card, schedule=None, check_layer=lambda layer: layer)
    return recipe.resolved(cast(Any, backbone), find("dap").guidance, card.size).values()


def test_every_shipped_recipe_with_values_is_recognised_by_what_it_resolves_to() -> None:
    names = [name for name in shipped.names() if not name.startswith("smoke/")]
    claiming = [name for name in names if (expected := shipped.expected(name)) and expected.values]
    assert len(claiming) >= 10
    for name in claiming:
        assert published(resolve(name)) == shipped.expected(name), name


def test_hostile_names_stay_text_in_every_section(tmp_path: Path) -> None:
    names = (HOSTILE, "'\"><img src=x onerror=alert(3)>")
    trials = [looked(0.6), looked(0.6, network=f"x{HOSTILE}", device=HOSTILE)]
    path = judged(make_set(tmp_path / "h", recipe(f"dap{HOSTILE}", 0), trials, names), names)
    text = (path / "images.json").read_text().replace("train/", HOSTILE.replace("/", "\\/"))
    (path / "images.json").write_text(text)
    (path / "protocols.json").write_text(json.dumps({"p1": {"name": HOSTILE, HOSTILE: HOSTILE}}))
    ranked(path, {"lrs": 0.1, HOSTILE: 0.2})
    (path / "measures.json").write_text(json.dumps({"features": HOSTILE, HOSTILE: 0.2, "recall": 1}))
    page = page_of([path], tmp_path / "out", title=HOSTILE)
    outline = Outline(page)
    assert Nesting(page).wrong == [] and HOSTILE not in page
    assert [tag for tag, _ in outline.tags].count("script") == 1 and "alert(" not in "".join(outline.scripts)
    assert not [name for _, attrs in outline.tags for name in attrs if name.startswith("on")]
    assert "</script" not in "".join(value or "" for value in re.findall(r"data-near='([^']*)'", page))
    assert HOSTILE not in (tmp_path / "out" / "report.md").read_text()
    assert "http" not in page.replace("http-equiv", "")


def test_accuracies_have_the_columns_of_which_a_row_says_something(tmp_path: Path) -> None:
    """Without a guided method none for its scale; where it stands, its unit is beside it and not below."""

    def heads(page: str) -> list[str]:
        table = page[page.index('<section id="accuracy">') :]
        return re.findall(r"<th scope=\"col\"[^>]*>([^<]*)", table[: table.index("</thead>")])

    plain = [make_set(tmp_path / m, recipe(m, 0), [trial(0.6)]) for m in ("random", "vanilla")]
    always = ["method", "ipc", "accuracy (last), %", "per set", "vs vanilla", "vs random"]
    always += ["sets × trials", "s per set", "GB"]
    assert heads(page_of(plain, tmp_path / "out")) == [*always, "representativeness", "diversity", "coverage"]
    cost = json.loads((plain[0] / "cost.json").read_text())
    (plain[0] / "cost.json").write_text(json.dumps({**cost, "needs": ["classifier"]}))
    page = page_of([*plain, make_set(tmp_path / "dap", recipe("dap", 0), [trial(0.7)])], tmp_path / "out")
    guided = [*always[:2], "scale", "targets", *always[2:], "needs", "representativeness", "diversity", "coverage"]
    assert heads(page) == guided
    assert re.search(r'<td class="n scale aside"[^>]*>0.05 <small>step</small>', page) and "td.scale small" in page
