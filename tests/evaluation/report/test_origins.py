"""Sets of one recipe are seeds of one group only if they were made of the same bytes, whatever the names of these are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.records import load
from dap.evaluation.report.summary import summarise
from dap.evaluation.report.text import times
from reported import make_set, recipe, trial

A, B = "a" * 64, "b" * 64
CODE = "code mine.py"


def made(path: Path, inputs: dict[str, Any] | None, seed: int = 0, method: str = "dap", **changes: Any) -> Path:
    """A set with an `inputs.json`, judged with a score of its own."""
    base = recipe(method, seed)
    found = {name: base[name] | changes.pop(name, {}) for name in ("data", "backbone", "guidance") if name in base}
    made_set = make_set(path, base | found | changes, [trial(0.5 + 0.1 * seed, tested="aa")])
    if inputs is not None:
        (made_set / "inputs.json").write_text(json.dumps({"classes": ["shirt", "bag"], **inputs}))
    return made_set


def labels(paths: list[Path]) -> dict[str, int]:
    return {group.label: len(group.sets) for group in group_sets(load(paths))}


@pytest.mark.parametrize(
    "kind, said, more",
    [
        ("data", "data content", {}),
        ("weights", "weights content", {}),
        ("classifier", "classifier content", {"classifier": "c.pt"}),
        ("captions", "captions content", {"captions": "c.jsonl"}),
        (CODE, CODE, {"options": {"network": "mine.py:Net"}}),
    ],
)
def test_sets_of_other_bytes_are_no_seeds_of_one_group(tmp_path, kind, said, more):
    """Two sets of one recipe, made before and after the data were replaced, were reported as two seeds."""
    same = [made(tmp_path / f"s{i}", {"data": A, kind: A}, i, **more) for i in (0, 1)]
    assert labels(same) == {"DAP": 2}
    other = made(tmp_path / "other", {"data": A, kind: B}, 2, **more)
    assert labels([*same, other]) == {f"DAP ({said} aaaaaa)": 2, f"DAP ({said} bbbbbb)": 1}
    unknown = made(tmp_path / "unknown", None, 3, **more)
    assert labels([*same, unknown]) == {"DAP": 3}, "a set of an earlier version may be made of the same"
    found = labels([*same, other, unknown])
    assert found == {f"DAP ({said} aaaaaa)": 2, f"DAP ({said} bbbbbb)": 1, f"DAP ({said} not recorded)": 1}
    assert labels([unknown, made(tmp_path / "unknown-too", None, 4, **more)]) == {"DAP": 2}


def test_an_object_of_other_values_is_another_group(tmp_path):
    paths = [
        made(tmp_path / f"s{i}", {"data": A, "objects": {"guidance": {"class": "m:G", "values": {"x": x}}}}, i)
        for i, x in enumerate((1, 1, 2))
    ]
    assert sorted(labels(paths).values()) == [1, 2] and all("guidance object" in label for label in labels(paths))


def test_a_set_without_a_recipe_is_a_group_of_its_own(tmp_path):
    paths = [made(tmp_path / f"s{i}", {CODE: mark}, i) for i, mark in enumerate((A, A, B))]
    for path in paths:
        (path / "recipe.json").unlink()
    assert sorted(labels(paths)) == ["s0", "s1", "s2"]


def test_one_content_of_several_names_is_one_group(tmp_path):
    """The same folder by a relative and by an absolute path made two groups, and the spread over seeds was lost."""
    places = [{"path": "photos"}, {"path": "/elsewhere/photos", "split": {"train": "x", "test": None}}]
    paths = [
        made(tmp_path / f"{i}", {"data": A, "weights": B}, i, data=place, backbone={"path": f"w{i}", "revision": None})
        for i, place in enumerate(places)
    ]
    (row,) = summarise(load(paths))
    assert times(row) == "2 × 1" and row.group.label == "DAP" and row.score and row.score.std
    wide = made(tmp_path / "wide", {"data": A, "weights": B}, guidance={"scale": 0.2}, data=places[1])
    assert list(labels([*paths, wide])) == ["DAP (scale 0.05)", "DAP (scale 0.2)"], "the path differs in nothing"
    assert load(paths)[1].recipe["data"]["path"] == "/elsewhere/photos", "the recipe stays as it is"


def test_one_path_is_told_apart_by_size_alone(tmp_path):
    """The hash of the data is that of images of one size."""
    paths = [made(tmp_path / f"{size}", {"data": size * 32}, data={"size": int(size)}) for size in ("16", "32")]
    assert list(labels(paths)) == ["DAP (size 16)", "DAP (size 32)"]


def test_a_set_is_compared_with_random_images_of_the_same_bytes(tmp_path):
    random = made(tmp_path / "random", {"data": A}, method="random")
    cases = {
        "same": ({"data": A}, "fashion-mnist"),
        "copy": ({"data": A}, "copy"),
        "other": ({"data": B}, "fashion-mnist"),
    }
    cases |= {"named": (None, "fashion-mnist"), "unnamed": (None, "copy")}
    for name, (inputs, place) in cases.items():
        mine = made(tmp_path / name, inputs, data={"path": place})
        (row,) = [one for one in summarise(load([random, mine])) if one.method == "dap"]
        assert (row.over_random is not None) is (name in ("same", "copy", "named")), name
