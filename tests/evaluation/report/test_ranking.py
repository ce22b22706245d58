"""DD-Ranking's scores against values worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
from pathlib import Path

import pytest

from dap.base.errors import DapError
from dap.cli.main import main
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.ranking import Accuracies, normalised, rank, rank_sets, rank_trials
from dap.evaluation.report.records import load
from dap.evaluation.report.sections import ranking_table
from dap.evaluation.training.trials import Trial
from reported import make_set, recipe, write_lines
from reported import trial as line

FULL = Accuracies(
    full_hard=0.9, hard=0.6, own=0.7, random_own=0.5, augmented=0.65, random_augmented=0.45, plain=0.6, random_plain=0.5
)


def trial(protocol: str, accuracy: float, network: str = "convnet3") -> Trial:
    known = {"protocol": protocol, "network": network, "last": accuracy, "best": accuracy, "headline": "last"}
    plain = {"float": 0.0, "int": 0, "str": ""}
    given = {}
    for field in dataclasses.fields(Trial):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            given[field.name] = known.get(field.name, plain.get(str(field.type), ()))
    return Trial(**given)


def test_scores_by_hand():
    found = rank(FULL)
    assert (found.hlr, found.ior) == (pytest.approx(0.3), pytest.approx(0.2))
    # alpha = 0.5 · 0.2 - 0.5 · 0.3 = -0.05 and (0.951229 - 0.367879) / (2.718282 - 0.367879)
    assert found.lrs == pytest.approx(0.248191, abs=1e-6)
    # beta = 0.5 · 0.2 + 0.5 · 0.1 = 0.15 and (1.161834 - 0.367879) / 2.350402
    assert found.ars == pytest.approx(0.337795, abs=1e-6)
    assert found.accuracies is FULL
    assert rank(FULL, w=1).lrs == pytest.approx((math.exp(0.2) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert rank(FULL, gamma=0).ars == pytest.approx((math.exp(0.1) - math.exp(-1)) / (math.e - math.exp(-1)))


def test_the_scores_stay_between_0_and_1():
    assert normalised(-1) == 0 and normalised(1) == pytest.approx(1)
    best = Accuracies(
        full_hard=0, hard=1, own=1, random_own=0, augmented=1, random_augmented=0, plain=1, random_plain=0
    )
    worst = Accuracies(
        full_hard=1, hard=0, own=0, random_own=1, augmented=0, random_augmented=1, plain=0, random_plain=1
    )
    assert (rank(best).lrs, rank(best).ars) == (pytest.approx(1), pytest.approx(1))
    assert (rank(worst).lrs, rank(worst).ars) == (0, 0)


@pytest.mark.parametrize("value", [55.3, -0.1, float("nan")])
def test_percentages_are_refused(value):
    with pytest.raises(DapError, match="are fractions between 0 and 1, but hard is"):
        Accuracies(hard=value)
    with pytest.raises(DapError, match="The weight w lies between 0 and 1"):
        rank(FULL, w=value)


def test_scores_from_trials_as_far_as_they_go():
    mine = [trial("hard", 0.5), trial("hard", 0.7), trial("soft", 0.7), trial("soft", 0.1, "resnet18")]
    others = [trial("soft", 0.5), trial("hard", 0.4)]
    found = rank_trials(mine, others, network="convnet3", full_hard=0.9, hard="hard", own="soft", plain="hard")
    assert found.accuracies == Accuracies(full_hard=0.9, hard=0.6, own=0.7, random_own=0.5, plain=0.6, random_plain=0.4)
    assert found.lrs == pytest.approx(0.248191, abs=1e-6) and found.ars is None
    assert rank_trials(mine, [], network="convnet3", own="soft").lrs is None


def test_a_random_set_of_other_data_is_no_baseline(tmp_path):
    """The sets of others do not say their data; there the test images do."""

    def made(name: str, data: str | None, accuracy: float, tested: str) -> Path:
        facts = None if data is None else {**recipe(name, 0), "data": {"path": data}}
        facts = facts and {**facts, "method": "random" if name.startswith("random") else name}
        return make_set(tmp_path / name, facts, [line(accuracy, tested=tested)])

    a, b = made("random-a", "a", 0.5, "images of a"), made("random-b", "b", 0.1, "images of b")
    mine, theirs = made("dm", "a", 0.7, "images of a"), made("theirs", None, 0.6, "images of b")
    found = dict(rank_sets([a, b, mine, theirs], network="convnet3", own="small-hard"))
    assert found[mine].ior == pytest.approx(0.2) and found[theirs].ior == pytest.approx(0.5)
    (scores,) = dict(rank_sets([b, mine], network="convnet3", own="small-hard")).values()
    assert scores.ior is None and scores.accuracies.random_own is None
    (said,) = (one for one in scores.lacks if one.startswith("IOR"))
    assert "no random set of 2 images per class and of the same data is named" in said
    assert "random-b has path 'b' and not 'a'" in said and "--ipc 2 --data a makes one" in said


def test_the_random_set_that_scores_ask_for_is_of_the_same_data(colours, tmp_path, monkeypatch, capsys):
    """The advice, followed, made a set of the usual size, which was no baseline either."""
    monkeypatch.chdir(tmp_path)
    asked = ["--data", str(colours), "--classes", "red", "blue", "--held-out", "0.25", "--ipc", "2"]
    assert main(["distill", *asked, "--method", "random", "--size", "6", "--out", "mine"]) == 0
    facts = json.loads((tmp_path / "mine/recipe.json").read_text())
    (tmp_path / "mine/recipe.json").write_text(json.dumps({**facts, "method": "herding"}))
    assert main(["distill", *asked, "--method", "random", "--out", "larger"]) == 0
    network = [
        "--networks",
        "convnet1",
        "--protocol",
        "small-hard",
        "--set",
        "epochs=1",
        "--set",
        "width=4",
        "--set",
        "size=8",
    ]
    assert main(["evaluate", "mine", "larger", "--data", str(colours), *network]) == 0
    by = json.loads((tmp_path / "mine/trials.jsonl").read_text())["protocol"]
    capsys.readouterr()
    ranked = ["rank", "mine", "larger", "--network", "convnet1", "--own", by]
    assert main(ranked) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "larger has size 8 and not 6" in said
    words = shlex.split(said.partition("; dap ")[2].partition(" makes one")[0])
    assert main([*words, "--out", "same"]) == 0
    assert main(["evaluate", "same", "--data", str(colours), *network]) == 0
    capsys.readouterr()
    assert main([*ranked[:3], "same", *ranked[3:]]) == 0
    assert "no random set" not in " ".join(capsys.readouterr().out.split())


def scored(tmp_path: Path) -> tuple[Path, Path]:
    """A set with scores, and the random set that it is compared with."""
    mine = make_set(tmp_path / "dap", recipe("dap", 0), [line(0.6, 0), line(0.7, 1)])
    random = make_set(tmp_path / "random", recipe("random", 0), [line(0.5, 0), line(0.5, 1)])
    list(rank_sets([mine, random], network="convnet3", own="small-hard"))
    return mine, random


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda random: None, True),
        (lambda random: write_lines(random / "trials.jsonl", [line(0.5, 0, seconds=9.0), line(0.5, 1)]), True),
        (lambda random: write_lines(random / "trials.jsonl", [line(0.59, 0), line(0.59, 1)]), False),
        (lambda random: write_lines(random / "trials.jsonl", [line(0.5, 0), line(0.5, 1), line(0.5, 2)]), False),
        (lambda random: write_lines(random / "trials.jsonl", []), False),
        (lambda random: write_lines(random / "trials.jsonl", [line(0.5, s, judged="made anew") for s in (0, 1)]), False),
        (lambda random: shutil.rmtree(random), True),
    ],
)  # fmt: skip
def test_a_score_counts_as_long_as_the_random_sets_are_those_it_was_computed_from(tmp_path, change, counts):
    mine, random = scored(tmp_path)
    change(random)
    (found,) = [one for one in load([mine, *([random] if random.exists() else [])]) if not one.random]
    assert bool(found.ranking) is counts and bool(found.outdated) is not counts


def test_scores_of_some_random_sets_or_of_an_earlier_version_are_kept(tmp_path):
    mine, random = scored(tmp_path)
    further = make_set(tmp_path / "random-1", recipe("random", 1), [line(0.4, 0)])
    other = make_set(tmp_path / "random-b", {**recipe("random", 0), "data": {"path": "b"}}, [line(0.4, 0)])
    for places in ([mine], [mine, random], [mine, random, further], [mine, random, other], [mine, other]):
        assert load(places)[0].ranking and not load(places)[0].outdated
    assert not load([mine, further])[0].ranking, "another random set has taken the place of the first"
    note = json.loads((mine / "ranking.json").read_text())
    note.pop("random")
    (mine / "ranking.json").write_text(json.dumps(note))
    write_lines(random / "trials.jsonl", [line(0.1)])
    assert load([mine, random])[0].ranking, "it does not say from which random sets it comes"


def test_the_table_of_scores_names_networks_and_protocols(tmp_path):
    mine, random = scored(tmp_path)
    second = make_set(tmp_path / "b", recipe("vanilla", 0), [line(0.6, 0, network="resnet18", protocol="other")])
    write_lines(
        random / "trials.jsonl", [line(0.5, 0), line(0.5, 1), line(0.5, 0, network="resnet18", protocol="other")]
    )
    list(rank_sets([second, random], network="resnet18", own="other"))
    found = ranking_table(group_sets(load([mine, second, random])))
    assert found is not None
    rows = [row for row in found.markdown().split("\n") if "own: " in row]
    assert ["ConvNet-3" in row and "own: small-hard" in row for row in rows] == [True, False]
    assert ["ResNet-18" in row and "own: other" in row for row in rows] == [False, True]


def test_what_a_score_lacks_is_true(tmp_path):
    """Where the set itself had no trial, its random sets were said to have none either."""
    mine, random = scored(tmp_path)
    write_lines(mine / "trials.jsonl", [])
    ((_, scores),) = rank_sets([mine, random], network="convnet3", own="small-hard")
    assert any("has no trial of convnet3 by small-hard" in one for one in scores.lacks)
    assert not any("no random set" in one for one in scores.lacks)
    write_lines(mine / "trials.jsonl", [line(0.6, labels="a teacher")])
    ((_, scores),) = rank_sets([mine, random], network="convnet3", own="small-hard")
    assert any(
        "with other labels, or with other values of the protocol; run dap evaluate on them" in one
        for one in scores.lacks
    )
    bare = {"protocol": "small-hard", "network": "convnet3", "last": 0.6, "best": 0.9}
    write_lines(mine / "trials.jsonl", [bare])
    write_lines(random / "trials.jsonl", [bare | {"last": 0.5}])
    ((_, scores),) = rank_sets([mine, random], network="convnet3", own="small-hard")
    assert scores.ior == pytest.approx(0.1), "a line of others needs no more than what a page shows"


def test_a_set_counts_once_however_many_trials_it_has(tmp_path):
    many = make_set(tmp_path / "r0", recipe("random", 0), [line(0.9, seed) for seed in range(9)])
    few = make_set(tmp_path / "r1", recipe("random", 1), [line(0.1)])
    mine = make_set(tmp_path / "dap", recipe("dap", 0), [line(0.6)])
    ((_, scores),) = rank_sets([many, few, mine], network="convnet3", own="small-hard")
    assert scores.accuracies.random_own == pytest.approx(0.5) and scores.ior == pytest.approx(0.1)


@pytest.mark.parametrize("other", [{"epochs": 3000}, {"headline": "best"}, {"n_test": 60}])
def test_trainings_of_another_kind_are_no_baseline(other, tmp_path):
    random = make_set(tmp_path / "r", recipe("random", 0), [line(0.5)])
    mine = make_set(tmp_path / "dap", recipe("dap", 0), [line(0.9, **other)])
    ((_, scores),) = rank_sets([random, mine], network="convnet3", own="small-hard")
    assert scores.ior is None and any("values of the protocol" in lack for lack in scores.lacks)
    both = make_set(tmp_path / "both", recipe("dap", 1), [line(0.7), line(0.9, 1, **other)])
    with pytest.raises(DapError, match="trials of one protocol .* give no scores together"):
        list(rank_sets([random, both], network="convnet3", own="small-hard"))
