"""Networks in all places are told apart by what decides their output, and are the same after a run."""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dap.backbones import Card, ModuleBackbone, VariancePreserving
from dap.base.describing.values import Describer, Unknown
from dap.described import describe
from dap.evaluation.training.loading import load_classifier
from dap.guidance import Descend, Energy


class Net(nn.Module):
    def __init__(self, held=None):
        super().__init__()
        self.held = held
        self.conv = nn.Conv2d(3, 3, 1)
        for one in self.parameters():
            nn.init.ones_(one)

    def forward(self, x):
        self.seen = x
        return self.conv(x)


class Given(Energy):
    def __init__(self, net=None):
        self.net = net

    def __call__(self, state):
        return state.x.flatten(1).sum(1)


class Making(Given):
    """Makes an attribute that nobody gave."""

    def __init__(self):
        self.made = None


class Both(Energy, nn.Module):
    """An energy that is a network itself."""

    def __init__(self):
        super().__init__()
        self.net = Net()
        self.w = nn.Parameter(torch.ones(1))

    def __call__(self, state):
        return self.w * state.x.flatten(1).sum(1)


class Mine(ModuleBackbone):
    def __init__(self, denoiser, option=None, device="cpu"):
        self.option = option
        card = Card("mine", licence="MIT", size=8, cfg=1.0, cfg_channels="all", layer="conv", scale=0.1, unit="step")
        told = {"latent_shape": (3, 8, 8), "layers": ("conv",), "class_names": ("a",)}
        super().__init__(denoiser, card=card, schedule=VariancePreserving.from_betas(1e-4, 0.02, 1000), **told)


@dataclasses.dataclass
class Config:
    heads: int


class Mode(enum.Enum):
    A = 1
    B = 2


class Plain:
    def __init__(self, k):
        self.k = k

    def run(self, x):
        return self.k * x


VALUES = {
    "number": (1, 2),
    "numpy's number": (np.int64(1), np.int64(2)),
    "built-in function": (torch.relu, torch.tanh),
    "function": (F.relu, F.elu),
    "partial": tuple(functools.partial(F.leaky_relu, negative_slope=k) for k in (0.1, 0.2)),
    "dataclass": (Config(1), Config(2)),
    "object": (Plain(1), Plain(2)),
    "method": (Plain(1).run, Plain(2).run),
    "member": (Mode.A, Mode.B),
    "dtype": (torch.float16, torch.float32),
    "path": (Path("a"), Path("b")),
    "slice": (slice(1), slice(2)),
    "tuple": ((1, torch.relu), (1, torch.tanh)),
}
LISTS = {
    "list": ([1], [2]),
    "mapping": ({"a": 1}, {"a": 2}),
    "numbers as keys": ({0: 1}, {0: 2}),
    "list of networks": ([nn.ReLU()], [nn.Tanh()]),
}


def made_of(value):
    made = Making()
    made.made = value
    return made


def hooked(value):
    net = nn.Identity()
    net.register_forward_hook(lambda module, given, found: found if value is None else value)
    return net


def in_itself(value):
    made = Both()
    made.net.held = value
    return made


PLACES = {
    "network": lambda value: describe(Given(Net(value))),
    "part of a network": lambda value: describe(Given(nn.Sequential(Net(value)))),
    "hook": lambda value: describe(Given(hooked(value))),
    "network itself": lambda value: describe(in_itself(value)),
    "network itself, inside": lambda value: describe(Descend(in_itself(value), 0.1)),
    "backbone": lambda value: describe(Mine(Net(value))),
    "weights of a backbone": lambda value: Mine(Net(value)).weights_hash(),
    "argument of a backbone": lambda value: Mine(Net(), value).weights_hash(),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*VALUES, *LISTS])
def test_networks_are_told_apart_by_what_decides_their_output(place, name):
    if (place, name) == ("argument of a backbone", "list of networks"):
        return  # which may be used no more
    one, other = (VALUES | LISTS)[name]
    tell = PLACES[place]
    assert tell(one) == tell(copy.deepcopy(one)) != tell(other)


@pytest.mark.parametrize("name", VALUES)
def test_attributes_that_an_object_makes_are_told_apart(name):
    one, other = VALUES[name]
    assert describe(made_of(one)) == describe(made_of(copy.deepcopy(one))) != describe(made_of(other))
    assert describe(made_of([1])) == describe(made_of([2])), "objects keep in lists what they found out"


def test_the_weights_of_an_energy_that_is_a_network_count():
    before = describe(Both())
    for weight in ("w", "net.conv.weight"):
        made = Both()
        nn.init.zeros_(made.get_parameter(weight))
        assert before == describe(Both()) != describe(made)
        assert describe(Descend(Both(), 0.1)) != describe(Descend(made, 0.1))


def scripted(slope, factor=1):
    class Compiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.factor = nn.LeakyReLU(slope), factor

        def forward(self, x):
            return self.act(x) * self.factor

    return torch.jit.script(Compiled())


def traced(function):
    return torch.jit.trace(function, torch.ones(1))


def adding(k):
    added = torch.arange(1000) + k
    return lambda x: x + added


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_networks_are_told_apart(tmp_path):
    made = [scripted(0.1), scripted(0.2), scripted(0.1, 2), traced(nn.ReLU())]
    made += [traced(nn.Tanh()), traced(torch.sin), traced(torch.cos), torch.fx.symbolic_trace(nn.Sequential(nn.ReLU()))]
    made += [traced(adding(1)), traced(adding(2))]
    told = [Describer().described(one) for one in made]
    assert len({str(one) for one in told}) == len(made)
    assert Describer().described(scripted(0.1)) == told[0], "torch gives another number to a class of the same name"
    torch.jit.save(made[0], tmp_path / "net.pt")
    one, same = (describe(Given(torch.jit.load(tmp_path / "net.pt"))) for _ in range(2))
    assert one == same and "unknown" not in one


def test_where_a_network_of_diffusers_came_from_does_not_count():
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin

    class Own(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, heads=1):
            super().__init__()

    def made(heads, folder):
        net = Own(heads)
        net.register_to_config(_name_or_path=folder)
        return Describer().network(net)

    assert made(1, "a") == made(1, "b") != made(2, "a")


def test_networks_that_refer_to_each_other_come_to_an_end():
    def chain(k):
        parts = [Net(k) for _ in range(20)]
        for part, before in zip(parts[1:], parts, strict=False):
            part.before, part.all = [before], parts
        return nn.Sequential(*parts)

    told = Describer().described(chain(1))
    assert told == Describer().described(chain(1)) != Describer().described(chain(2))


def test_an_attribute_that_cannot_be_described_makes_a_network_of_the_users_unknown():
    for value in (torch.Generator(), iter([1])):
        assert describe(Given(Net(value)))["unknown"] == ["net"]
    library = nn.Linear(1, 1)
    library.kept = torch.Generator()
    for net in (library, Net(threading.Lock()), Net(weakref.ref(Plain))):
        assert "unknown" not in describe(Given(net))
    with pytest.raises(Unknown, match=r"Net\.held holds an object of builtins:list"):
        Describer().described(Net([threading.Lock()]))


def test_a_backbone_whose_network_keeps_what_it_saw_is_the_same(caplog):
    made = Mine(Net())
    before = made.weights_hash()
    made.denoiser(torch.ones(1, 3, 8, 8))
    assert made.weights_hash() == before
    other = copy.deepcopy(made)
    other.denoiser.held = 2
    assert other.weights_hash() != before
    assert not caplog.text


def test_a_backbone_that_cannot_be_described_says_what_of_it(caplog):
    assert Mine(Net(torch.Generator())).weights_hash() == Mine(Net(torch.Generator())).weights_hash()
    assert "Net.held holds an object of torch" in caplog.text and "--cache" in caplog.text


def test_code_and_networks_of_this_library_and_others_are_no_part_of_the_weights_hash(backbone):
    from dap.base.describing.backbones import arguments, code_and_networks

    assert (code_and_networks(backbone), arguments(backbone)) == ([], {})
    assert Mine(Net(), device="cpu").weights_hash() == Mine(Net(), device="cuda").weights_hash()


CLASSIFIER = """
from torch import nn
import held

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = getattr(held, "factor")

    def forward(self, x):
        return x.mean((2, 3)) * self.factor

def build(names):
    return Net()

def opened(names):
    import torch
    net = Net()
    net.kept = torch.Generator()
    return net
"""


def test_a_module_as_classifier_is_known_by_what_decides_its_output(tmp_path, monkeypatch, caplog):
    import sys
    from types import ModuleType

    monkeypatch.setitem(sys.modules, "held", ModuleType("held"))

    def fingerprint(factor, folder="a", name="build"):
        sys.modules["held"].factor = factor
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "c.py").write_text(CLASSIFIER)
        return load_classifier(f"{tmp_path / folder / 'c.py'}:{name}", ("a", "b", "c")).fingerprint

    assert fingerprint(1) == fingerprint(1) == fingerprint(1, "b") != fingerprint(2)
    assert not caplog.text
    assert len(fingerprint(1, name="opened")) == 32
    assert "cannot describe the network of" in caplog.text and "change its file too" in caplog.text
