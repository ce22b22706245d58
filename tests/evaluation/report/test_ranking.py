"""DD-Ranking's scores against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from dap.base.errors import DapError
from dap.evaluation.report.ranking import Accuracies, normalised, rank, rank_sets, rank_trials
from dap.evaluation.training.trials import Trial
from reported import make_set, recipe
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
    assert any("no random set of 2 images per class and of the same data is named" in one for one in scores.lacks)
