"""Objects in place of names: what a set says of them, and that it goes on with the same objects alone."""

from __future__ import annotations

import enum
import json
import random
import sys
import threading

import numpy as np
import pytest
import torch

from dap.backbones import Card, ModuleBackbone, VariancePreserving
from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.data.real.sources import open_source
from dap.data.sets.differences import RECORD, as_told
from dap.described import describe
from dap.evaluation import origins
from dap.guidance import Descend, Energy, Guidance, Representative, Scaled
from dap.kernels import Linear, parse
from dap.objects import Objects
from dap.verbs.distill import distill
from dap.verbs.options import Machine


class Holding(Guidance):
    """Keeps its argument under its own name."""

    def __init__(self, value):
        self.value = value
        self.cache = {}

    def __call__(self, state):
        self.cache[state.t] = state.x
        return torch.zeros_like(state.proposal)


class Hiding(Guidance):
    """Keeps what follows from its argument, under another name."""

    def __init__(self, value):
        self._kept = [value, 1]

    def __call__(self, state):
        return torch.zeros_like(state.proposal)


class Filling(Holding):
    """Fills in what it was not given."""

    def __init__(self, value=None):
        super().__init__(value)

    def __call__(self, state):
        self.value = state.x if self.value is None else self.value
        return torch.zeros_like(state.proposal)


class Weighed(Energy):
    grad_through = "denoiser"

    def __init__(self, weight):
        self._w = weight

    def __call__(self, state):
        return self._w * state.x0_hat.square().flatten(1).sum(1)


def times(factor):
    return lambda x: factor * x


def linear(bias):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = torch.nn.Linear(2, 2)
    made.bias.data.fill_(bias)
    return made


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Loud(enum.StrEnum):
    A = "a"
    B = "b"


PAIRS = [
    lambda k: Colour(k),
    lambda k: Loud("ab"[k - 1]),
    lambda k: np.float32(k),
    lambda k: [0.5, k],
    lambda k: (k, {"a": [k]}),
    lambda k: {"a": {1: k}},
    lambda k: {k, 7},
    lambda k: np.array([0.0, k]),
    lambda k: torch.tensor([0.0, k]),
    lambda k: torch.full((3000,), float(k)),
    lambda k: [*list(range(5000)), k],
    lambda k: "ab" * 5000 + str(k),
    lambda k: float("nan") if k == 1 else float("inf"),
    lambda k: times(k),
    lambda k: linear(k),
    lambda k: Weighed(k),
    lambda k: parse("linear" if k == 1 else "rbf"),
    lambda k: [Scaled(Holding([k]), 2.0)],
    lambda k: BankOptions(reals=k),
    lambda k: torch.float32 if k == 1 else torch.float16,
]


@pytest.mark.parametrize("value", PAIRS)
@pytest.mark.parametrize("kind", [Holding, Hiding, Weighed])
def test_objects_are_told_apart_by_what_they_were_made_with(kind, value):
    one, same, other = (describe(kind(value(k))) for k in (1, 1, 2))
    assert json.loads(json.dumps(one)) == same and "unknown" not in one
    assert one != other
    assert describe(Descend(Weighed(value(1)), 0.1)) != describe(Descend(Weighed(value(2)), 0.1))


def test_an_attribute_that_was_changed_afterwards_counts():
    for value in (0.5, [0.5], torch.tensor([0.5])):
        made = Holding(type(value)([0.1]) if isinstance(value, list) else 0.1 * value)
        before = describe(made)
        made.value = value
        assert describe(made) != before


def test_what_a_run_fills_in_is_no_other_object():
    made, objects = Filling(), Objects(guidance=Filling())
    before = describe(made)
    for _ in range(2):  # a second run fills in more
        with Objects(guidance=made).used():
            made.value = torch.ones(3) if made.value is None else 2 * made.value
            made.cache["t"] = object()
            made.seen = 0.5
        assert describe(made) == before == objects.described()["guidance"]
    made.value = torch.ones(4)
    assert describe(made) != before, "the user has changed it afterwards"


def test_what_changes_while_runs_use_an_object_is_seen_after_them():
    made = Holding([1])
    with Objects(guidance=made).used():
        made.value.append(2)
    assert describe(made) == describe(Holding([1]))
    made.value.append(3)
    assert describe(made)["values"]["value"] == [1, 2, 3]


def test_what_cannot_be_described_is_named(tmp_path):
    for value in (iter([1]), torch.Generator(), random.Random(1), [threading.Lock()], (one for one in "ab"), sys.stdin):
        assert describe(Hiding(value))["unknown"] == ["value"]


def test_a_value_that_holds_itself_is_described():
    one, other = [], [[]]
    one.append(one)
    other[0].append(other)
    assert describe(Holding(one)) == describe(Holding(one)) != describe(Holding(other))
    assert "unknown" not in describe(Holding(one))


def test_a_class_without_arguments_still_takes_none():
    class Plain(Guidance):
        def __call__(self, state):
            return state.proposal

    assert describe(Plain()).keys() == {"class", "code", "python"}
    with pytest.raises(TypeError, match="takes no arguments"):
        Plain(1)
    with pytest.raises(TypeError, match="value"):
        Holding()


class Turned(ModuleBackbone):
    """A backbone whose argument decides the images and no prediction."""

    def __init__(self, f):
        self._f = f
        card = Card("mine", licence="MIT", size=8, cfg=1.0, cfg_channels="all", layer="0", scale=0.1, unit="step")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
        told = {"latent_shape": (3, 8, 8), "layers": ("0",), "class_names": ("blue", "green", "red")}
        super().__init__(network, card=card, schedule=VariancePreserving.from_betas(1e-4, 0.02, 1000), **told)

    def run(self, x, t, condition):
        return self.denoiser(x)

    def decode(self, latents):
        return super().decode(latents * self._f)


@pytest.fixture
def asked(colours):
    return {"method": "vanilla", "ipc": 1, "steps": 2, "data": str(colours), "machine": Machine(device="cpu")}


@pytest.fixture
def starter(pipeline_folder):
    return {"backbone": str(pipeline_folder)}


def lose(made):
    (made.path / made.records[-1]["path"]).unlink()


@pytest.mark.parametrize("make", [lambda k: Hiding(0.1 * k), lambda k: Holding(torch.tensor([k]))])
def test_a_set_does_not_go_on_with_another_guidance(asked, starter, tmp_path, make):
    made = distill(out=tmp_path / "a", guidance=make(1), **asked, **starter)
    lose(made)
    with pytest.raises(DapError, match="objects.guidance.values.value"):
        distill(out=tmp_path / "a", guidance=make(2), **asked, **starter)
    assert not distill(out=tmp_path / "a", guidance=make(1), **asked, **starter).missing()


def test_a_set_does_not_go_on_with_another_backbone(asked, tmp_path):
    made = distill(out=tmp_path / "a", backbone=Turned(1.0), **asked)
    lose(made)
    with pytest.raises(DapError, match="objects.backbone.values.f: 1.0 -> 0.1"):
        distill(out=tmp_path / "a", backbone=Turned(0.1), **asked)
    assert not distill(out=tmp_path / "a", backbone=Turned(1.0), **asked).missing()


def test_real_features_in_a_cache_are_of_one_backbone(colours, tmp_path):
    """The weights are the same, and an argument that no weight holds decides what the network sees."""

    class Stretched(Turned):
        def encode(self, images):
            return super().encode(images) * self._f

    source = open_source(colours, "train", size=8)

    def latents(f, cache=None):
        bank = FeatureBank(source, Stretched(f), BankOptions(reals=2, pool="mean"), ipc=1, cache=cache)
        bank.begin([0])
        return bank.latents(0)

    for f in (1.0, 3.0, 1.0):
        assert latents(f, tmp_path).equal(latents(f))
    assert not latents(1.0).equal(latents(3.0))
    assert Stretched(1.0).weights_hash() == Stretched(1.0).weights_hash() != Stretched(3.0).weights_hash()


def test_a_bank_counts_with_its_options_and_a_kernel_with_its_name(source, backbone):
    def guided(reals=4, kernel="linear"):
        bank = FeatureBank(source, backbone, BankOptions(reals=reals), ipc=1)
        return describe(Descend(Representative(bank, parse(kernel)), 0.1))

    assert guided() == guided() and "unknown" not in guided()
    assert len({json.dumps(one) for one in (guided(), guided(reals=8), guided(kernel="rbf"))}) == 3


def test_where_an_object_cannot_be_described_an_unfinished_set_does_not_go_on(asked, starter, tmp_path, caplog):
    made = distill(out=tmp_path / "a", guidance=Hiding(iter([1])), **asked, **starter)
    assert "cannot describe value of guidance" in caplog.text and "cannot go on" in caplog.text
    assert json.loads((made.path / "inputs.json").read_text())["objects"]["guidance"]["unknown"] == ["value"]
    assert len(distill(out=tmp_path / "a", guidance=Hiding(iter([1])), **asked, **starter)) == 3, "a whole set is given"
    lose(made)
    with pytest.raises(DapError, match=r"holds 2 of 3 images.*value of guidance.*attributes of the same names"):
        distill(out=tmp_path / "a", guidance=Hiding(iter([1])), **asked, **starter)


def old_record(folder):
    """inputs.json as version before wrote it: no mark, plain values alone."""
    file = folder / "inputs.json"
    told = json.loads(file.read_text())
    del told["objects_record"]
    told["objects"]["guidance"]["values"] = {"guidance": {"class": "test_objects:Holding"}, "factor": 2.0}
    file.write_text(json.dumps(told))
    return told


def test_a_set_of_an_earlier_version_goes_on_where_nothing_that_it_tells_differs(asked, starter, tmp_path):
    made = distill(out=tmp_path / "a", guidance=Scaled(Holding([1]), 2.0), **asked, **starter)
    told = old_record(made.path)
    lose(made)
    with pytest.raises(DapError, match="objects.guidance.values.factor: 2.0 -> 3.0"):
        distill(out=tmp_path / "a", guidance=Scaled(Holding([1]), 3.0), **asked, **starter)
    with pytest.raises(DapError, match="made by another recipe"):
        distill(out=tmp_path / "a", **asked, **starter)
    assert not distill(out=tmp_path / "a", guidance=Scaled(Holding([1]), 2.0), **asked, **starter).missing()
    assert json.loads((made.path / "inputs.json").read_text()) == told


def test_a_report_does_not_tell_an_earlier_record_apart_from_one_that_says_more():
    class Made:
        recipe = {"data": {"path": "x"}}

        def __init__(self, **said):
            self.inputs = said

    def record(value):
        return {"guidance": {"class": "m:G", "values": {"factor": 2.0, "inner": {"class": "m:H", "value": [value]}}}}

    old = Made(objects={"guidance": {"class": "m:G", "values": {"factor": 2.0, "inner": {"class": "m:H"}}}})
    new, other = (Made(objects=record(value), objects_record=RECORD) for value in (1, 2))
    differing = Made(objects={"guidance": {"class": "m:G", "values": {"factor": 3.0}}})
    role = "guidance object"
    assert len({thing.content for thing in origins._own([old, new])[role].values()} - {""}) == 1
    assert len({thing.content for thing in origins._own([new, other])[role].values()}) == 2
    assert len({thing.content for thing in origins._own([new, differing])[role].values()} - {""}) == 2


def test_linear_is_described_without_arguments():
    assert describe(Linear()) == {"class": "dap.kernels:Linear"}


def test_a_long_value_that_an_earlier_version_wrote_out_is_the_same():
    for value in (tuple(range(3000)), "ab" * 3000):
        new, old = describe(Holding(value))["values"], {"value": list(value) if isinstance(value, tuple) else value}
        assert new != old and as_told(new, old) == old
        assert as_told(new, {"value": old["value"][:-1]}) != {"value": old["value"][:-1]}


def test_an_argument_that_is_used_no_more_is_no_part_of_the_weights():
    class From(Turned):
        def __init__(self, teacher):
            super().__init__(1.0)

    class Teacher(torch.nn.Linear):
        pass

    assert From(Teacher(1, 1)).weights_hash() == From(torch.nn.Linear(1, 1)).weights_hash()
