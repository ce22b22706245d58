"""Of results beside a set and results that are kept apart from it, those of its images count, and of these the newer ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dap.evaluation.apart import copied_apart
from dap.evaluation.current import joined, key_of
from dap.evaluation.recorded import BEFORE, RecordedTrials
from dap.evaluation.report.records import load
from dap.verbs.rank import rank
from reported import make_set, recipe, trial, write_lines


def key(made: Path) -> str:
    return key_of([json.loads(line)["sha256"] for line in (made / "manifest.jsonl").read_text().splitlines()])


def keyed(made: Path, last: float, tested: str, by: str, **changes: Any) -> dict[str, Any]:
    return trial(last, judged=key(made), tested=tested, by=by, **changes)


def lasts(folder: Path) -> list[float]:
    return [line["last"] for line in load([folder])[0].trials]


def measured(made: Path, diversity: float, at: float, images: str | None = None) -> None:
    """Write measures at a time, with a map and a list of images."""
    note = {"features": "x", "diversity": diversity, "judged": joined(images or key(made), "rest")}
    (made / "measures.json").write_text(json.dumps(note))
    (made / "map.npz").write_text(f"the map of {diversity}")
    (made / "zeroshot.json").write_text(json.dumps({"agreement": diversity / 10, "judged": note["judged"]}))
    for name in ("measures.json", "map.npz", "zeroshot.json"):
        os.utime(made / name, (at, at))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_set(tmp_path / "sets" / "dap", recipe("dap", 0))


def test_newer_trials_take_the_place_of_older_ones_of_the_same_protocol_and_network(made, tmp_path):
    apart = tmp_path / "apart"
    write_lines(made / "trials.jsonl", [keyed(made, 0.6, "t", "b"), keyed(made, 0.1, "t", "q", protocol="other")])
    (made / "protocols.json").write_text('{"b": {"lr": 1}}')
    copied_apart(made, apart)
    assert lasts(apart) == [0.6, 0.1]
    write_lines(made / "trials.jsonl", [keyed(made, 0.8, "u", "c"), keyed(made, 0.1, "t", "q", protocol="other")])
    (made / "protocols.json").write_text('{"c": {"lr": 2}}')
    for _ in range(2):
        copied_apart(made, apart)
        assert sorted(lasts(apart)) == [0.1, 0.8] and set(load([apart])[0].protocols) == {"b", "c"}
    assert [json.loads(line)["last"] for line in (apart / BEFORE).read_text().splitlines()] == [0.6], "nothing is lost"


def test_trials_that_were_made_apart_stay_where_nothing_beside_the_set_is_newer(made, tmp_path):
    apart = tmp_path / "apart"
    write_lines(made / "trials.jsonl", [keyed(made, 0.6, "t", "b")])
    copied_apart(made, apart)
    of = {"judged": key(made), "tested": "u", "by": "b"}
    assert RecordedTrials(apart).valid(of, {"name": "small-hard"}, "convnet3") == {}
    whole = keyed(made, 0.9, "u", "b") | {"curve": [[300, 0.9]]}
    (apart / "trials.jsonl").write_text(json.dumps(whole) + "\n")
    write_lines(made / "trials.jsonl", [keyed(made, 0.6, "t", "b"), keyed(made, 0.1, "t", "q", protocol="other")])
    copied_apart(made, apart)
    assert lasts(apart) == [0.9, 0.1], "the file beside the set has changed, and its trial of this protocol has not"
    found = RecordedTrials(apart).valid(of | {"tested": "t"}, {"name": "small-hard"}, "convnet3")
    assert [one.last for one in found.values()] == [0.6], "the first test data again: nothing is trained again"
    assert sorted(lasts(apart)) == [0.1, 0.6]


def test_results_of_a_set_that_was_made_anew_are_taken_up(made, tmp_path):
    apart = tmp_path / "apart"
    write_lines(made / "trials.jsonl", [keyed(made, 0.6, "t", "b")])
    measured(made, 1.0, at=9e9)
    copied_apart(made, apart)
    old = key(made)
    shutil.rmtree(made)
    make_set(made, recipe("dap", 0), slots=3)
    write_lines(made / "trials.jsonl", [keyed(made, 0.8, "t", "b")])
    measured(made, 7.0, at=1.0)  # what is of these images counts, however old its file is
    copied_apart(made, apart)
    (found,) = load([apart])
    assert lasts(apart) == [0.8] and not found.outdated
    assert found.measures["diversity"] == 7 and found.zeroshot["agreement"] == 0.7
    assert (apart / "map.npz").read_text() == "the map of 7.0"
    measured(made, 3.0, at=9e9, images=old)
    copied_apart(made, apart)
    assert load([apart])[0].measures["diversity"] == 7, "and what is of other images does not, however new it is"


@pytest.mark.parametrize(("at", "kept"), [(9e9, 2.0), (1.0, 5.0)])
def test_of_two_notes_of_the_images_the_newer_one_counts(made, tmp_path, at, kept):
    apart = tmp_path / "apart"
    measured(made, 1.0, at=1.0)
    copied_apart(made, apart)
    measured(apart, 5.0, at=1000.0, images=key(made))
    measured(made, 2.0, at=at)
    if at < 1000:
        (made / "map.npz").unlink()
    copied_apart(made, apart)
    (found,) = load([apart])
    assert found.measures["diversity"] == kept and found.zeroshot["agreement"] == kept / 10
    assert (apart / "map.npz").read_text() == f"the map of {kept}"


def test_rank_scores_what_the_sets_hold_now_and_its_advice_can_be_followed(made, tmp_path):
    random, out = make_set(tmp_path / "sets" / "random", recipe("random", 0)), tmp_path / "out"
    for accuracy, base, tested in ((0.6, 0.5, "t"), (0.8, 0.75, "u")):
        for one, last in ((made, accuracy), (random, base)):
            write_lines(one / "trials.jsonl", [keyed(one, last, tested, tested)])
        apart, beside = (rank(tmp_path / "sets", own="small-hard", out=each) for each in (out, None))
        scores = [next(iter(found.values())).ior for found in (apart, beside)]
        assert scores[0] == scores[1] == pytest.approx(accuracy - base)
    (made / "trials.jsonl").unlink()
    shutil.rmtree(out)
    (found,) = rank(tmp_path / "sets", own="small-hard", out=out).values()
    assert any(f"dap evaluate --out {out} makes one" in one for one in found.lacks)
