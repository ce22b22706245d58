"""Accuracies are compared only where they may be: on the same test images, with the labels of the same teacher, by the same
protocol, and of the images that the sets hold now."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dap.base.errors import DapError
from dap.cli.main import main
from dap.evaluation.current import joined, key_of
from dap.evaluation.report.drawings.scatter import maps
from dap.evaluation.report.findings import summary
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.ranking import rank_sets
from dap.evaluation.report.records import load
from dap.evaluation.report.summary import summarise
from dap.evaluation.report.tables import accuracy_table
from reported import judged, make_set, ranked, recipe, trial, write_lines


def of_data(method: str, data: str | None, seed: int = 0) -> dict[str, Any] | None:
    return None if data is None else {**recipe(method, seed), "data": {"path": f"/somewhere/{data}"}}


def lines(paths: list[Path]) -> dict[str, dict[str, str]]:
    table = accuracy_table(summarise(load(paths)))
    return {line["group"]: line for line in csv.DictReader(io.StringIO(table.csv()))}


def settings(paths: list[Path]) -> set[str]:
    return {block.title for block in accuracy_table(summarise(load(paths))).blocks}


def test_other_test_images_are_another_setting(tmp_path):
    """A set of others was compared with the random images of other data than those that it was tested on."""
    random = [
        make_set(tmp_path / f"r{i}", of_data("random", "a", i), [trial(0.35, tested="aa", data="a")]) for i in (0, 1)
    ]
    theirs = make_set(tmp_path / "theirs", None, [trial(0.4, tested="bb")])
    found = lines([*random, theirs])
    assert found["theirs"]["vs_random"] == "" and found["theirs"]["apart"] != found["Random"]["apart"] == "tested on a"
    told, more = summary(summarise(load([*random, theirs])), load([*random, theirs]))
    assert "highest" not in told and not any("theirs" in line and "random" in line for line in more)
    own = make_set(tmp_path / "own", of_data("random", "b"), [trial(0.4, tested="bb", data="b")])
    found = lines([*random, theirs, own])
    assert float(found["theirs"]["vs_random"]) == 0
    assert {one.rpartition(", ")[2] for one in settings([*random, theirs, own])} == {"tested on a", "tested on b"}


def test_the_name_of_the_test_images_is_that_of_the_trial(tmp_path):
    """A set that was made of `data` and judged on `other` was said to be tested on `data`."""
    ours = make_set(tmp_path / "ours", of_data("random", "data"), [trial(0.5, tested="aa", data="other")])
    old = make_set(tmp_path / "old", of_data("dap", "data"), [trial(0.5, tested="bb")])
    assert sorted(aparts([ours, old])) == ["tested on images (bb)", "tested on other"], (
        "the recipe says nothing on the tests"
    )
    new = make_set(tmp_path / "new", of_data("vanilla", "data"), [trial(0.5, tested="bb", data="other")])
    assert set(aparts([ours, old, new])) == {"tested on other (aa)", "tested on other (bb)"}


def test_the_same_classes_in_another_order_are_said(tmp_path):
    """`--classes` in another order numbers the labels in another way, so the test set is another one."""
    there = make_set(tmp_path / "there", of_data("random", "a"), [trial(0.5, tested="aa", data="a")], ("bag", "shirt"))
    back = make_set(tmp_path / "back", of_data("dap", "a"), [trial(0.5, tested="bb", data="a")], ("shirt", "bag"))
    said = {"tested on a (aa), whose first class is bag", "tested on a (bb), whose first class is shirt"}
    assert set(aparts([there, back])) == said


def test_nothing_is_said_where_all_is_alike(tmp_path):
    paths = [make_set(tmp_path / m, recipe(m, 0), [trial(0.5, tested="aa", by="p")]) for m in ("vanilla", "dap")]
    assert {line["apart"] for line in lines(paths).values()} == {""}


def test_a_mean_over_networks_is_of_one_test_set(tmp_path):
    trials = [trial(0.9, network="convnet4", tested="aa", data="a"), trial(0.3, tested="bb", data="a")]
    path = make_set(tmp_path / "random", of_data("random", "a"), trials)
    assert {one.rpartition(", ")[2] for one in settings([path])} == {"tested on a (aa)", "tested on a (bb)"}


@pytest.mark.parametrize("names", [("T1", "T2"), ("T", "T")])
def test_another_teacher_is_another_setting(tmp_path, names):
    paths = []
    for mark, (method, name) in enumerate(zip(("random", "vanilla"), names, strict=True)):
        for seed in (0, 1):
            path = make_set(tmp_path / f"{method}{seed}", recipe(method, seed))
            hashes = [json.loads(line)["sha256"] for line in (path / "manifest.jsonl").read_text().splitlines()]
            write_lines(path / "trials.jsonl", [trial(0.5, labels=name, by=f"p{mark}", judged=key_of(hashes))])
            labels = {"kind": "soft", "teacher": name, "fingerprint": f"{mark}abcdef"}
            (path / "protocols.json").write_text(json.dumps({f"p{mark}": {"lr": 0.1, "labels": labels}}))
            paths.append(path)
    assert len(settings(paths)) == 2 and all("labels by T" in one for one in settings(paths))


def test_labels_of_the_images_of_each_set_are_of_one_teacher(tmp_path):
    paths = []
    for mark, method in enumerate(("random", "vanilla")):
        path = make_set(tmp_path / method, recipe(method, 0), [trial(0.5, labels="backbone:starter", by=f"p{mark}")])
        labels = {"kind": "stored", "teacher": "backbone:starter", "fingerprint": f"{mark}"}
        (path / "protocols.json").write_text(json.dumps({f"p{mark}": {"lr": 0.1, "labels": labels}}))
        paths.append(path)
    assert len(settings(paths)) == 1


def test_an_edited_protocol_of_one_name_is_another_setting(tmp_path):
    paths = []
    for i, method in enumerate(("random", "vanilla")):
        path = make_set(tmp_path / method, recipe(method, 0), [trial(0.5, by=f"p{i}")])
        facts = {
            "name": "mine",
            "lr": 0.1 * (i + 1),
            "momentum": 0.9,
            "source": f"text {i}",
            "weights": f"manifest m{i}",
        }
        (path / "protocols.json").write_text(json.dumps({f"p{i}": facts}))
        paths.append(path)
    assert {one.rpartition(", ")[2] for one in settings(paths)} == {"lr 0.1", "lr 0.2"}


def by_protocols(tmp_path: Path, facts: list[dict[str, Any]], **changes: Any) -> list[Path]:
    """Sets of one recipe, each trained by another record of one protocol."""
    paths = []
    for i, fields in enumerate(facts):
        made = {**recipe("dap", i), "ipc": fields.get("ipc", 2)}
        path = make_set(
            tmp_path / f"set{i}", made, [trial(0.5 + i / 10, protocol="mine", by=f"p{i}", judged=None, **changes)]
        )
        hashes = [json.loads(line)["sha256"] for line in (path / "manifest.jsonl").read_text().splitlines()]
        found = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
        write_lines(path / "trials.jsonl", [{**one, "judged": key_of(hashes)} for one in found])
        (path / "protocols.json").write_text(json.dumps({f"p{i}": {"name": "mine", "lr": 0.1, **fields}}))
        paths.append(path)
    return paths


def aparts(paths: list[Path]) -> list[str]:
    """The words of the settings of a report, each once."""
    return [row.setting.apart for row in summarise(load(paths)) if row.setting]


def labelled(**fields: Any) -> dict[str, Any]:
    return {"labels": {"kind": "soft", "temperature": 20.0, "teacher": "t.pt", **fields}}


@pytest.mark.parametrize(
    "one, other, headline",
    [
        (labelled(), labelled(temperature=4.0), "last"),
        (labelled(), labelled(kind="stored"), "last"),
        ({}, {"weights": "manifest abc"}, "last"),
        ({"looks": 1}, {"looks": 100}, "best"),
        ({"look_from": "0", "looks": 9}, {"look_from": "4/5", "looks": 9}, "best"),
    ],
)
def test_every_field_that_decides_the_score_keeps_trials_apart(tmp_path, one, other, headline):
    """The temperature, the weights and, where the best look is the headline, the looks were passed over."""
    name = "t.pt" if "labels" in one else "hard"
    (tmp_path / "same").mkdir()
    assert aparts(by_protocols(tmp_path / "same", [one, one], headline=headline, labels=name)) == [""]
    assert len(set(aparts(by_protocols(tmp_path, [one, other], headline=headline, labels=name))) - {""}) == 2


def test_looks_and_weights_of_a_set_keep_nothing_apart(tmp_path):
    facts = [{"looks": 1, "weights": "manifest a"}, {"looks": 9, "weights": "manifest b", "look_from": "1/2"}]
    assert aparts(by_protocols(tmp_path, facts)) == [""]


A, B = "aaaaaa1", "aaaaaa2"
"""Two fingerprints that begin alike, as those of two networks of one file of code do."""


@pytest.mark.parametrize(
    "whose, expected",
    [
        # A retrained classifier at one path that labelled one set each.
        ([("views", A, A), ("views", B, B)], [f"labels by t.pt ({A})", f"labels by t.pt ({B})"]),
        ([("views", A, A), ("views", A, A)], [""]),
        # Labels of the images have a fingerprint of each set.
        ([("images", A, "x"), ("images", A, "y")], [""]),
        ([("images", A, "x"), ("images", B, "y")], [f"labels by t.pt ({A})", f"labels by t.pt ({B})"]),
        ([("images", A, "x"), ("views", A, A)], ["image labels by t.pt", "labels by t.pt"]),
        # What a trial of an earlier version does not say differs from nothing, unless its fingerprint is known.
        ([("", "", "x"), ("", "", "y")], [""]),
        ([("views", A, A), ("", "", A)], [""]),
        ([("views", A, A), ("", "", "x")], [""]),
        ([("images", "", "x"), ("images", A, "y")], [""]),
        ([("views", A, A), ("views", B, B), ("", "", A)], [f"labels by t.pt ({A})", f"labels by t.pt ({B})"]),
        ([("", "", A), ("", "", A), ("", "", B), ("", "", B)], [f"labels by t.pt ({A})", f"labels by t.pt ({B})"]),
    ],
)
def test_labels_are_told_apart_by_whoever_gave_them(tmp_path, whose, expected):
    said = [{"of": of, "origin": origin, "fingerprint": mark} for of, origin, mark in whose]
    facts = [labelled(**{name: value for name, value in one.items() if value}) for one in said]
    assert aparts(by_protocols(tmp_path, facts, labels="t.pt")) == expected


def test_a_protocol_that_was_edited_between_sizes_is_another_setting(tmp_path):
    """The fields of sets of several sizes differ anyway, so an edit between them went unnoticed."""
    facts = [{"ipc": ipc, "unsettled": mark, "lr": ipc / 100} for ipc, mark in ((1, A), (10, B), (50, A))]
    assert sorted(aparts(by_protocols(tmp_path / "a", facts))) == [f"edited protocol ({A})"] * 2 + [
        f"edited protocol ({B})"
    ]
    assert set(aparts(by_protocols(tmp_path / "b", [one | {"unsettled": A} for one in facts]))) == {""}
    assert set(aparts(by_protocols(tmp_path / "c", [facts[0], {"ipc": 10}]))) == {""}


def test_results_of_other_images_are_left_out_and_named(tmp_path):
    """A set that had grown was reported on with the accuracy that it had before."""
    path = make_set(tmp_path / "set", recipe("dap", 0))
    hashes = [json.loads(line)["sha256"] for line in (path / "manifest.jsonl").read_text().splitlines()]
    for images, kept in ((hashes, True), (hashes[:-1], False)):
        write_lines(path / "trials.jsonl", [trial(0.7, judged=key_of(images))])
        note = {"features": "x", "judged": joined(key_of(images), "rest")}
        for name in ("measures.json", "images.json", "zeroshot.json"):
            more = {"diversity": 2.0} if name == "measures.json" else {}
            of = {"judged": note["judged"]} if name == "zeroshot.json" else note
            (path / name).write_text(json.dumps(of | more))
        (record,) = load([path])
        assert bool(record.trials) is bool(record.measures) is bool(record.inspected) is bool(record.zeroshot) is kept
    assert record.outdated == (
        f"{path}: left out 1 training, measures.json, images.json, zeroshot.json. The images of the set have changed since then; "
        "judge it again.",
    )
    assert record.outdated[0] in summary(summarise([record]), [record])[1]


def test_files_that_a_copy_of_a_set_lacks_are_named_first(tmp_path):
    """The results of a half copied set stood in a table as those of a whole one."""
    path = make_set(tmp_path / "set", recipe("dap", 0))
    images = [json.loads(line) for line in (path / "manifest.jsonl").read_text().splitlines()]
    write_lines(path / "trials.jsonl", [trial(0.7, judged=key_of([one["sha256"] for one in images]))])
    assert load([path])[0].outdated == ()
    (path / images[0]["path"]).unlink()
    (record,) = load([path])
    assert record.trials and record.outdated == (
        f"{path}: 1 of the images that a page shows are missing; dap verify {path} names all of them.",
    )
    (path / "manifest.jsonl").unlink()
    (record,) = load([path])
    assert not record.trials and record.outdated == (
        f"{path}: left out 1 training. Its manifest.jsonl is missing; copy the file again.",
    )


@pytest.mark.parametrize("zeroshot", [False, True])
def test_a_map_of_other_images_is_not_drawn(tmp_path, zeroshot):
    """It was drawn again as soon as `dap classify` had looked at the new images, because its number is among the measures."""
    path = judged(make_set(tmp_path / "set", recipe("dap", 0), [trial(0.7)]))
    hashes = [json.loads(line)["sha256"] for line in (path / "manifest.jsonl").read_text().splitlines()]
    measures = json.loads((path / "measures.json").read_text())
    for images, drawn in ((hashes, 1), (hashes[:-1], 0)):
        (path / "measures.json").write_text(json.dumps(measures | {"judged": joined(key_of(images), "rest")}))
        if zeroshot:
            note = {"agreement": 0.5, "judged": joined(key_of(hashes), "rest")}
            (path / "zeroshot.json").write_text(json.dumps(note))
        assert len(maps(group_sets(load([path])))) == drawn
    if zeroshot:
        assert load([path])[0].measures == {"zero_shot_agreement": 0.5}


def test_labels_and_class_names_may_be_in_the_key(tmp_path):
    path = make_set(tmp_path / "set", recipe("dap", 0))
    found = [json.loads(line) for line in (path / "manifest.jsonl").read_text().splitlines()]
    key = key_of([one["sha256"] for one in found], ("shirt", "bag"), [one["label"] for one in found])
    write_lines(path / "trials.jsonl", [trial(0.7, judged=key)])
    (record,) = load([path])
    assert len(record.trials) == 1 and not record.outdated


def test_scores_of_other_trials_are_left_out(tmp_path):
    path = make_set(tmp_path / "set", recipe("dap", 0), [trial(0.7, tested="aa")])
    ranked(path, {"lrs": 0.4})
    assert load([path])[0].ranking["lrs"] == 0.4
    write_lines(path / "trials.jsonl", [trial(0.6, tested="bb")])
    (record,) = load([path])
    assert record.ranking == {} and record.outdated == (
        f"{path}: left out ranking.json. Its scores are not of these trials; run dap rank again.",
    )


def test_scores_of_the_trials_of_two_folders_are_kept(tmp_path):
    one = make_set(tmp_path / "a" / "set", recipe("dap", 0), [trial(0.7, tested="aa")])
    shutil.copytree(one, tmp_path / "b" / "set")
    write_lines(tmp_path / "b" / "set" / "trials.jsonl", [trial(0.6, 1, tested="aa")])
    random = make_set(tmp_path / "random", recipe("random", 0), [trial(0.5, tested="aa")])
    places = [one, tmp_path / "b" / "set", random]
    list(rank_sets(places, network="convnet3", own="small-hard"))
    found = next(record for record in load(places) if not record.random)
    assert found.ranking["own"] == pytest.approx(0.65) and not found.outdated


@pytest.mark.parametrize("first", ["a", "b"])
def test_what_one_of_two_folders_says_is_kept_in_either_order(tmp_path, first):
    """The sentences and damaged lines of the second folder were dropped, and so were measures beside a zero-shot note."""
    one = make_set(tmp_path / "a" / "set", recipe("dap", 0), [trial(0.6, judged="of other images")])
    shutil.copytree(one, tmp_path / "b" / "set")
    other = tmp_path / "b" / "set"
    (one / "measures.json").unlink()
    (one / "zeroshot.json").write_text(json.dumps({"agreement": 0.25}))
    write_lines(other / "trials.jsonl", [trial(0.6, judged="of other images"), trial(0.7), {"no": "trial"}])
    (record,) = load([one, other] if first == "a" else [other, one])
    assert len(record.outdated) == 2 and record.unreadable == len(record.problems) == 1
    assert record.measures["diversity"] == 5 and record.measures["zero_shot_agreement"] == 0.25
    for path, seed in ((one, 0), (other, 1)):  # sets of two seeds may hold the same images too
        (path / "recipe.json").write_text(json.dumps(recipe("dap", seed)))
    records = load([one, other] if first == "a" else [other, one])
    (row,) = summarise(records)
    assert len(records) == 2 and row.group.repeats == 1 and row.measures["diversity"] == 5


def test_a_set_in_two_folders_is_one_set(tmp_path):
    """Its results lie apart from it: the measures and the near-copies count, and no trial counts twice."""
    bare = make_set(tmp_path / "one" / "set", recipe("random", 0))
    (bare / "measures.json").unlink()
    apart = tmp_path / "apart" / "set"
    shutil.copytree(bare, apart)
    write_lines(apart / "trials.jsonl", [trial(0.7)])
    (apart / "measures.json").write_text(json.dumps({"features": "x", "diversity": 2.0}))
    (record,) = load([bare, apart])
    assert record.measures["diversity"] == 2.0 and len(record.trials) == 1
    (apart / "images.json").write_text(json.dumps({"features": "x", "images": []} | {"copies": 0}))
    assert load([bare, apart])[0].path == apart, "the map and the neighbours lie there"
    (group,) = group_sets(load([bare, apart, apart]))
    assert group.repeats == 0


def test_a_folder_in_another_spelling_is_the_same_data(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = []
    for method, data in (("random", "photos"), ("dap", str(tmp_path / "photos")), ("dap-slots", "elsewhere")):
        made = {**recipe(method, 0), "data": {"path": data}}
        paths.append(make_set(tmp_path / method, made, [trial(0.5, tested="aa")]))
    assert {name: line["vs_random"] for name, line in lines(paths).items()} == {
        "Random": "",
        "DAP": "0.0",
        "DAP-slots": "",
    }


def test_the_name_of_a_folder_says_nothing_on_a_method(tmp_path):
    paths = [make_set(tmp_path / name, None, [trial(0.5, tested="aa")]) for name in ("sd", "random", "mine")]
    assert {line["vs_vanilla"] + line["vs_random"] for line in lines(paths).values()} == {""}
    with pytest.raises(DapError, match="name evaluated sets of --method random too"):
        list(rank_sets(paths, network="convnet3", own="small-hard"))


def test_folders_of_one_name_have_labels_of_their_own(tmp_path):
    paths = [make_set(tmp_path / where / "ipc2", None, [trial(0.5)]) for where in ("theirs", "ours/x")]
    assert [group.label for group in group_sets(load(paths))] == ["ipc2 (theirs)", "ipc2 (ours/x)"]
    assert len(set(lines(paths))) == 2


def test_rank_refuses_trials_that_do_not_go_together(tmp_path, capsys):
    random = make_set(tmp_path / "random", recipe("random", 0), [trial(0.5, tested="aa")])
    mine = make_set(tmp_path / "mine", recipe("dap", 0), [trial(0.7, tested="bb")])
    ((_, found),) = rank_sets([random, mine], network="convnet3", own="small-hard")
    assert found.ior is None and any("and of the same data is named" in one for one in found.lacks)
    write_lines(mine / "trials.jsonl", [trial(0.7, tested="aa"), trial(0.6, 1, tested="bb")])
    assert main(["rank", str(random), str(mine), "--own", "small-hard"]) == 1
    assert "has trials of one protocol on several test images" in capsys.readouterr().err
