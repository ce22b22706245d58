"""The results of each set that is judged with `--out` lie in a folder that depends on this set alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dap.cli.main import main
from dap.evaluation.report.records import load
from dap.verbs.placing import OF, placed

SMALL = ["--networks", "convnet1", "--set", "size=8", "--set", "width=2", "--epochs", "1", "--set", "mean=[0.5]"]
SMALL += ["--set", "std=[0.25]"]


def of_others(data: Path, folder: Path, first: int) -> Path:
    """A folder that others made: two training images a class."""
    for source in (data / "train").iterdir():
        (folder / source.name).mkdir(parents=True)
        for i in (first, first + 1):
            shutil.copy(source / f"{i}.png", folder / source.name)
    return folder


def judged(data: Path, out: Path, *sets: Path) -> None:
    assert main(["evaluate", *map(str, sets), "--data", str(data), *SMALL, "--out", str(out)]) == 0


def trials(folder: Path) -> str:
    return (folder / "trials.jsonl").read_text()


@pytest.fixture
def two(colours, tmp_path) -> tuple[Path, Path]:
    return of_others(colours, tmp_path / "a" / "ipc2", 0), of_others(colours, tmp_path / "b" / "ipc2", 2)


def test_two_sets_of_one_name_have_folders_of_their_own(two, colours, tmp_path):
    """The second call deleted the trials of the first set."""
    out = tmp_path / "out"
    judged(colours, out, two[0])
    before = trials(out / "judged" / "ipc2")
    judged(colours, out, two[1])
    assert trials(out / "judged" / "ipc2") == before
    (other,) = (out / "judged").glob("ipc2-*")
    first, second = load([out / "judged" / "ipc2", other])
    assert first.trials[0]["judged"] != second.trials[0]["judged"] and first.title != second.title
    assert sorted(one.name for one in (out / "judged").iterdir()) == ["ipc2", other.name], "the lease is gone"


def test_the_folder_of_a_set_does_not_depend_on_the_other_sets(two, colours, tmp_path):
    """With another set in the call the first one was trained again, in another folder."""
    out = tmp_path / "out"
    judged(colours, out, two[0])
    file = out / "judged" / "ipc2" / "trials.jsonl"
    before = file.stat().st_mtime_ns, file.read_text()
    judged(colours, out, *two)
    assert (file.stat().st_mtime_ns, file.read_text()) == before
    assert len(list((out / "judged").glob("**/trials.jsonl"))) == 2


def test_results_of_earlier_versions_and_of_a_set_that_was_moved_are_found(two, colours, tmp_path):
    out = tmp_path / "out"
    judged(colours, out, *two)
    (second,) = (out / "judged").glob("ipc2-*")
    (out / "judged" / "b").mkdir()
    second.rename(out / "judged" / "b" / "ipc2")  # where an earlier version kept it
    (out / "judged" / "b" / "ipc2" / OF).unlink()
    before = [trials(out / "judged" / name) for name in ("ipc2", "b/ipc2")]
    two[0].parent.rename(tmp_path / "c")
    judged(colours, out, tmp_path / "c" / "ipc2", two[1])
    assert [trials(out / "judged" / name) for name in ("ipc2", "b/ipc2")] == before
    assert len(list((out / "judged").glob("**/trials.jsonl"))) == 2


@pytest.mark.parametrize("damage", ["{", "[]", '{"set": 3}'])
def test_a_folder_whose_note_is_damaged_is_not_written_over_by_another_set(two, damage, colours, tmp_path):
    out = tmp_path / "out"
    judged(colours, out, two[0])
    (out / "judged" / "ipc2" / OF).write_text(damage)
    before = trials(out / "judged" / "ipc2")
    judged(colours, out, two[1])
    assert trials(out / "judged" / "ipc2") == before and len(list((out / "judged").glob("ipc2-*"))) == 1


def test_results_follow_a_set_that_is_made_anew(two, colours, tmp_path):
    """The pictures were those of the first set, and a folder that others made kept the recipe of ours."""
    made, out = tmp_path / "set", tmp_path / "out"
    how = ["distill", "--method", "random", "--data", str(colours), "--size", "8", "--ipc", "1", "--out", str(made)]
    pictures = []
    for seed in ("0", "1"):
        shutil.rmtree(made, ignore_errors=True)
        assert main([*how, "--seed", seed]) == 0
        judged(colours, out, made)
        (record,) = load([out / "judged" / "set"])
        for line in record.images:
            assert (record.path / line["path"]).read_bytes() == (made / line["path"]).read_bytes()
        assert record.method == "random" and record.seed == int(seed)
        pictures.append([(record.path / line["path"]).read_bytes() for line in record.images])
    assert pictures[0] != pictures[1]
    shutil.rmtree(made)
    shutil.copytree(two[0], made)
    judged(colours, out, made)
    (record,) = load([out / "judged" / "set"])
    assert record.recipe == {} and record.command == "" and record.title == "set" and len(record.images) == 6
    assert [json.loads(line)["n_train"] for line in trials(record.path).splitlines()] == [6]


def test_results_of_results_are_those_of_the_set(two, colours, tmp_path):
    """`dap rank` takes a folder of results too."""
    judged(colours, tmp_path / "first", *two)
    sets = [file.parent for file in sorted((tmp_path / "first").glob("**/classes.json"))]
    found = placed(sets, tmp_path / "out")
    assert len(set(found)) == 2 and placed(sets[::-1], tmp_path / "out") == found[::-1]
    judged(colours, tmp_path / "out", *two)
    assert len(list((tmp_path / "out" / "judged").glob("**/trials.jsonl"))) == 2


def test_cells_of_a_grid_keep_the_name_that_says_what_was_varied(two, colours, tmp_path):
    sets = [tmp_path / "grid" / f"scale={scale}" / "seed0" for scale in (0, 1)]
    for cell, folder in zip(sets, two, strict=True):
        shutil.copytree(folder, cell)
        judged(colours, tmp_path / "out", cell)
    found = sorted(file.parent for file in (tmp_path / "out").glob("**/classes.json"))
    assert found == [tmp_path / "out" / "judged" / f"scale={scale}" / "seed0" for scale in (0, 1)]
