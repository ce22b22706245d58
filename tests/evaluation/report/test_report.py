"""The report: numbers recomputed independently, honest words, harmless pages, and a look by a real browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dap.base.errors import DapError
from dap.evaluation.report import gallery as gallery_room
from dap.evaluation.report import page as report
from dap.evaluation.report.drawings.charts import positions, ticks
from dap.evaluation.report.findings import summary
from dap.evaluation.report.gallery import BUDGET
from dap.evaluation.report.groups import group_sets, sweeps
from reported import HOSTILE, Outline, hostile, luminance, make_set, page_of, recipe, sweep, table, trial, write_lines

SCORES = {
    "random": [[0.75, 0.76], [0.74, 0.75], [0.76, 0.75]],
    "vanilla": [[0.73, 0.74], [0.72, 0.73], [0.74, 0.735]],
    "dap": [[0.731, 0.742], [0.73, 0.735], [0.729, 0.739]],
    "dap-slots": [[0.76, 0.77], [0.755, 0.765], [0.77, 0.765]],
}


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """Four methods, three sets each, two trials a set."""
    return [
        make_set(tmp_path / f"{method}-{seed}", recipe(method, seed), [trial(s, i) for i, s in enumerate(scores)])
        for method, runs in SCORES.items()
        for seed, scores in enumerate(runs)
    ]


def test_numbers_agree_with_an_independent_computation(sets: list[Path]) -> None:
    rows = {row.method: row for row in report.summarise(report.load(sets))}
    assert list(rows) == list(SCORES)
    for method, row in rows.items():
        scores = np.array(SCORES[method])
        per_set = scores.mean(axis=1)
        assert row.last is not None and row.best is not None and row.score is row.last
        assert row.last.mean == pytest.approx(per_set.mean())
        assert row.last.std == row.last.std_sets == pytest.approx(per_set.std(ddof=1))
        assert row.last.std_trials == pytest.approx(np.sqrt(scores.var(axis=1, ddof=1).mean()))
        assert row.best.mean == pytest.approx(per_set.mean() + 0.01)
        assert (row.n_sets, row.n_trials, row.seconds) == (3, 6, 8.0)
        assert row.measures["representativeness"] == 3.0
        if method == "vanilla":
            assert row.difference is None
            continue
        vanilla = np.array(SCORES["vanilla"]).mean(axis=1)
        test = stats.ttest_rel(per_set, vanilla)
        expected = test.confidence_interval(0.95)
        assert row.difference is not None and row.difference.n == (3, 3) and row.difference.paired
        assert row.difference.value == pytest.approx(per_set.mean() - vanilla.mean())
        assert row.difference.interval == pytest.approx((expected.low, expected.high), rel=1e-6)
        assert row.difference.p == pytest.approx(test.pvalue, rel=1e-6)
        assert row.difference.shown is not (expected.low <= 0 <= expected.high)


def test_sets_of_other_seeds_are_compared_as_independent(tmp_path: Path) -> None:
    runs = {"vanilla": [(0, 0.72), (1, 0.74), (2, 0.73)], "dap": [(2, 0.78), (3, 0.75), (4, 0.79), (5, 0.76)]}
    paths = [make_set(tmp_path / f"{m}{i}", recipe(m, i), [trial(s)]) for m, of in runs.items() for i, s in of]
    rows = {row.method: row for row in report.summarise(report.load(paths))}
    found = rows["dap"].difference
    scores = [[s for _, s in of] for of in runs.values()]
    test = stats.ttest_ind(scores[1], scores[0], equal_var=False)
    expected = test.confidence_interval(0.95)
    assert found is not None and found.n == (4, 3) and not found.paired
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6)


def test_what_sets_share_counts_for_each(tmp_path: Path) -> None:
    path = make_set(tmp_path / "a", recipe("vanilla", 0), [trial(0.7)])
    cost = {"seconds": 8.0, "images": 4, "peak_memory_gb": 1.5, "needs": ["backbone", "training"]}
    prepared = {"surrogate": {"seconds": 30.0, "made": False}, "modes": {"seconds": 2.0, "made": True}}
    (path / "cost.json").write_text(json.dumps({**cost, "prepared": prepared}))
    (row,) = report.summarise(report.load([path]))
    assert (row.seconds, row.memory, row.group.needs) == (38.0, 1.5, ("backbone",))
    page = page_of([path], tmp_path / "out")
    assert "training" in page and "s shared" in page


def test_words_follow_the_interval(sets: list[Path]) -> None:
    records = report.load(sets)
    sentence, findings = summary(report.summarise(records), records)
    assert sentence.startswith(
        "12 distilled sets in 4 groups, 2 images per class of fashion-mnist, judged by ConvNet-3:"
    )
    assert re.search(
        r"DAP-slots is \+3\.2 points over vanilla \(95 % interval \+[\d.]+ to \+[\d.]+, n = 3 sets of the same seeds\)",
        sentence,
    )
    assert "it has the highest mean accuracy, 76.4 % (last epoch)" in sentence
    assert any(line.startswith("No difference shown between DAP and vanilla (+0.2 points, 95 %") for line in findings)


def test_a_group_below_vanilla_is_called_so(tmp_path: Path) -> None:
    runs = {"vanilla": (0.80, 0.801, 0.802), "dap": (0.70, 0.702, 0.701)}
    paths = [
        make_set(tmp_path / f"{m}{i}", recipe(m, i), [trial(s)])
        for m, scores in runs.items()
        for i, s in enumerate(scores)
    ]
    sentence, findings = summary(report.summarise(report.load(paths)), report.load(paths))
    assert "Vanilla has the highest mean accuracy" in sentence
    assert findings[0].startswith(
        "DAP is 10.0 points under vanilla (95 % interval −10.2 to −9.8, n = 3 sets of the same"
    )


def test_the_first_sentence_is_of_test_images_and_names_its_setting(tmp_path: Path) -> None:
    chosen = {"protocol": "small-hard on validation", "n_test": 600}
    runs = {"vanilla": (0.9, 0.6), "random": (0.5, 0.7)}
    paths = [
        make_set(tmp_path / m, recipe(m, 0), [trial(validation, **chosen), trial(test)])
        for m, (validation, test) in runs.items()
    ]
    records = report.load(paths)
    sentence, _ = summary(report.summarise(records), records)
    assert "judged by ConvNet-3, small-hard, 300 epochs, 10,000 test images:" in sentence
    assert "Random has the highest mean accuracy, 70.0 %" in sentence and "90.0" not in sentence
    alone = report.load([make_set(tmp_path / "alone", recipe("vanilla", 0), [trial(0.9, **chosen)])])
    assert "600 validation images: Vanilla reaches 90.0 %" in summary(report.summarise(alone), alone)[0]


def test_methods_of_one_accuracy_share_the_first_place(tmp_path: Path) -> None:
    scores = {"vanilla": 0.5, "random": 0.5004, "d4m": 0.4}
    records = report.load([make_set(tmp_path / m, recipe(m, 0), [trial(s)]) for m, s in scores.items()])
    assert re.search(
        "(Vanilla and Random|Random and Vanilla) share the highest mean", summary(report.summarise(records), records)[0]
    )


@pytest.mark.parametrize(
    ("changes", "unguided"),
    [
        ({}, True),
        ({"own_guidance": {"path": "mine.py:Inward", "scale": 1.0}}, False),
        ({"own_guidance": {"path": "mine.py:Inward", "scale": 0.0}}, True),
        ({"refine": {"steps": 3}}, False),
        ({"refine": {"steps": 0}}, True),
    ],
)
def test_vanilla_is_what_neither_a_guidance_of_one_s_own_nor_a_refinement_moved(
    tmp_path: Path, changes, unguided
) -> None:
    for method, values in {"vanilla": {}, "dap": {"scale": 0.0}}.items():
        path = make_set(tmp_path / method, recipe(method, 0, **values) | changes, [trial(0.7)])
        plain = make_set(tmp_path / f"plain-{method}", recipe("vanilla", 1), [trial(0.6)])
        (record, _) = records = report.load([path, plain])
        assert record.unguided is unguided
        guided = record.fields.get("own_guidance.scale") == 1.0
        assert record.title.endswith(" + Inward") is guided
        rows = {row.group.first.path: row for row in report.summarise(records)}
        assert unguided or rows[path].difference is not None


def test_one_set_per_group_shows_no_spread_between_sets(tmp_path: Path) -> None:
    paths = [make_set(tmp_path / m, recipe(m, 0), [trial(0.7), trial(0.72, 1)]) for m in ("vanilla", "dap")]
    records = report.load(paths)
    rows = report.summarise(records)
    row = rows[1]
    assert row.last is not None and row.difference is not None
    assert row.last.std_sets is None and row.last.std == pytest.approx(np.std([0.7, 0.72], ddof=1))
    assert row.difference.interval is None and not row.difference.shown
    sentence, findings = summary(rows, records)
    assert "no spread is known" in " ".join([sentence, *findings])
    page = page_of(paths, tmp_path / "out")
    assert "the spread of its trials, the noise of training alone" in page


def test_a_torn_line_is_left_out_and_named(sets: list[Path], tmp_path: Path) -> None:
    before = report.summarise(report.load(sets))
    with open(sets[0] / "trials.jsonl", "a") as file:
        file.write('{"protocol": "small-hard", "network": "convnet3", "la')
    with open(sets[1] / "trials.jsonl", "a") as file:
        file.write(json.dumps(trial(float("nan"))) + "\n" + json.dumps({"last": 0.5}) + "\n[]\n")
    after = report.load(sets)
    assert [record.unreadable for record in after] == [1, 3] + [0] * 10
    assert [row.last for row in report.summarise(after)] == [row.last for row in before]
    page = page_of(sets, tmp_path / "out")
    assert f"{sets[0]}: 1 unreadable line(s)" in page and f"{sets[1]}: 3 unreadable line(s)" in page


def test_a_repeated_trial_counts_once_and_other_epochs_stand_apart(tmp_path: Path) -> None:
    trials = [trial(0.5, 0), trial(0.7, 0), trial(0.8, 1), trial(0.3, 0, epochs=10)]
    rows = report.summarise(report.load([make_set(tmp_path / "a", recipe("vanilla", 0), trials)]))
    assert [(row.setting and row.setting.epochs, row.n_trials) for row in rows] == [(300, 2), (10, 1)]
    assert rows[0].last is not None and rows[0].last.mean == pytest.approx(0.75)


def test_best_is_shown_where_the_protocol_says_best(tmp_path: Path) -> None:
    path = make_set(tmp_path / "a", recipe("vanilla", 0), [trial(0.5, headline="best")])
    (row,) = report.summarise(report.load([path]))
    assert row.score is row.best and row.score is not None and row.score.mean == pytest.approx(0.51)
    assert "accuracy (best), %" in table([row])


def test_sets_without_trials_are_not_evaluated_yet(sets: list[Path], tmp_path: Path) -> None:
    fresh = make_set(tmp_path / "fresh", recipe("dap", 0, scale=9.0))
    page = page_of([*sets, fresh], tmp_path / "out")
    assert "no trials here" in page and "Without trials here: DAP (scale 9)." in page
    page = page_of([fresh], tmp_path / "alone")
    assert "This page holds no trials: `dap evaluate`" in page and "valuated yet" not in page
    assert "no trials here" in (tmp_path / "alone" / "report.md").read_text()
    assert "no trials here" in table(report.summarise(report.load([fresh])))


def test_sets_of_several_sizes_are_said_not_to_compare(tmp_path: Path) -> None:
    paths = []
    for name, size in (("random", 8), ("vanilla", 8), ("dap", 16)):
        made = recipe(name, 0)
        paths.append(
            make_set(tmp_path / name, {**made, "data": {**made.get("data", {}), "size": size}}, [trial(0.7)], side=size)
        )
    said = "their accuracies do not compare (8 px: Random, Vanilla; 16 px: DAP). Make them with one --size."
    assert said in page_of(paths, tmp_path / "out")
    assert "do not compare" not in page_of(paths[:2], tmp_path / "alike")


def test_unguided_rows_show_dashes(tmp_path: Path) -> None:
    made = [recipe("random", 0), recipe("vanilla", 0), recipe("dap", 0, scale=0), recipe("dap", 0, scale=0.5)]
    paths = [make_set(tmp_path / str(i), one, [trial(0.7)]) for i, one in enumerate(made)]
    lines = table(report.summarise(report.load(paths))).splitlines()[4:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[2:4] for line in cells] == [["–", "–"], ["–", "–"], ["–", "–"], ["0.5 step", "class"]]
    page = page_of(paths, tmp_path / "out")
    assert "None" not in "".join(Outline(page).texts)


def test_groups_are_recipes_without_the_seed(sets: list[Path], tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", recipe("dap", 0, layer=5), [trial(0.7)])
    groups = group_sets(report.load([*sets, other]))
    assert [group.label for group in groups] == ["Random", "Vanilla", "DAP (layer 4)", "DAP (layer 5)", "DAP-slots"]
    assert groups[0].seeds == (0, 1, 2)
    page = page_of([*sets, other], tmp_path / "out")
    heads = re.findall(r'<th scope="col"><code>([^<]+)</code></th>', page)
    assert heads == ["method", "guidance.layer"], "sampling and guidance are set alike wherever they are set"
    assert "<dt><code>sampling.steps</code></dt><dd>50 (in 4 of 5)</dd>" in page
    assert "guidance.scale 0.05 (in 3 of 5)" in (tmp_path / "out" / "report.md").read_text()


def test_a_path_is_named_after_what_lies_there(tmp_path: Path) -> None:
    made = [{**recipe("vanilla", 0), "backbone": {"path": name}} for name in ("starter", "starter-unet")]
    sets = [make_set(tmp_path / f"{at}", one, [trial(0.7)]) for at, one in enumerate(made)]
    labels = [group.label for group in group_sets(report.load(sets))]
    assert labels == ["Vanilla (backbone starter)", "Vanilla (backbone starter-unet)"]


def test_a_folder_of_images_from_elsewhere_is_reported(tmp_path: Path) -> None:
    for name in ("bag", "shirt"):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        for file in ("x10.png", "x2.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / "theirs" / name / file)
    write_lines(tmp_path / "theirs" / "trials.jsonl", [trial(0.6)])
    (record,) = report.load([tmp_path / "theirs"])
    assert (record.method, record.ipc, record.class_names) == ("theirs", 2, ("bag", "shirt"))
    assert [image["path"] for image in record.images[:2]] == ["bag/x2.png", "bag/x10.png"]
    outline = Outline(page_of([tmp_path / "theirs"], tmp_path / "out"))
    assert len(outline.classed("tile")) == 4


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DapError, match="name at least one folder"):
        report.load([])
    with pytest.raises(FileNotFoundError, match="missing is not a folder"):
        report.load([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is not a distilled set"):
        report.load([tmp_path / "empty"])
    broken = make_set(tmp_path / "broken", recipe("dap", 0))
    (broken / "recipe.json").write_text('{"method": ')
    with pytest.raises(DapError, match=r"recipe\.json, line 1: this is not JSON"):
        report.load([broken])


def test_a_shared_command_is_shown_once(sets: list[Path], tmp_path: Path) -> None:
    for path in sets:
        (path / "command.txt").write_text("dap demo --sets 3\n")
    outline = Outline(page_of(sets, tmp_path / "out"))
    assert "All sets" in outline.texts and outline.texts.count("dap demo") == 1


def test_versions_of_the_sets_are_shown(sets: list[Path], tmp_path: Path) -> None:
    (sets[0] / "env.json").write_text(json.dumps({"versions": {"diffusers": "0.42.1"}, "weights": "ab12"}))
    texts = Outline(page_of(sets, tmp_path / "out")).texts
    pairs = dict(pairwise(texts))
    assert (pairs["diffusers (sets)"], pairs["weights (sets)"], pairs["torch (trials)"]) == ("0.42.1", "ab12", "2.15.0")


def test_layer_names_that_are_numbers_make_an_axis_in_order(tmp_path: Path) -> None:
    paths = sweep(tmp_path, "layer", ["10", "2", "4"])
    assert [row.layer for row in report.summarise(report.load(paths))] == [2, 4, 10]
    chart = Outline(page_of(paths, tmp_path / "out")).classed("chart")[0]
    assert "2 → 71.05, 4 → 72.05, 10 → 70.05" in (chart["aria-label"] or "")


def test_a_set_named_twice_is_read_once(sets: list[Path]) -> None:
    assert len(report.load([sets[0], sets[0] / ".." / sets[0].name])) == 1


@pytest.mark.parametrize(("field", "heading"), [("scale", "Guidance scale"), ("layer", "Guidance layer")])
def test_curves_appear_for_three_values_of_one_field(tmp_path: Path, field: str, heading: str) -> None:
    vanilla = make_set(tmp_path / "vanilla", recipe("vanilla", 0), [trial(0.7)])
    page = page_of([vanilla, *sweep(tmp_path, field, [0, 1, 2])], tmp_path / "out")
    outline = Outline(page)
    assert {"Guidance scale", "Guidance layer"} & set(outline.texts) == {heading}
    assert len(outline.classed("chart")) == 5, "accuracy twice (wide and narrow) and three measures"
    assert len(outline.classed("point")) == 5 * 3 and len(outline.classed("series")) == 5
    assert len([dot for dot in outline.classed("dot") if "cy" in dot and dot["r"] == "3"]) == 5 * 3 * 2
    assert len(outline.classed("band")) >= 5
    labels = [chart["aria-label"] or "" for chart in outline.classed("chart")]
    assert "0 → 70.05, 1 → 71.05, 2 → 72.05" in labels[0]


def test_curves_stay_away_otherwise(tmp_path: Path) -> None:
    few = sweep(tmp_path / "few", "scale", [0.1, 0.2])
    mixed = sweep(tmp_path / "mixed", "scale", [0.1, 0.2, 0.3], layer=[1, 2, 3])
    for i, paths in enumerate((few, mixed)):
        assert not sweeps(group_sets(report.load(paths)), "guidance.scale")
        assert 'id="curves"' not in page_of(paths, tmp_path / f"out{i}")


def test_a_sweep_is_judged_by_its_best_point_and_says_so(tmp_path: Path) -> None:
    vanilla = [make_set(tmp_path / f"v{i}", recipe("vanilla", i), [trial(0.7 + 0.001 * i)]) for i in (0, 1)]
    records = report.load([*vanilla, *sweep(tmp_path, "scale", [0.1, 0.2, 0.3])])
    sentence, findings = summary(report.summarise(records), records)
    assert "DAP (scale 0.3)" in sentence and "the best of 3 tried and so an optimistic pick" in sentence
    assert findings == []


def test_two_sweeps_share_a_chart(tmp_path: Path) -> None:
    paths = sweep(tmp_path / "a", "scale", [0, 0.1, 0.2]) + sweep(
        tmp_path / "b", "scale", [0, 0.1, 0.2], kernel=["rbf"] * 3
    )
    outline = Outline(page_of(paths, tmp_path / "out"))
    assert len(outline.classed("chart")) == 5 and len(outline.classed("series")) == 10
    assert {"DAP", "DAP (kernel rbf)"} <= set(outline.texts)


def test_axes() -> None:
    assert positions([2, 0, 1]) == {0: 0, 1: 0.5, 2: 1}
    spread = positions([0, 0.01, 0.1, 1])
    assert list(spread.values()) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert positions(["down", "mid", "up"]) == pytest.approx({"down": 1 / 6, "mid": 0.5, "up": 5 / 6})
    for low, high in ((0.0, 1.0), (64.1, 77.3), (2.999, 3.001), (-5.0, 1e6)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 11 and all(low <= tick <= high for tick in found)
        assert np.allclose(np.diff(found), found[1] - found[0])


def test_the_gallery_shows_the_same_seed_and_slot(tmp_path: Path) -> None:
    a = [make_set(tmp_path / f"a{i}", recipe("vanilla", i), [trial(0.7)]) for i in (4, 3)]
    b = [make_set(tmp_path / f"b{i}", recipe("dap", i), [trial(0.7)]) for i in (3, 5)]
    outline = Outline(page_of([*a, *b], tmp_path / "out"))
    assert outline.texts.count("seed 3") == 4, "two classes, two groups, all of the common seed"
    sources = [attrs["src"] for tag, attrs in outline.tags if tag == "img" and attrs.get("src")]
    shown = [base64.b64decode((src or "").partition(",")[2]) for src in sources]
    files = [s / "images" / f"class-{c}" / f"{k:05d}.png" for c in (0, 1) for s in (a[1], b[0]) for k in (0, 1)]
    assert shown == [file.read_bytes() for file in files], "byte for byte, class by class, group under group"
    tile = outline.classed("tile")[1]
    assert tile["title"] == f"slot 1 · seed 101 · sha256 {hashlib.sha256(files[1].read_bytes()).hexdigest()[:12]}"


def test_the_gallery_says_what_it_leaves_out(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(21)]
    outline = Outline(page_of([make_set(tmp_path / "a", recipe("dap", 0), classes=names, slots=12)], tmp_path / "out"))
    assert len(outline.classed("class")) == 21 and len(outline.classed("tile")) == 20 * 10 + 2
    text = " ".join(outline.texts)
    assert "The first 10 of 12 slots of each class are shown." in text
    assert "Of classes after the first 20, at most 2 slots are shown, and small." in text


def test_every_one_of_many_classes_opens_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {i}" for i in range(150)]
    paths = [make_set(tmp_path / m, recipe(m, 0), classes=names, slots=3, side=72) for m in ("random", "dap")]
    page = page_of(paths, tmp_path / "out")
    outline = Outline(page)
    assert [text for text in outline.texts if re.fullmatch(r"class \d+", text)] == names
    assert len(outline.classed("tile")) == 2 * (20 * 3 + 130 * 2)
    assert page.count('<details class="class" open>') == 1, "the others wait until somebody opens them"
    for name, ones, classes in (("enough for half of them", 1, 150), ("too little for all", 0, None)):
        whole = sum(len(src) for src in re.findall(r'src="(data:[^"]*)"', page)[2 * 20 * 3 :])
        monkeypatch.setattr(gallery_room, "FURTHER_BUDGET", whole if ones else whole // 8)
        found = Outline(page_of(paths, tmp_path / name))
        assert len(found.classed("tile")) < len(outline.classed("tile"))
        assert classes in (None, len(found.classed("class"))), name
    assert f"The first {len(found.classed('class'))} of 150 classes are shown" in " ".join(found.texts)


def test_large_missing_and_outside_images(tmp_path: Path) -> None:
    path = make_set(tmp_path / "a", recipe("dap", 0), slots=4, side=128)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    lines = [json.loads(line) for line in (path / "manifest.jsonl").read_text().splitlines()]
    lines[0]["path"] = "../secret.png"
    (path / lines[1]["path"]).unlink()
    (path / lines[2]["path"]).write_bytes(b"no image")
    write_lines(path / "manifest.jsonl", lines)
    page = page_of([path], tmp_path / "out")
    outline = Outline(page)
    assert "leads out" not in page and "1 unreadable line(s)" in page and "manifest.jsonl, line 1: path" in page
    assert len(outline.classed("none")) == 2 and base64.b64encode(secret.read_bytes()).decode() not in page
    assert len(outline.classed("smooth")) == 5 and "reduced to 96 pixels" in page


def test_twenty_sets_of_a_hundred_images_stay_small(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(10)]
    seeds = [(i, recipe("dap", 0, scale=i / 10)) for i in range(20)]
    paths = [make_set(tmp_path / str(i), made, [trial(0.7)], names, 10, 32) for i, made in seeds]
    page = report.write_report(paths, tmp_path / "out", title="large")
    assert BUDGET < 5e6 and page.stat().st_size < 6e6
    assert re.search(r"The first \d of 10 slots of each class are shown", page.read_text())


def test_a_hostile_name_is_only_text(tmp_path: Path) -> None:
    page = page_of(
        hostile(tmp_path), tmp_path / "out", title=HOSTILE, expected={f"dap{HOSTILE}": HOSTILE, "x": HOSTILE}
    )
    outline = Outline(page)
    assert [tag for tag, _ in outline.tags].count("script") == 1 and HOSTILE not in page
    assert not [name for _, attrs in outline.tags for name in attrs if name.startswith("on")]
    assert "alert(" not in "".join(outline.scripts)
    assert HOSTILE not in (tmp_path / "out" / "report.md").read_text()


def test_the_page_needs_nothing_and_allows_nothing_else(sets: list[Path], tmp_path: Path) -> None:
    page = page_of(sets, tmp_path / "out")
    outline = Outline(page)
    links = [attrs[name] or "" for _, attrs in outline.tags for name in ("src", "href", "action") if name in attrs]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "http://" not in page and "https://" not in page and "@import" not in page
    policy = next(a["content"] or "" for tag, a in outline.tags if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256("".join(outline.scripts).encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    targets = [link[1:] for link in links if link.startswith("#")]
    assert targets and set(targets) <= {attrs.get("id") for _, attrs in outline.tags}
    order = [page.index(f'id="{name}"') for name in ("accuracy", "images", "recipes", "cost", "commands", "full")]
    assert order == sorted(order)
    assert "dap distill --out dap-slots-2" in re.sub("<[^>]+>", "", page)


def test_markdown_and_csv_hold_the_same_numbers(sets: list[Path], tmp_path: Path) -> None:
    report.write_report(sets, tmp_path / "out" / "name.html", title="T", expected={"dap": "74.0 ± 1.0", "mgd3": "75"})
    text = (tmp_path / "out" / "name.md").read_text()
    assert table(report.summarise(report.load(sets)), {"dap": "74.0 ± 1.0"}).strip() in text
    assert re.search(r"\| DAP-slots +\| +2 \|.*76\.4 ± 0\.\d \| +± 0\.\d \| +\+3\.2\* \|", text)
    assert "74.0 ± 1.0" in text and "Expected, but not among these sets: mgd3 75." in text
    with open(tmp_path / "out" / "name.csv", newline="") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert float(lines["dap-slots"]["last_mean"]) == pytest.approx(np.mean(SCORES["dap-slots"]))
    assert (lines["dap"]["expected"], lines["random"]["scale"], lines["dap"]["recipe.guidance.layer"]) == (
        "74.0 ± 1.0",
        "",
        "4",
    )


def test_a_failed_write_leaves_the_old_page(sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    page = report.write_report(sets[:1], out, title="old")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).suffix == ".html":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DapError, match=r"report\.html cannot be written: the disk is full"):
        report.write_report(sets, out, title="new")
    assert page.read_bytes() == before["report.html"]
    assert sorted(path.name for path in out.iterdir()) == sorted(before), "nothing unfinished is left behind"
    monkeypatch.undo()
    with pytest.raises(DapError, match="choose another place"):
        report.write_report(sets, page / "inside", title="a file where a folder should be")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(theme: int) -> None:
    css = (Path(report.__file__).parent / "templates" / "report.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", css)
    colours = {name: pair[theme] for name, *pair in pairs}
    for text in ("ink", "muted", "accent", "warn"):
        for ground in ("paper", "raised", "sunken"):
            low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
