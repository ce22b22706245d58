"""`dap report` and `dap rank` from Python: which sets a place holds, and what is said where it holds none."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from dap.base.errors import DapError
from dap.verbs.planning.status import status
from dap.verbs.rank import rank
from dap.verbs.report import found_sets
from reported import make_set, recipe, trial


@pytest.fixture
def good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_set(tmp_path / "good" / "set", recipe("dap", 0), [trial(0.7)])


def test_a_named_place_without_a_set_is_no_silence(good, tmp_path):
    foreign = tmp_path / "foreign"
    (foreign / "shirt").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(foreign / "shirt" / "0.png")
    (tmp_path / "empty").mkdir()
    places = [good.parent, foreign, tmp_path / "empty", tmp_path / "nowhere"]
    with pytest.raises(DapError) as told:
        found_sets(places)
    said = str(told.value)
    assert f"dap evaluate {foreign} --data FOLDER, then give foreign-judged." in said and "good" not in said
    assert f"{tmp_path / 'empty'}; give the folder of a set" in said and "no such folder" in said
    with pytest.raises(DapError, match="No set is given"):
        found_sets([])
    kept = make_set(tmp_path / "foreign-judged" / "judged" / "foreign", None, [trial(0.6)])
    with pytest.raises(
        DapError, match="dap evaluate keeps the results of such a folder in foreign-judged, so give that"
    ):
        found_sets(places[:2])
    assert [one.resolve() for one in found_sets([good.parent, "foreign-judged"])] == [good, kept]


def test_what_a_killed_draw_left_is_no_set(good):
    shutil.copytree(good, good.with_name(".set.anew"))
    (good.with_name(".set.gone") / "inner").mkdir(parents=True)
    shutil.copy(good / "classes.json", good.with_name(".set.gone") / "inner")
    assert found_sets(good.parent) == [good]
    assert [one.path for one in status(good.parent).sets] == [good]
    assert found_sets(good.with_name(".set.anew")) == [good.with_name(".set.anew")], "unless it is named itself"


def test_random_sets_alone_have_no_ranking(tmp_path):
    made = make_set(tmp_path / "set", recipe("random", 0), [trial(0.7)])
    with pytest.raises(
        DapError, match="All of these sets are random real images.* name evaluated sets of other methods too"
    ):
        rank(made, hard="small-hard")
