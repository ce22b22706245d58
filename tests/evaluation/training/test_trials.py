"""Lines of trials.jsonl: which of them are one training, and what a line of others may lack."""

from __future__ import annotations

import json
import shutil
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dap.base.errors import DapError
from dap.cli.results import progress, shown
from dap.evaluation.report.ranking import rank_sets
from dap.evaluation.report.records import load
from dap.evaluation.report.summary import summarise
from dap.evaluation.training.trials import KEYS, TrialLine, one_each
from dap.verbs.planning.grids import _recorded
from dap.verbs.planning.status import status, write_plan
from dap.verbs.report import Results
from reported import make_set, recipe, trial, write_lines

NEEDED = {"protocol", "network", "last", "best"}
OPTIONAL = sorted(set(TrialLine.model_fields) - NEEDED)


@pytest.mark.parametrize("how", ["absent", "null"])
def test_what_a_line_may_lack_stops_no_reader(tmp_path, how):
    """`dap status` and `dap report` ended with a traceback or an error at a line without a seed."""
    whole = trial(0.7, headline="best", tested_on="test", labels="hard", judged=None, tested="t", by="b")
    for name in OPTIONAL:
        line = whole | {name: None} if how == "null" else {key: one for key, one in whole.items() if key != name}
        if how == "null" and name == "curve":  # a list, which the model wants where it is named
            continue
        made = make_set(tmp_path / name, recipe("dap", 0), [line])
        (one,) = status(made).sets
        assert one.trainings == 1 and progress(status(made)).text
        assert len(_recorded([made])) == 1
        found = Results((made,))
        told = json.loads(json.dumps(shown(found).values, default=str))
        assert [t["last"] for t in told["trials"]] == [0.7] and len(found.trials[made]) in (0, 1)
    made = make_set(tmp_path / "bare", recipe("dap", 0), [{"protocol": "p", "network": "n", "last": 0.5, "best": 0.6}])
    assert [t["accuracy"] for t in shown(Results((made,))).values["trials"]] == [0.5]


LINES = st.lists(
    st.builds(
        lambda network, seed, tested, by: {"protocol": "p", "network": network, "seed": seed, "tested": tested, "by": by},
        st.sampled_from("mn"), st.sampled_from([0, 1, None]), st.sampled_from(["t", "u", None]), st.sampled_from(["b", None]),
    ),
    max_size=6,
)  # fmt: skip


@given(LINES)
def test_each_training_stays_once(lines):
    kept = one_each(lines)
    assert all(line in lines for line in kept)

    def same(a, b):
        known = a["seed"] is not None and (a["network"], a["seed"]) == (b["network"], b["seed"])
        return known and all(None in (a[key], b[key]) or a[key] == b[key] for key in ("tested", "by"))

    for line in lines:
        assert line["seed"] is not None or kept.count(line) == lines.count(line), "without a seed each is its own"
        assert line in kept or any(same(line, other) for other in lines if other is not line)
    whole = [line for line in lines if None not in line.values()]
    assert all(sum(same(a, b) for b in one_each(whole)) == 1 for a in whole)


def test_a_training_that_two_folders_recorded_counts_once(tmp_path):
    """A time that differed was enough to count it twice; a rank and a report then gave two means."""
    made, apart = make_set(tmp_path / "set", recipe("dap", 0)), tmp_path / "apart" / "set"
    shutil.copytree(made, apart)
    keys = {key: key[0] for key in KEYS if key != "judged"}
    write_lines(made / "trials.jsonl", [trial(0.6, 0, **keys), trial(0.9, 1, **keys)])
    write_lines(apart / "trials.jsonl", [trial(0.6, 0, seconds=40.0, **keys), trial(0.3, 0, tested="other", by="b")])
    found = Results((made, apart))
    assert [(t.seed, t.last) for t in found.trials[made]] == [(0, 0.6), (1, 0.9), (0, 0.3)]
    assert sorted((row.score.mean, row.n_trials) for row in summarise(load([made, apart])) if row.score) == [
        (0.3, 1),
        (0.75, 2),
    ]
    listed = shown(found).values["trials"]
    assert len({(one["seed"], one["tested"], one["apart"]) for one in listed}) == 3, "apart here as on the page"
    random = make_set(tmp_path / "random", recipe("random", 0), [trial(0.5, seed, **keys) for seed in (0, 1)])
    write_lines(apart / "trials.jsonl", [trial(0.6, 0, seconds=40.0, **keys)])
    ((_, score),) = rank_sets([made, apart, random], network="convnet3", own="small-hard")
    assert score.accuracies.own == pytest.approx(0.75), "as in the report"


def test_trainings_of_other_protocols_finish_no_plan(tmp_path):
    others = product(("small-hard", "other"), ("convnet3", "convnet4"), (0, 1, 2))
    lines = [trial(0.5, seed, protocol=protocol, network=network) for protocol, network, seed in others]
    made = make_set(tmp_path / "dap", recipe("dap", 0))
    write_plan(tmp_path, {"dap": 4}, {"dap": "small-hard"}, ["convnet3"], [0, 1])
    for count in range(len(lines) + 1):
        write_lines(made / "trials.jsonl", lines[len(lines) - count :])
        (one,) = status(tmp_path).sets
        wanted = sum(line["protocol"] == "small-hard" and line["network"] == "convnet3" and line["seed"] < 2
                     for line in lines[len(lines) - count :])  # fmt: skip
        assert (one.trainings, one.others, one.planned) == (wanted, count - wanted, 2)
        assert one.done is (wanted == 2)
    told = progress(status(tmp_path))
    assert "trainings: 2 of 2, 10 trainings of other protocols" in told.text and told.values["sets"][0]["others"] == 10
    make_set(tmp_path / "other", recipe("random", 0), [trial(0.5)])
    assert "trainings: 3.\n" in progress(status(tmp_path)).text, "no plan knows the sets of another comparison"
    shutil.rmtree(tmp_path / "other")
    write_lines(made / "trials.jsonl", lines[-2:])
    plan = json.loads((tmp_path / "grid.json").read_text())
    for one in plan["sets"]:
        for name in ("protocol", "networks", "seeds"):
            one.pop(name)
    (tmp_path / "grid.json").write_text(json.dumps(plan))
    assert status(tmp_path).sets[0].done, "a plan of an earlier version names no training"
    plan["sets"][0]["seeds"] = ["x"]
    (tmp_path / "grid.json").write_text(json.dumps(plan))
    with pytest.raises(DapError, match=r"grid\.json"):
        status(tmp_path)


def test_results_of_other_images_are_named_in_every_form(tmp_path):
    made = make_set(tmp_path / "set", recipe("dap", 0), [trial(0.5, judged="of other images")])
    for told in (shown(Results((made,))), progress(status(tmp_path))):
        assert "left out 1 training" in told.text and "left out 1 training" in json.dumps(told.values, default=str)
