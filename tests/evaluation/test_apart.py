"""Kind 9, case G: `--out` takes everything that is written, and nothing is written beside what is read unless asked."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from dap.base.errors import DapError
from dap.base.files import check_writable
from dap.cli.main import main
from dap.data.sets.differences import classes_apart, differences
from dap.data.sets.notes import NOTES
from dap.evaluation.apart import FACTS, RESULTS, copied_apart

SMALL = ["--networks", "convnet1", "--set", "size=8", "--set", "width=2", "--epochs", "1", "--set", "mean=[0.5]"]
SMALL += ["--set", "std=[0.25]"]
BY = "small-hard+epochs=1+size=8+width=2+mean=0.5+std=0.25"  # how trials by these flags are called


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def ours(colours, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ours") / "set"
    how = ["--method", "random", "--data", str(colours), "--size", "8", "--ipc", "2", "--out", str(out)]
    assert main(["distill", *how]) == 0
    return out


@pytest.fixture
def theirs(colours, tmp_path) -> Path:
    for folder in (colours / "train").iterdir():
        (tmp_path / "theirs" / folder.name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(folder / f"{i}.png", tmp_path / "theirs" / folder.name)
    return tmp_path / "theirs"


def test_out_takes_everything_that_judging_writes(ours, tmp_path, monkeypatch, capsys):
    """Case G: a set in a folder that cannot be written is judged with --out."""
    before, write = files(ours), os.replace

    def refused(source, target):
        if Path(target).resolve().is_relative_to(ours):
            raise OSError(30, "Read-only file system", str(target))
        return write(source, target)

    monkeypatch.setattr("os.replace", refused)
    out = tmp_path / "out"
    assert main(["evaluate", str(ours), *SMALL, "--out", str(out)]) == 0, capsys.readouterr().err
    assert files(ours) == before
    kept = out / "judged" / "set"
    assert {"trials.jsonl", "measures.json", "images.json", "map.npz", "protocols.json"} <= set(files(kept))
    assert (out / "report.html").read_text().count('class="exact"') == 6
    line = (kept / "trials.jsonl").read_text()
    assert main(["evaluate", str(ours), *SMALL, "--out", str(out)]) == 0
    assert (kept / "trials.jsonl").read_text() == line, "a trial that is there counts"
    assert main(["report", str(out), "--out", str(tmp_path / "again")]) == 0, "the results alone are reported on"


def test_each_file_that_a_report_reads_goes_with_the_results(ours, tmp_path):
    assert set(NOTES) <= {*FACTS, *RESULTS}
    chosen = shutil.copytree(ours, tmp_path / "set")
    (chosen / "chosen.json").write_text('{"choices": []}')
    copied_apart(chosen, tmp_path / "kept")
    assert (tmp_path / "kept" / "chosen.json").read_text() == '{"choices": []}'


def test_a_folder_that_others_made_gets_no_file_unless_asked(theirs, colours, tmp_path, monkeypatch, capsys):
    """Case G: a judged folder of others got 14 files."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = files(theirs)
    assert main(["evaluate", str(theirs), "--data", str(colours), *SMALL]) == 0
    assert files(theirs) == before and "theirs-judged/report.html" in capsys.readouterr().out
    assert "judged/theirs/trials.jsonl" in files(tmp_path / "here" / "theirs-judged")
    assert main(["evaluate", str(theirs), "--data", str(colours), *SMALL, "--out", str(theirs)]) == 0
    assert (theirs / "trials.jsonl").is_file(), "now it was asked"


def test_a_trial_beside_the_set_counts_elsewhere(ours, tmp_path):
    made = tmp_path / "set"
    shutil.copytree(ours, made)
    assert main(["evaluate", str(made), *SMALL]) == 0
    line = json.loads((made / "trials.jsonl").read_text())
    assert main(["evaluate", str(made), *SMALL, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "judged" / "set" / "trials.jsonl").read_text()) == line


@pytest.fixture
def judged_by(colours, pipeline_folder) -> list[str]:
    """Flags with which `dap classify` is quick."""
    return ["--backbone", str(pipeline_folder), "--data", str(colours), "--reals", "2", "--times", "2"]


def test_out_takes_everything_that_classify_writes(ours, judged_by, tmp_path, capsys):
    before, out = files(ours), tmp_path / "out"
    assert main(["classify", str(ours), *judged_by, "--out", str(out)]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert files(ours) == before and "judged/set/zeroshot.json" in files(out)
    assert str(out / "judged" / "set") in printed and f"Next: dap report {out} --out report" in printed
    assert not list(out.rglob(".zeroshot"))
    assert main(["evaluate", str(ours), *SMALL, "--out", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert page.count("to the backbone ") == 12, "the page on the same folder has the six labels, each said twice"
    noted = (out / "judged" / "set" / "zeroshot.json").read_bytes()
    assert main(["classify", str(ours), *judged_by, "--out", str(out)]) == 0
    assert (out / "judged" / "set" / "zeroshot.json").read_bytes() == noted, "what is there is not computed again"


def test_a_folder_that_others_made_gets_no_labels_unless_asked(theirs, judged_by, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = files(theirs)
    assert main(["classify", str(theirs), *judged_by]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert files(theirs) == before and "judged/theirs/zeroshot.json" in files(tmp_path / "here" / "theirs-judged")
    advised = printed.rpartition("Next: dap ")[2].split()
    assert main(advised) == 0 and (tmp_path / "here" / "report" / "report.html").is_file(), "the advice can be followed"
    assert main(["classify", str(theirs), *judged_by, "--out", str(theirs)]) == 0
    assert (theirs / "zeroshot.json").is_file(), "now it was asked"


def test_a_wrong_turn_of_classify_leaves_no_folder(ours, judged_by, tmp_path, capsys):
    wrong = [*judged_by, "--split", "test=nowhere"]
    assert main(["classify", str(ours), *wrong, "--out", str(tmp_path / "out")]) != 0
    assert "nowhere" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_out_takes_everything_that_rank_writes(ours, colours, pipeline_folder, tmp_path, capsys):
    made, out = tmp_path / "sets" / "vanilla", tmp_path / "out"
    shutil.copytree(ours, tmp_path / "sets" / "random")
    how = ["--method", "vanilla", "--backbone", str(pipeline_folder), "--data", str(colours), "--steps", "2"]
    assert main(["distill", *how, "--ipc", "2", "--out", str(made)]) == 0
    sets = [str(made), str(made.parent / "random")]
    assert main(["evaluate", *sets, *SMALL, "--out", str(out)]) == 0
    before = files(made.parent)
    ranked = ["rank", *sets, "--network", "convnet1", "--own", BY]
    capsys.readouterr()
    assert main(ranked) != 0, "the trials lie in the other folder"
    assert "No trial of convnet1" in capsys.readouterr().err
    assert main([*ranked, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert files(made.parent) == before and "judged/vanilla/ranking.json" in files(out)
    scores = json.loads((out / "judged" / "vanilla" / "ranking.json").read_text())
    assert f"ior {scores['ior']:.3f}" in printed and f"Next: dap report {out} --out report" in printed
    assert "judged/random/ranking.json" not in files(out)
    assert main(["report", str(out), "--out", str(tmp_path / "page")]) == 0
    assert "DD-Ranking" in (tmp_path / "page" / "report.html").read_text()


def test_out_of_rank_takes_trials_that_lie_beside_the_sets_and_in_results(ours, colours, tmp_path):
    """A folder of results is ranked into another one without its images, and trials made since are added."""
    sets, out = tmp_path / "sets", tmp_path / "out"
    for name, method in (("random", "random"), ("other", "herding")):
        shutil.copytree(ours, sets / name)
        recipe = json.loads((sets / name / "recipe.json").read_text())
        (sets / name / "recipe.json").write_text(json.dumps(recipe | {"method": method}))
        assert main(["evaluate", str(sets / name), *SMALL, "--out", str(tmp_path / "first")]) == 0
    ranked = ["--network", "convnet1", "--own", BY, "--out", str(out)]
    assert main(["rank", str(tmp_path / "first"), *ranked]) == 0
    kept = out / "judged" / "other"
    assert len((kept / "trials.jsonl").read_text().splitlines()) == 1
    first = tmp_path / "first" / "judged" / "other"
    assert (kept / "manifest.jsonl").read_bytes() == (first / "manifest.jsonl").read_bytes()
    for name in ("random", "other"):
        assert main(["evaluate", str(sets / name), *SMALL, "--trials", "2", "--out", str(tmp_path / "first")]) == 0
    assert main(["rank", str(tmp_path / "first"), *ranked]) == 0
    assert [json.loads(line)["seed"] for line in (kept / "trials.jsonl").read_text().splitlines()] == [0, 1]
    more = first / "trials.jsonl"  # trials on other test images
    more.write_text(more.read_text().replace('"tested": "', '"tested": "f').replace('"seed": 1', '"seed": 7'))
    assert main(["rank", str(tmp_path / "first"), *ranked]) == 0
    assert [json.loads(line)["seed"] for line in (kept / "trials.jsonl").read_text().splitlines()] == [0, 7], "newer"


@pytest.mark.parametrize(("verb", "more"), [("evaluate", SMALL), ("report", [])])
def test_what_cannot_be_written_is_said_before_any_work(verb, more, ours, capsys):
    status = main([verb, str(ours), "--out", "/proc/nowhere", *more])  # no file can be made there
    said = capsys.readouterr().err
    assert status != 0 and "/proc/nowhere cannot be written" in said and "Give another folder with --out" in said
    assert not (ours / "trials.jsonl").exists()


@pytest.mark.parametrize("verb", ["classify", "rank"])
def test_what_keeps_its_result_in_the_set_says_so_before_any_work(verb, ours, judged_by, monkeypatch, capsys):
    def refuse(path, data):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    options = judged_by if verb == "classify" else ["--hard", "small-hard"]
    assert main([verb, str(ours), *options]) != 0
    assert f"{ours} cannot be written (Read-only file system)" in capsys.readouterr().err


def test_a_folder_is_made_to_write_into(tmp_path):
    check_writable(tmp_path / "a" / "b", "Do this.")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DapError, match=r"cannot be written \(.*\). Do this\."):
        check_writable(tmp_path / "file" / "b", "Do this.")


def test_processes_that_try_one_folder_at_a_time_do_not_take_each_other_s_probe(tmp_path):
    def tries(_):
        for _ in range(200):
            check_writable(tmp_path, "Do this.")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tries, range(8)))
    assert not list(tmp_path.iterdir())


def test_results_are_not_written_through_a_link(ours, tmp_path, capsys):
    """First section, paths: nothing that a set brings leads out of its folder."""
    made, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    shutil.copytree(ours, made)
    elsewhere.mkdir()
    Image.new("RGB", (2, 2)).save(elsewhere / "mine.png")
    (made / "neighbours").symlink_to(elsewhere)
    assert main(["evaluate", str(made), *SMALL]) != 0 and "is a symbolic link" in capsys.readouterr().err
    (made / "neighbours").unlink()
    (elsewhere / "profile").write_text("mine\n")
    (made / "trials.jsonl").symlink_to(elsewhere / "profile")
    assert main(["evaluate", str(made), *SMALL]) != 0
    assert (elsewhere / "profile").read_text() == "mine\n" and (elsewhere / "mine.png").exists()


@pytest.mark.parametrize("name", ["measures.json", "images.json", "protocols.json", "trials.jsonl", "map.npz"])
def test_judging_goes_on_over_damaged_results(ours, tmp_path, name, caplog):
    made = tmp_path / "set"
    shutil.copytree(ours, made)
    (made / name).write_bytes(b'{"a": \xff')
    assert main(["evaluate", str(made), *SMALL]) == 0
    assert name == "map.npz" or name in caplog.text
    assert len((made / "trials.jsonl").read_text().splitlines()) == 1


def test_a_mismatch_of_classes_names_the_difference():
    """Case F2: 2,000 classes, one spelt otherwise, gave 56 KB of names."""
    mine = [f"class {i}" for i in range(2000)]
    theirs = [*mine[:-1], "Class_1999"]
    said = classes_apart(mine, theirs, "The set x", "the test data") or ""
    assert len(said) < 200 and said.count("class 1999") == 2 and "class 1999 may be Class_1999" in said
    assert classes_apart(mine, mine[::-1], "a", "b") is None
    many = classes_apart(mine, [f"other {i}" for i in range(2000)], "The set x", "the test data") or ""
    assert "and 1990 more" in many and len(many) < 1000
    (line,) = differences({"classes": mine}, {"classes": theirs})
    assert len(line) < 250 and "Class_1999" in line


def test_damaged_real_images_are_allowed_as_the_recipe_says(colours, tmp_path, capsys):
    """Case B9: evaluate forgot the recipe's max_bad_fraction, and could not take one."""
    data = tmp_path / "data"
    shutil.copytree(colours, data)
    for i in range(2):
        (data / "test" / "red" / f"{i}.png").write_bytes(b"no image")
    how = ["--method", "random", "--data", str(data), "--size", "8", "--ipc", "1"]
    assert main(["distill", *how, "--max-bad-fraction", "0.5", "--out", str(tmp_path / "a")]) == 0
    assert main(["evaluate", str(tmp_path / "a"), *SMALL]) == 0
    assert main(["distill", *how, "--out", str(tmp_path / "b")]) == 0
    assert main(["evaluate", str(tmp_path / "b"), *SMALL]) != 0 and "raise max_bad_fraction" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "b"), *SMALL, "--max-bad-fraction", "0.5"]) == 0, (
        "the advice can be followed"
    )


def test_a_trial_whose_line_lacks_its_end_is_kept(ours, tmp_path):
    """A writer that was killed before the newline has recorded the whole trial; it is neither trained again nor lost."""
    made = tmp_path / "set"
    shutil.copytree(ours, made)
    assert main(["evaluate", str(made), *SMALL]) == 0
    file, page = made / "trials.jsonl", made / "report.html"
    line = file.read_text()
    file.write_text(line.rstrip("\n"))
    assert main(["evaluate", str(made), *SMALL]) == 0
    assert file.read_text() == line and page.is_file()


def test_a_set_whose_names_are_decomposed_is_judged_on_composed_ones(colours, tmp_path):
    """Case A13: a set of others, or of an earlier version, may keep the names that a Mac wrote."""
    single, composed = unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFC", "café")
    data, made = tmp_path / "data", tmp_path / "set"
    shutil.copytree(colours, data)
    for split in ("train", next(folder.name for folder in data.iterdir() if folder.name != "train")):
        (data / split / "red").rename(data / split / composed)
    how = ["--method", "random", "--data", str(data), "--size", "8", "--ipc", "2", "--out", str(made)]
    assert main(["distill", *how]) == 0
    for name in ("classes.json", "manifest.jsonl", "inputs.json", "recipe.json", "env.json"):
        text = (made / name).read_text()
        (made / name).write_text(text.replace(composed, single).replace("caf\\u00e9", "cafe\\u0301"))
    assert single in json.loads((made / "classes.json").read_text())["names"]
    assert main(["evaluate", str(made), "--data", str(data), *SMALL]) == 0
    measures = json.loads((made / "measures.json").read_text())
    assert set(measures["by_class"]) == {single, "green", "blue"} and measures["coverage"] > 0
