"""What is told of objects apart: the code that runs, what it reads and holds, and values of all kinds."""

from __future__ import annotations

import collections
import functools
import linecache
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from dap.base.describing.values import Describer, Unknown
from dap.base.registry import code_of
from dap.data.sets.differences import differences
from dap.described import describe
from dap.guidance import Energy
from dap.objects import Objects
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.verbs.options import Machine
from dap.workshop import Workshop


class Given(Energy):
    def __init__(self, value=None):
        self.value = value

    def __call__(self, state):
        return state.x.flatten(1).sum(1)


class Made(Energy):
    """Has attributes that nobody gave."""

    power = 1

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(Made.seed)
            self.net = nn.Linear(2, 2)
        self.cache = {}

    seed = 0

    def __call__(self, state):
        return state.x.flatten(1).sum(1)


class Slots:
    __slots__ = ("k",)


class Slotted(Slots):
    def __init__(self, k):
        self.k = k


class Scale:
    def __init__(self, k):
        self.k = k

    def apply(self, x):
        return self.k * x


class Listed(list):
    pass


class Text(str):
    def __new__(cls, k):
        made = str.__new__(cls, "a")
        made.k = k
        return made


class Powers(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p
        self.register_buffer("shift", torch.full((1,), float(p)), persistent=False)


def in_factory(k):
    class Inner(Energy):
        def __call__(self, state):
            return k * state.x.flatten(1).sum(1)

    return Inner()


def nested(k):
    return lambda x: (lambda y: y * k)(x)


TWO = [lambda x: x + 1, lambda x: x - 1]


def with_attribute(k):
    made = Listed([1])
    made.k = k
    return made


APART = {
    "bound method": lambda k: Scale(k).apply,
    "partial": lambda k: functools.partial(pow, exp=k),
    "slots": lambda k: Slotted(k),
    "attribute of a module": lambda k: Powers(k),
    "mode": lambda k: nn.Dropout().train(k == 1),
    "lambdas of one line": lambda k: TWO[k - 1],
    "bound built-in": lambda k: {"a": k}.get,
    "bound operator": lambda k: k.__add__,
    "factory of a default": lambda k: collections.defaultdict(nested(k)),
    "attribute of a list": with_attribute,
    "subclass of text": lambda k: Text(k),
    "closure in a closure": nested,
    "masked": lambda k: np.ma.array([1.0, 2.0], mask=[0, k - 1]),
    "ufunc": lambda k: np.sin if k == 1 else np.cos,
    "cached": lambda k: functools.lru_cache(nested(k)),
    "long": lambda k: [0.5] * 900 + [k],
    "conjugate": lambda k: torch.tensor([1j * k]).conj(),
}


@pytest.mark.parametrize("name", APART)
def test_values_are_told_apart(name):
    one, same, other = (describe(Given(APART[name](k))) for k in (1, 1, 2))
    assert one == same and "unknown" not in one
    assert one != other


def test_equal_values_are_equal():
    pairs = [([1] * 900, [1.0] * 900), ({1: 2, (3,): 4}, {(3,): 4, 1: 2}), ({"a", "b"}, {"b", "a"}), (np.float64(1), 1)]
    for one, other in pairs:
        assert not differences(describe(Given(one)), describe(Given(other))), one
    assert describe(Given(Listed([1]))) != describe(Given([1]))


def test_tensors_without_bytes_are_not_known():
    for value in (torch.eye(3).to_sparse(), torch.ones(2, device="meta")):
        assert describe(Given(value))["unknown"] == ["value"]


@pytest.mark.parametrize("value", [torch.ones(2), np.float32(5.0), np.ones(2)])
@pytest.mark.parametrize("before", [None, 1.0])
def test_an_argument_that_becomes_a_tensor_has_changed(before, value):
    made = Given(before)
    made.value = value
    assert describe(made) != describe(Given(before))


def test_attributes_that_nobody_gave_count(monkeypatch):
    before = describe(Made())
    assert before == describe(Made())
    changed = Made()
    changed.power = 2
    assert describe(changed) != before
    changed = Made()
    nn.init.zeros_(changed.net.weight)
    assert describe(changed) != before
    filled = Made()
    filled.cache[1] = object()
    assert describe(filled) == before
    monkeypatch.setattr(Made, "seed", 1)
    assert describe(Made())["values"]["net"] != before["values"]["net"]


def test_attributes_and_methods_of_a_class_count(monkeypatch):
    before = describe(Made())
    with monkeypatch.context() as patched:
        patched.setattr(Made, "power", 2)
        assert describe(Made()) != before
    with monkeypatch.context() as patched:
        patched.setattr(Made, "__call__", lambda self, state: 0)
        assert describe(Made()) != before
    assert describe(Made()) == before


def test_a_class_of_a_factory_counts_with_what_it_holds():
    assert describe(in_factory(1)) == describe(in_factory(1)) != describe(in_factory(2))


CELL = """
from dap.guidance import Energy
K = {k}
def helper(x):
    return x {sign} 1
class Cell(Energy):
    def __call__(self, state):
        return helper(state.x.flatten(1).sum(1)) * K * settings.scale
"""


def cell(k=1, sign="+", scale=1, other=1):
    """The object of a class that stands in no file, as in a notebook."""
    space = {"__name__": "a_notebook", "settings": ModuleType("settings")}
    vars(space["settings"]).update(scale=scale, other=other)
    exec(CELL.format(k=k, sign=sign), space)
    return space["Cell"]()


def test_code_of_a_notebook_counts_with_what_it_reads():
    assert describe(cell()) == describe(cell(other=2))
    for other in (cell(k=2), cell(sign="-"), cell(scale=2)):
        assert describe(other)["code"] != describe(cell())["code"]


def test_functions_that_refer_to_each_other_come_to_an_end():
    space = {"__name__": "a_notebook"}
    exec(
        "def a(x): return b(x)\ndef b(x): return [f(x) for f in ALL]\nALL = [a, b]\nclass C:\n    def f(self): return C",
        space,
    )
    space["C"].default = space["C"]()
    for value in (space["a"], space["C"](), space["C"]):
        assert Describer().described(value) == Describer().described(value)


def test_an_edited_file_changes_no_code_that_runs(tmp_path, monkeypatch):
    file = tmp_path / "of_user.py"
    text = "from dap.guidance import Energy\nclass Mine(Energy):\n    def __call__(self, state): return state.x.sum() * {}\n"
    file.write_text(text.format(1))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        from of_user import Mine

        before = describe(Mine())
        file.write_text(text.format(2))
        linecache.checkcache()
        assert describe(Mine()) == before
    finally:
        sys.modules.pop("of_user", None)


def test_what_is_not_filled_yet_is_not_known():
    def outer():
        def inner():
            return later

        with pytest.raises(Unknown):
            Describer().described(inner)
        later = 1
        return later

    assert outer()


def program(tmp_path, monkeypatch):
    """A program that runs, and the list of its runs."""
    file, runs = tmp_path / "program.py", []
    main = ModuleType("__main__")
    vars(main).update(__file__=str(file), runs=runs)
    file.write_text("runs.append(1)\n")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr("dap.base.registry._IMPORTED", {})
    return file, runs


def test_a_program_that_is_edited_while_it_runs_is_not_run_again(tmp_path, monkeypatch):
    file, runs = program(tmp_path, monkeypatch)
    for _ in range(3):
        code_of("__main__:Mine")
        file.write_text(f"{file.read_text()}# edited\n")
    assert not runs


def test_a_module_that_asks_for_its_own_code_is_run_once(tmp_path, monkeypatch):
    file = tmp_path / "asks.py"
    file.write_text("COUNT = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        code_of("asks:X")
        file.write_text("from dap.base.registry import code_of\nCOUNT.append(1)\ncode_of('asks:X')\n")
        code_of("asks:X")
        assert sys.modules["asks"].COUNT == [1]
    finally:
        sys.modules.pop("asks", None)


def test_no_code_is_loaded_by_the_name_of_an_object(monkeypatch):
    asked = []
    monkeypatch.setattr("dap.named.code_of", lambda spec: asked.append(spec) or {})
    from dap.named import code_of_recipe

    objects = Objects(guidance=Given())
    recipe = Recipe.parse({"method": "vanilla", "own_guidance": {"path": "__main__:Given"}})
    code_of_recipe(recipe, objects.sections)
    assert "__main__:Given" not in asked
    code_of_recipe(recipe)
    assert "__main__:Given" in asked


@pytest.fixture
def asked(colours, pipeline_folder):
    how = {"method": "vanilla", "ipc": 1, "steps": 2, "data": str(colours), "machine": Machine(device="cpu")}
    return {**how, "backbone": str(pipeline_folder)}


class Filling(Energy):
    """Keeps what a run shows it."""

    def __init__(self, history):
        self.history, self.last = history, None

    def __call__(self, state):
        self.history.append(state.index)
        self.last = state.x.detach()
        return state.x.flatten(1).sum(1)


def test_an_object_that_a_run_has_changed_is_still_the_same(asked, tmp_path):
    made = Filling([])
    first = distill(out=tmp_path / "a", guidance=made, **asked)
    assert made.history and made.last is not None
    for again in (made, Filling([])):
        assert len(distill(out=tmp_path / "a", guidance=again, **asked)) == len(first)


def test_a_whole_set_of_an_object_that_cannot_be_described_is_given_with_a_warning(asked, tmp_path, caplog):
    distill(out=tmp_path / "a", guidance=Given(iter([1])), **asked)
    caplog.clear()
    assert not distill(out=tmp_path / "a", guidance=Given(iter([2])), **asked).missing()
    assert "cannot tell whether" in caplog.text and "give another --out" in caplog.text.lower()


def test_a_task_of_an_object_that_the_user_has_changed_is_another_one(asked):
    made = Given(1)
    workshop = Workshop("cpu", objects=Objects(guidance=made))
    fields = {"method": "vanilla", "ipc": 1, "data": {"path": asked["data"]}, "backbone": {"path": asked["backbone"]}}
    recipe = Recipe.parse({**fields, "own_guidance": {"path": "x.py:Given"}, "sampling": {"steps": 2}})
    before = workshop.task(recipe)[1]
    assert workshop.task(recipe)[1] is before
    made.value = 2
    assert workshop.task(recipe)[1].store.inputs["objects"] != before.store.inputs["objects"]


def test_the_advice_names_no_command_where_objects_made_the_set(asked, tmp_path):
    distill(out=tmp_path / "a", guidance=Given(1), **asked)
    with pytest.raises(Exception, match="steps") as error:
        distill(out=tmp_path / "a", guidance=Given(1), **{**asked, "steps": 3})
    assert "dap distill" not in str(error.value)
