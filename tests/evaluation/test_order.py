"""The order of --set makes no second protocol: not for what is judged now, and not for what earlier versions recorded."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import dap
from dap.data.sets.cards import judged_told
from dap.data.sets.distilled import DistilledSet
from dap.evaluation import recorded, renamed
from dap.evaluation.judge import _unfinished
from dap.evaluation.renamed import key_of_protocol
from dap.evaluation.report import ranking
from dap.evaluation.report.groups import group_sets
from dap.evaluation.report.records import load
from dap.evaluation.report.sections import protocols_used
from dap.evaluation.report.summary import summarise
from dap.evaluation.training import protocol as protocols
from dap.evaluation.training import trials
from dap.evaluation.training.protocol import Protocol, load_protocol
from dap.protocol_names import FIELDS, ON_VALIDATION, ordered
from dap.verbs.distill import distill
from dap.verbs.options import Judging, Machine
from dap.verbs.rank import rank

CHANGES: dict[str, Any] = {"epochs": 1, "mean": [0.5], "std": [0.25], "size": 8, "width": 4}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


@contextmanager
def earlier():
    """Versions before this one name a protocol in the order in which its fields were given."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (protocols, renamed, recorded, trials, ranking):
            patch.setattr(module, "ordered", lambda name: name)
        patch.setattr(recorded, "key_of_protocol", lambda facts, name: "")
        yield


def judged(folder: Path, order: list[str], seeds: int, changes: Mapping[str, Any] = CHANGES) -> None:
    how = Judging(networks=("convnet1",), trials=seeds, changes={name: changes[name] for name in order})
    dap.evaluate(folder, judging=how, machine=Machine(device="cpu"))


@pytest.mark.parametrize("seed", range(20))
def test_the_name_of_a_protocol_does_not_depend_on_an_order(seed: int) -> None:
    """A part may hold a plus sign, the start may hold one too, and fields of other versions are kept."""
    draw = random.Random(seed)
    values = {"epochs": 4, "width": 2, "decay_at": ["half+1", 3], "lr": 0.5, "extra_forward": True, "momentum": 0.25}
    given = dict(draw.sample(sorted(values.items()), draw.randint(1, len(values))))
    names = set[str]()
    for _ in range(5):
        mixed = dict(draw.sample(sorted(given.items()), len(given)))
        names.add(load_protocol("small-hard", **mixed).name)
    (name,) = names
    start, *parts = name.replace("half+1", "half").split("+")
    fields = [part.partition("=")[0] for part in parts]
    assert start == "small-hard" and fields == [field for field in Protocol.model_fields if field in given]
    more = [*parts, "later=1", "another=a+b"]
    for end in ("", ON_VALIDATION):
        wanted = "+".join([f"my+own{seed}", *parts, "another=a+b", "later=1"]) + end
        draw.shuffle(more)
        assert ordered("+".join([f"my+own{seed}", *more]) + end) == wanted == ordered(wanted)


def test_the_fields_of_names_are_those_of_the_protocol() -> None:
    assert [name for name in Protocol.model_fields if name not in ("name", "source")] == FIELDS


def test_recorded_trials_of_another_order_are_not_made_again_and_share_a_table(colours: Path, tmp_path: Path) -> None:
    made = distill(out=tmp_path / "set", data=str(colours), method="random", ipc=1).path
    one, two, three = (list(order) for order in list(permutations(CHANGES))[7::50])
    with earlier():
        judged(made, one, 1)
        judged(made, two, 1)
        assert len(summarise(load([made]))) == 2
    (first, second) = lines(made)
    assert first["protocol"] != second["protocol"] and first["last"] == second["last"]
    for again in (one, two, three):
        judged(made, again, 2)
        assert lines(made)[:2] == [first, second] and [line["seed"] for line in lines(made)] == [0, 0, 1]
    (record,) = load([made])
    wanted = load_protocol("small-hard", **CHANGES).name
    assert [(line["protocol"], line["seed"]) for line in record.trials] == [(wanted, 0), (wanted, 1)]
    assert len(summarise([record])) == 1 == len(protocols_used([record])) == len(group_sets([record]))
    assert judged_told(DistilledSet.open(made)).count("| small-hard") == 1
    assert "| 2 |" in judged_told(DistilledSet.open(made))
    judged(made, one, 1, {**CHANGES, "epochs": 2})  # another value is another protocol
    assert len(lines(made)) == 4 and len(summarise(load([made]))) == 2


def test_trials_of_one_name_that_differ_in_more_are_both_kept() -> None:
    """Nothing is proved by a name alone where the recorded fields differ."""
    facts = {"name": "p+width=4+epochs=1", "lr": 0.1}
    other = {"name": "p+epochs=1+width=4", "lr": 0.2}
    keys = [key_of_protocol(one, one["name"]) for one in (facts, other)]
    both = [{"protocol": one["name"], "by": key, "seed": 0} for one, key in zip((facts, other), keys, strict=True)]
    found, known = renamed.renamed(both, dict(zip(keys, (facts, other), strict=True)))
    assert renamed.once(found, known) == found and renamed.as_written(found)[1]["by"] == keys[1]
    found, known = renamed.renamed(both, {keys[0]: facts})
    assert renamed.once(found, known) == found[:1], "not known is not different"
    assert renamed.once([both[0], both[0]], {}) == [both[0], both[0]], "equal names were told apart by something else"


def test_the_checkpoints_of_another_order_are_found(tmp_path: Path) -> None:
    facts = {"name": "p+width=4+epochs=1", "lr": 0.1}
    written = {**facts, "name": "p+epochs=1+width=4"}
    old = key_of_protocol(written, written["name"])
    key = {"by": key_of_protocol(facts), "tested": "t"}
    assert old != key["by"] == key_of_protocol(written)
    for end in ("", "-t"):
        folder = tmp_path / f"set{end}"
        assert _unfinished(folder, key) == folder / "checkpoints" / f"{key['by']}-t"
        (folder / "checkpoints" / f"{old}{end}").mkdir(parents=True)
        assert _unfinished(folder, key) == folder / "checkpoints" / f"{key['by']}-t"
        (folder / "protocols.json").write_text(json.dumps({old: written, "0": {**written, "lr": 0.2}}))
        assert _unfinished(folder, key) == folder / "checkpoints" / f"{old}{end}"
        (folder / "checkpoints" / key["by"]).mkdir()
        assert _unfinished(folder, key) == folder / "checkpoints" / key["by"]


def test_scores_of_trials_of_another_order_count(colours: Path, tmp_path: Path) -> None:
    for method, more in (("random", {}), ("dm", {"options": {"iterations": 1}})):
        distill(out=tmp_path / method, data=str(colours), method=method, ipc=1, **more)
    names = list(permutations(CHANGES))
    both = [tmp_path / "random", tmp_path / "dm"]
    with earlier():
        for made in both:
            judged(made, list(names[0]), 1)
            judged(made, list(names[70]), 1)
        (old,) = {line["protocol"] for line in lines(both[1])[1:]}
        rank(both, network="convnet1", plain=old, augmented=old)
    record = load([tmp_path / "dm"])[0]
    assert record.ranking and not record.outdated and len(record.trials) == 1
    for name in (old, load_protocol("small-hard", **CHANGES).name):
        (scores,) = rank(both, network="convnet1", plain=name, augmented=name).values()
        assert scores.accuracies.plain is not None
        record = load([tmp_path / "dm"])[0]
        assert record.ranking and not record.outdated
