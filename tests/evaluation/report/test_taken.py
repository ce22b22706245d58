"""Measures are averaged and compared only where they were taken alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.records import load
from dap.evaluation.report.sections import measures_table
from dap.evaluation.report.summary import summarise
from dap.evaluation.report.tables import accuracy_table
from reported import make_set, page_of, recipe, sweep, trial

OF = {"size": 16, "data": "aa", "network": "n1", "version": 3}
WAYS = [
    ("size", 32, "at different sizes (16 px, 32 px)"),
    ("data", "bb", "against different real images"),
    ("network", "n2", "with features of different networks"),
    ("version", 4, "by different versions of dap"),
]


def measured(path: Path, of: dict[str, Any] | None, method: str = "dap", seed: int = 0, **more: Any) -> Path:
    made = make_set(path, recipe(method, seed), [trial(0.5 + 0.1 * seed)], measures=1 + seed)
    note = json.loads((made / "measures.json").read_text()) | ({} if of is None else {"of": of}) | more
    (made / "measures.json").write_text(json.dumps(note))
    return made


@pytest.mark.parametrize("field, other, said", WAYS)
def test_seeds_that_were_measured_in_several_ways_have_no_mean(tmp_path, field, other, said):
    """One seed judged at 16 px and one at 32 px were averaged, without a word."""
    paths = [measured(tmp_path / "a", OF), measured(tmp_path / "b", OF, seed=1)]
    (row,) = summarise(load(paths))
    assert row.measures["representativeness"] == 4.5
    paths.append(measured(tmp_path / "c", OF | {field: other}, seed=2, precision=0.5))
    (row,) = summarise(load(paths))
    assert row.measures["representativeness"] is None and row.score and row.score.std
    found = accuracy_table([row])
    for text in (found.markdown(), found.terminal(500), page_of(paths, tmp_path / "page")):
        assert f"were taken {said} and are not averaged" in text
    shown = measures_table(group_sets(load(paths)))
    assert shown and said in shown.note and "±" not in shown.markdown()


@pytest.mark.parametrize("field, other, said", WAYS)
def test_groups_that_were_measured_in_several_ways_do_not_compare(tmp_path, field, other, said):
    paths = [measured(tmp_path / "a", OF), measured(tmp_path / "b", OF | {field: other}, "vanilla")]
    rows = summarise(load(paths))
    assert all(row.measures["diversity"] == 5 for row in rows)
    assert f"Measures were taken {said} and do not compare." in accuracy_table(rows).markdown()


def test_what_a_file_does_not_say_differs_from_nothing(tmp_path):
    ways = [OF, None, {"size": 16}]
    (row,) = summarise(load([measured(tmp_path / f"{i}", of, seed=i) for i, of in enumerate(ways)]))
    assert row.measures["representativeness"] == 6 and "not averaged" not in accuracy_table([row]).markdown()


def test_a_curve_of_measures_is_of_one_way(tmp_path):
    paths = sweep(tmp_path, "scale", [0.1, 0.2, 0.3])
    assert "representativeness" in page_of(paths, tmp_path / "one").split('id="curves"')[-1].split("</section>")[0]
    note = json.loads((paths[0] / "measures.json").read_text())
    (paths[0] / "measures.json").write_text(json.dumps(note | {"features": "others"}))
    assert "representativeness" not in page_of(paths, tmp_path / "two").split('id="curves"')[-1].split("</section>")[0]


def test_zero_shot_agreement_of_two_backbones_has_no_mean(tmp_path):
    paths = [measured(tmp_path / f"{i}", OF, seed=i) for i in (0, 1)]
    for path, backbone in zip(paths, ("starter", "other"), strict=True):
        (path / "zeroshot.json").write_text(json.dumps({"backbone": backbone, "agreement": 0.5}))
    (group,) = group_sets(load(paths))
    assert group.measure("zero_shot_agreement") == () and group.measure("diversity") == (5, 5)
    shown = measures_table([group])
    assert shown and "Zero-shot agreement was taken by different backbones (other, starter)" in shown.note
