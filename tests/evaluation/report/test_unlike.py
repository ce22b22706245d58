"""A report draws no line, mean, interval or sentence over things that are not alike."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dap.evaluation.report import page as report
from dap.evaluation.report.confusion import by_class, confusions
from dap.evaluation.report.drawings.curves import curves
from dap.evaluation.report.findings import summary
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.sections import cost_table, measures_table, networks_tables
from dap.evaluation.report.summary import Row, summarise
from dap.evaluation.report.suspicious import near_copies
from dap.evaluation.report.tables import accuracy_table
from reported import make_set, recipe, sweep, trial, write_lines

LEVEL = 'class="level"'


def told(paths: list[Path]) -> str:
    sets = report.load(paths)
    first, rest = summary(summarise(sets), sets)
    return "\n".join([first, *rest])


def made(folder: Path, method: str, seed: int, last: float, **fields: Any) -> Path:
    return make_set(folder / f"{method}{seed}-{last}", {**recipe(method, seed), **fields}, [trial(last)])


def lines_of(rows: list[Row]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(accuracy_table(rows).csv())))


def test_a_line_for_vanilla_is_drawn_where_all_points_are_compared_with_it(tmp_path):
    points = sweep(tmp_path, "scale", [0.02, 0.05, 0.1])
    vanilla = made(tmp_path, "vanilla", 0, 0.35)

    def charts(paths: list[Path]) -> str:
        sets = report.load(paths)
        return str(curves(group_sets(sets), summarise(sets)))

    assert LEVEL in charts([*points, vanilla])
    other = made(tmp_path / "other", "vanilla", 0, 0.35, sampling={"steps": 5})
    assert LEVEL not in charts([*points, other]), "vanilla was sampled otherwise"
    sizes = [made(tmp_path / "sizes", "dap", 0, 0.5 + n / 100, ipc=n) for n in (1, 2, 10)]
    small = made(tmp_path / "sizes", "vanilla", 0, 0.35, ipc=1)
    for order in ([small, *sizes], [*sizes, small]):
        assert LEVEL not in charts(order), "vanilla was sampled for 1 image per class alone"


def test_a_difference_to_vanilla_that_was_sampled_otherwise_says_so(tmp_path):
    guided = [made(tmp_path, "dap", seed, 0.8 + seed / 100) for seed in (0, 1)]
    other = [made(tmp_path / "o", "vanilla", seed, 0.6, sampling={"steps": 5}) for seed in (0, 1)]
    assert "points over vanilla with steps 5 (" in told([*guided, *other])
    rows = summarise(report.load([*guided, *other]))
    table = accuracy_table(rows)
    for text in (table.markdown(), table.latex(), table.terminal(120), table.note):
        assert "DAP: compared with vanilla sets with steps 5." in " ".join(text.split())
    assert [line["unlike"] for line in lines_of(rows)] == ["steps 5", ""]
    same = [made(tmp_path / "s", "vanilla", seed, 0.6) for seed in (0, 1)]
    assert "points over vanilla (" in told([*guided, *other, *same]), "the one that was sampled alike is taken"


def test_a_difference_over_some_of_the_seeds_says_over_how_many(tmp_path):
    guided = [made(tmp_path, "dap", seed, 0.5 + seed / 10) for seed in range(5)]
    vanilla = [made(tmp_path, "vanilla", seed, 0.5 + seed / 9) for seed in (0, 1)]
    assert "n = 2 sets of the same seeds, of 5 and 2 sets" in told([*guided, *vanilla])
    rows = summarise(report.load([*guided, *vanilla]))
    assert (
        "DAP: compared with vanilla sets, over the 2 of 5 and 2 sets that share a seed."
        in accuracy_table(rows).markdown()
    )
    assert [(one["n"], one["n_vanilla"]) for one in lines_of(rows)] == [("2", "2"), ("", "")]


def test_a_seed_that_was_made_twice_is_one_set(tmp_path):
    """As on two devices, which give other last bits."""
    paths = [
        make_set(tmp_path / f"{method}-{i}", recipe(method, 0), [trial(last + i / 1000)])
        for method, last in (("vanilla", 0.5), ("dap", 0.6))
        for i in (0, 1)
    ]
    rows = summarise(report.load(paths))
    assert [row.n_sets for row in rows] == [1, 1] and [row.n_trials for row in rows] == [2, 2]
    assert all(row.difference is None or row.difference.interval is None for row in rows)
    assert rows[1].score and rows[1].score.mean == pytest.approx(0.6005)


def test_trials_without_a_seed_are_trainings_of_their_own(tmp_path):
    path = make_set(tmp_path / "a", recipe("dap", 0))
    write_lines(path / "trials.jsonl", [trial(0.5, 1), *(trial(last, seed=None) for last in (0.6, 0.7))])
    (row,) = summarise(report.load([path]))
    assert row.n_trials == 3 and row.score and row.score.mean == pytest.approx(0.6)


def test_near_copies_are_told_of_sets_that_were_searched(tmp_path):
    searched, other, third = (make_set(tmp_path / str(seed), recipe("dap", seed)) for seed in range(3))
    images = [
        {"path": f"images/class-{k}/0000{s}.png", "label": k, "slot": s, "copy": True} for k in (0, 1) for s in (0, 1)
    ]

    def look(path: Path, copies: list[bool | None], pixel: int = 100) -> None:
        listed = [{**image, "copy": copy} for image, copy in zip(images, copies, strict=True)]
        measured = json.loads((path / "measures.json").read_text()) | {"nearest": 1.0}
        (path / "measures.json").write_text(json.dumps(measured))
        (path / "images.json").write_text(json.dumps({"images": listed, "searched": {"pixel": pixel}}))

    look(searched, [True, True, True, False])
    look(third, [None] * 4)
    groups = group_sets(report.load([searched, other, third]))
    (said,) = near_copies(groups)
    assert said.startswith("3 of 4 images (the images of 2 further sets were not all searched) of DAP are flagged")
    look(searched, [True] * 4)
    (said,) = near_copies(group_sets(report.load([searched, other])))
    assert said.startswith("All 4 images (the images of one further set were not all searched) of DAP are near-copies")
    look(other, [False] * 4, 60_000)
    for paths, alike in (([searched, other], False), ([searched], True)):
        table = measures_table(group_sets(report.load(paths)))
        assert ("near_copies" in table.csv()) == alike
        assert ("among 100 and 60,000 real images, so their shares do not compare" in table.note) != alike


def test_all_classes_are_in_the_file_and_none_takes_another_column(tmp_path):
    names = ["group", "table", *(f"c{k}" for k in range(28))]
    counts = np.eye(30, dtype=int) * 7
    counts[0, 1] = 7
    paths = [
        make_set(tmp_path / network, recipe("dap", 0), [trial(0.5, network=network, confusion=counts.tolist())], names)
        for network in ("convnet3", "resnet18")
    ]
    sets = report.load(paths)
    tables = by_class(confusions(group_sets(sets), summarise(sets)))
    lines = list(csv.DictReader(io.StringIO(report.comma_separated(tables))))
    assert [line["group"] for line in lines] == ["DAP"] * len(lines) and {line["table"] for line in lines} != {"1.0"}
    assert all(float(line["class group"]) == 0.5 and len(line) == 32 for line in lines)
    assert len(tables[0].columns) == 21 and tables[0].note == "The first 20 of 30 classes are shown. The CSV has all."


def test_counts_of_two_orders_of_classes_are_added_by_class(tmp_path):
    first = trial(0.9, 0, confusion=[[8, 2], [0, 10]])
    second = trial(0.9, 1, confusion=[[10, 0], [2, 8]], classes=["bag", "shirt"])
    sets = report.load([make_set(tmp_path / "a", recipe("dap", 0), [first, second])])
    (found,) = confusions(group_sets(sets), summarise(sets))
    assert found.names == ("shirt", "bag") and found.counts.tolist() == [[16, 4], [0, 20]]


def test_trials_of_other_classes_do_not_compare_where_no_test_images_are_recorded(tmp_path):
    kinds = (("imagenette", ("tench", "church")), ("imagewoof", ("beagle", "dingo")))
    paths = [make_set(tmp_path / name, recipe("vanilla", 0), [trial(0.5)], classes) for name, classes in kinds]
    settings = [row.setting.apart for row in summarise(report.load(paths)) if row.setting]
    assert settings == [f"tested on images that are not recorded (of {', '.join(sorted(c))})" for _, c in kinds]


def test_vanilla_without_trials_is_not_said_to_be_missing(tmp_path):
    paths = [
        make_set(tmp_path / "v", recipe("vanilla", 0)),
        made(tmp_path, "dap", 0, 0.7),
        made(tmp_path, "random", 0, 0.5),
    ]
    said = told(paths)
    assert "No vanilla set here has trials, so no difference to vanilla can be given." in said
    assert "There is no vanilla" not in said and "+20.0 points" in said


def test_the_best_of_many_settings_is_an_optimistic_pick_whatever_was_varied(tmp_path):
    several = [made(tmp_path, "dap", 0, 0.5 + cfg / 100, sampling={"steps": 50, "cfg": cfg}) for cfg in (1, 2, 3)]
    assert "the best of 3 tried and so an optimistic pick" in told(several)
    assert "optimistic" not in told(several[:2])
    others = [made(tmp_path / name, "dap", 0, 0.5, backbone={"path": name}) for name in "abc"]
    assert "optimistic" not in told(others), "three backbones are no three tries"


def test_seconds_of_unlike_trainings_are_not_averaged(tmp_path):
    trials = [trial(0.5, seconds=10.0), trial(0.5, network="resnet18", epochs=3000, seconds=1000.0, device="cuda")]
    (line,) = cost_table(group_sets(report.load([make_set(tmp_path / "a", recipe("dap", 0), trials)]))).rows
    assert [one.text for one in line if " to " in one.text] == ["10.0 to 1000"]


def test_a_group_without_trials_by_one_of_several_protocols_is_left_out_of_its_table(tmp_path):
    networks = ("convnet3", "resnet18")
    both = [trial(0.5, network=one, protocol=two) for one in networks for two in ("small-hard", "quick-hard")]
    paths = [
        make_set(tmp_path / "a", recipe("dap", 0), both),
        make_set(tmp_path / "b", recipe("vanilla", 0), [trial(0.4, network=one) for one in networks]),
    ]
    sets = report.load(paths)
    tables = networks_tables(group_sets(sets), summarise(sets))
    assert sorted(len(table.rows) for table in tables) == [1, 2]
