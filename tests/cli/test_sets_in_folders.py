"""A folder of sets is no folder of classes, and a set that is there already is no place for the results of others."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from dap.cli.main import main
from dap.data.real.finding.made import made_in
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.verbs.options import Machine

FAST = "--networks convnet1 --set width=4 --set size=8 --set epochs=1"


@pytest.fixture(scope="module")
def made(colours, tmp_path_factory):
    """A folder with data, and with sets one, two and three folders deep in it."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(colours, folder / "photos")
    recipe = Recipe.parse({"method": "random", "ipc": 1, "data": {"path": str(folder / "photos"), "size": 8}})
    distill(recipe, folder / "runs/a", machine=Machine(device="cpu"))
    for place in ("runs/b", *(f"runs/compared/method={name}_ipc=1/seed0" for name in "xy")):
        shutil.copytree(folder / "runs/a", folder / place)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of `made` of one's own, as the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_sets_are_found_at_each_depth_and_classes_are_not_listed(made):
    assert made_in(made / "runs") == ["a", "b", *(f"compared/method={name}_ipc=1/seed0" for name in "xy")]
    assert made_in(made / "runs", ["b"]) == ["b"]
    assert made_in(made) == ["runs/a", "runs/b"]  # no deeper than three folders
    assert made_in(made / "photos") == made_in(made / "runs/a") == []


@pytest.mark.parametrize("folder", ["runs", "runs/compared"])
@pytest.mark.parametrize(
    "line",
    [
        "verify {}",
        "export {} --layout imagefolder --out new",
        "import {} --out new",
        "import {} --ipc 1 --out new",
        "look {}",
        "distill --data {} --method random --ipc 1 --out new",
        "evaluate {}",
        "evaluate {} --data photos",
        "evaluate {} --data photos --dry-run",
    ],
)
def test_a_folder_of_sets_is_told_and_its_advice_works(folder, line, place, capsys):
    assert main(shlex.split(line.format(folder))) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"dap: error: {folder} holds the distilled sets ")
    assert not (place / "new").exists() and not list(place.glob("*-judged"))
    if "evaluate" in line:
        again = f"{re.search(r'by name: dap (.*)[.]$', said)[1]} {line.format('').removeprefix('evaluate ')} {FAST}"
    else:
        again = line.format(re.search(r"(?:such as|of a set:) (.*)[.]$", said)[1])
        again += " --size 8" * ("distill" in line)
    assert main(shlex.split(again)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("flags", ["--layout folders", "--classes sorted", "--layout folders --classes runs"])
def test_a_word_on_the_layout_makes_no_classes_of_sets(flags, place, capsys):
    assert main(shlex.split(f"import . --ipc 1 {flags} --out ../new")) == 1
    assert "holds the distilled sets runs/a, runs/b." in capsys.readouterr().err


def test_folders_beside_classes_count_only_where_they_are_taken_as_classes(place, capsys):
    shutil.copytree("photos/train", "animals")
    shutil.copytree("runs", "animals/runs")
    take = "distill --data animals --method random --ipc 1 --size 8 --split train=.,test=. --out new"
    assert main(shlex.split(take)) == 1
    assert "animals holds the distilled sets runs/a, runs/b" in capsys.readouterr().err
    assert main(shlex.split(f"{take} --classes red green")) == 0
    assert main(shlex.split("import animals --out imported --ipc 1 --classes red runs")) == 1
    assert "animals holds the distilled sets runs/a, runs/b" in capsys.readouterr().err
    assert main(shlex.split("import animals --out imported --ipc 1 --classes red green")) == 0


def test_a_set_is_no_folder_of_real_images_but_its_images_are(place, capsys):
    (place / "runs/a/neighbours").mkdir()
    shutil.copy("photos/train/red/0.png", "runs/a/neighbours/0.png")
    line = "distill --data {} --method random --ipc 1 --size 8 --out new"
    assert main(shlex.split(line.format("runs/a"))) == 1
    said = capsys.readouterr().err
    assert "runs/a is a distilled set" in said
    assert main(shlex.split(line.format(re.search(r"of a set: (.*)[.]$", said)[1]))) == 0


def test_results_apart_from_their_sets_are_no_classes(place, capsys):
    assert main(shlex.split(f"evaluate runs/a --out page {FAST}")) == 0
    capsys.readouterr()
    for line in ("import page --out new", "evaluate page", "verify page"):
        assert main(shlex.split(line)) == 1
        assert "page holds results of distilled sets, such as judged/a, and not their" in capsys.readouterr().err


def files_of(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


GRID = f"--data photos --ipc 1 --size 8 --sets 1 {FAST}"


@pytest.mark.parametrize(
    "line",
    [
        f"evaluate runs/b --out runs/a/report.html {FAST}",
        "report runs/b --out runs/a/other.html",
        f"evaluate runs/b {FAST}",
        f"evaluate runs/b --dry-run {FAST}",
        "report runs/b",
        "report runs/compared runs/b",
        "rank runs/b",
        "classify runs/b --backbone starter",
        f"evaluate photos/train --data photos {FAST}",
        f"compare --methods random {GRID}",
        f"compare --methods random --dry-run {GRID}",
        f"compare {GRID}",
        f"sweep --vary ipc=1 --method random {GRID}",
        "demo --epochs 1",
    ],
)
def test_nothing_of_others_goes_into_a_set(line, place, capsys):
    before = files_of(place)
    assert main(shlex.split(line if "--out" in line else f"{line} --out runs/a")) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == (
        "dap: error: runs/a is the folder of another distilled set, and what is written there would be taken for its own. Give "
        "another folder with --out."
    )
    assert files_of(place) == before
    if not line.startswith(
        ("rank", "classify", "demo", "compare --data")
    ):  # these want more than this set has, or time
        again = line.replace("runs/a", "new") if "--out" in line else f"{line} --out new"
        assert main(shlex.split(again)) == 0, capsys.readouterr().err


def test_a_set_takes_its_own_report_and_one_that_it_is_a_part_of(place, capsys):
    assert main(shlex.split(f"evaluate runs/a runs/b {FAST}")) == 0
    assert (place / "runs/a/report.html").is_file() and (place / "runs/a/judged/b").is_dir()
    assert main(shlex.split("report runs --out runs/b")) == 0
    assert main(shlex.split("report runs/a/judged/b --out runs/a/judged/b")) == 0
    assert main(shlex.split("report runs/a --out runs")) == 0  # a folder of sets is none itself


@pytest.mark.parametrize("data", ["./photos", "photos/", "{here}/photos", "linked", "../here/photos"])
def test_another_spelling_of_the_same_data_goes_on_with_a_set_and_lets_it_grow(data, place, capsys):
    (place / "linked").symlink_to("photos")
    line = ["--size", "8", "--method", "random", "--out", "new", "--device", "cpu", "--ipc"]
    spelt = data.format(here=place)
    for path, ipc in (("photos", "1"), (spelt, "1"), (spelt, "2"), ("photos", "2")):
        assert main(["distill", "--data", path, *line, ipc]) == 0, capsys.readouterr().err
    shutil.copytree(place / "photos", place / "copied")
    capsys.readouterr()
    assert main(["distill", "--data", "copied", *line, "2"]) == 1
    assert "What changed: data.path: " in capsys.readouterr().err


def test_another_spelling_of_a_file_of_code_goes_on_with_a_set(place, capsys, monkeypatch):
    monkeypatch.syspath_prepend(place)
    (place / "own.py").write_text(
        "from beside import NAME\nfrom dap.methods.selection.random import Random\n\n\nclass Mine(Random):\n    name = NAME\n"
    )
    (place / "beside.py").write_text("NAME = 'mine'\n")
    for file in ("own.py", "./own.py", f"{place}/own.py"):
        line = ["distill", "--data", "photos", "--size", "8", "--method", f"{file}:Mine", "--ipc", "1", "--out", "new"]
        assert main([*line, "--device", "cpu"]) == 0, capsys.readouterr().err


def test_sets_are_no_data_to_judge_with(place, capsys):
    assert main(["evaluate", "runs/a", "--data", "runs"]) == 1
    assert "runs holds the distilled sets a, b, " in capsys.readouterr().err
    assert main(["evaluate", "runs/a", "--data", "runs/a/images"]) == 1
    err = capsys.readouterr().err
    assert "has no test split, as it holds the images of the distilled set" in err and "move" not in err
