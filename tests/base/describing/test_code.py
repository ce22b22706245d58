"""Code is told apart by what it does, and is the same in each process, after a use, and where only words differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from types import ModuleType

import numpy as np
import pytest
import torch

from dap.base.describing.code import of_user
from dap.base.describing.values import Describer, Unknown
from dap.base.errors import DapError
from dap.described import check_goes_on, describe

HEAD = """
import abc, collections, dataclasses, enum, functools, pathlib, threading
import numpy as np, torch, torch.nn.functional as F
from pydantic import BaseModel, PrivateAttr
from torch import nn
from dap.guidance import Energy
def f(x, k): return k * x
class Held:
    def __init__(self, k=None): self.k = k
"""
ENERGY = """
class E(Energy):
    def __init__(self, v=None): self.v = v
    def __call__(self, s): return s
"""


def run(source, name="a_users_module", file="/somewhere/a_users_module.py"):
    """A module of the user's with this text."""
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module
    exec(compile(HEAD + textwrap.dedent(source), file, "exec"), vars(module))
    return module


def told(source, made="E()", **of):
    return describe(eval(made, vars(run(source, **of))))


@pytest.fixture(autouse=True)
def _no_module_stays(monkeypatch):
    monkeypatch.delitem(sys.modules, "a_users_module", raising=False)


def calling(expression, before=""):
    return f"{before}\nclass E(Energy):\n    def __call__(self, s): return {expression}"


def of_class(body):
    return f"class E(Energy):\n    {body}\n    def __call__(self, s): return self.act(s)"


DECORATOR = """
class Scaled:
    def __init__(self, f, k): functools.update_wrapper(self, f); self.f = f; self.k = k
    def __get__(self, one, kind=None): return functools.partial(self, one)
    def __call__(self, *a): return self.k * self.f(*a)
def scaled(k): return lambda f: Scaled(f, k)
class E(Energy):
    @scaled(@@)
    def __call__(self, s): return s
"""
CALL = "    def __call__(self, s): return "
LEVEL = "class L(enum.IntEnum):\n    HI = @@\n"

APART = {
    "names of parameters": (calling("mix(a=1, b=2)", "def mix(@@"), "a, b): return a - b", "b, a): return b - a"),
    "stars": (calling("mix(1)", "def mix(@@x): return x"), "", "*"),
    "only by keyword": ("class E(Energy):\n    def __call__(self, s@@): return s", ", k=1", ", *, k=1"),
    "static method of a library": (of_class("act = staticmethod(F.@@)"), "relu", "elu"),
    "built-in static method": (of_class("act = staticmethod(torch.@@)"), "relu", "tanh"),
    "function of a library": (of_class("act = F.@@"), "relu", "elu"),
    "partial": (of_class("act = functools.partial(f, k=@@)"), "2", "3"),
    "partial method": (of_class("act = functools.partialmethod(f, k=@@)"), "2", "3"),
    "call by a partial": ("class E(Energy):\n    __call__ = functools.partial(f, k=@@)", "2", "3"),
    "object as decorator": (DECORATOR, "2", "3"),
    "decorator of a library": (
        "class E(Energy):\n    @torch.no_grad()\n    def __call__(self, s): return @@",
        "2",
        "3",
    ),
    "dispatched method": (of_class("@functools.singledispatchmethod\n    def act(self, s): return @@"), "2", "3"),
    "dispatched": (
        calling("g(s)", "@functools.singledispatch\ndef g(s): return 1\n@g.register\ndef _(s: int): return @@"),
        "2",
        "3",
    ),
    "cached property": (of_class("@functools.cached_property\n    def act(self): return @@"), "2", "3"),
    "wraps one of a library": (calling("g(s)", "@functools.wraps(F.relu)\ndef g(x): return x * @@"), "2", "3"),
    "member as default": (f"{LEVEL}class E(Energy):\n    def __init__(self, k=L.HI): self.k = k\n{CALL}s", "2", "3"),
    "global member": (calling("s * M.value", f"{LEVEL}M = L.HI"), "2", "3"),
    "method of a member": (
        calling("M.f(s)", "class L(enum.Enum):\n    A = 1\n    def f(self, s): return s * @@\nM = L.A"),
        "2",
        "3",
    ),
    "slots": (
        f"class E(Energy):\n    __slots__ = ('w',)\n    def __init__(self, k=@@): self.w = 1.0 * k\n{CALL}s",
        "2",
        "3",
    ),
    "constants": (calling("s in @@"), "{1, ('a', 2)}", "{1, ('a', 3)}"),
}

PRIVATE = "class C(BaseModel):\n    _b: int = PrivateAttr(0)\ndef c(k):\n    made = C(); made._b = k; return made"
SET = "class C(set): pass\ndef c(k):\n    made = C('a'); made.k = k; return made"
NAMED = f"class E(Energy):\n    def __init__(self, a): self._a = a\n    def a(self): return 1\n{CALL}s"
FAILING = "class E(Energy):\n    def __init__(self, v=None): self._x = None\n    @property\n    def v(self): raise RuntimeError\n"
ITSELF = (
    "class E(Energy):\n    def __init__(self, k):\n        self.k, self.f = k, self.run\n    def run(self): return 1\n"
)
MADE = {
    "extra fields": ("class C(BaseModel, extra='allow'):\n    a: int = 1", "E(C(b={}))"),
    "private fields": (PRIVATE, "E(c({}))"),
    "state that is an array": ("class C(Held):\n    def __getstate__(self): return np.ones(3) * self.k", "E(C({}))"),
    "set of a class of its own": ("class C(set): pass", "E(C(('a', {})))"),
    "frozen set of a class of its own": ("class C(frozenset): pass", "E(C(('a', {})))"),
    "attribute of a set": (SET, "E(c({}))"),
    "many digits": ("", "E(10**5000 + {})"),
    "method of the name of an argument": (NAMED, "E({})"),
    "property that fails": (f"{FAILING}{CALL}s", "E({})"),
    "a fingerprint of another kind": ("class C(Held):\n    def fingerprint(self, image): return 1", "E(C({}))"),
    "a hash of other weights": ("class C(Held):\n    def weights_hash(self, image): return 1", "E(C({}))"),
    "methods of itself": (f"{ITSELF}{CALL}s", "E({})"),
}


@pytest.mark.parametrize("name", APART)
def test_code_is_told_apart(name):
    source, a, b = APART[name]
    one, same, other = (told(source.replace("@@", text)) for text in (a, a, b))
    assert one == same != other
    assert "unknown" not in one


@pytest.mark.parametrize("name", MADE)
def test_objects_are_told_apart(name):
    source, made = MADE[name]
    one, same, other = (told(ENERGY + source, made.format(k)) for k in (1, 1, 2))
    assert json.loads(json.dumps(one)) == same != other
    assert "unknown" not in one


SAME = {
    "docstring": ("class E(Energy):\n    def __call__(self, s):@@ return 2", "", " 'a';"),
    "other docstring": (
        "class E(Energy):\n    def __call__(self, s):\n        '@@'\n        return ['b' for _ in s]",
        "a",
        "b",
    ),
    "class in a function": (
        calling("g()", "def g():\n    class C:\n        '@@'\n        k = 1\n    return C"),
        "a",
        "b",
    ),
    "lines": (
        "@@class E(Energy):\n    def __call__(self, s):\n        class C: pass\n        return C",
        "",
        "\n\n# a comment\n",
    ),
    "names of variables": ("class E(Energy):\n    def __call__(self, s):\n        @@ = 1\n        return @@", "a", "b"),
}


@pytest.mark.parametrize("name", SAME)
def test_words_are_no_code(name):
    source, a, b = SAME[name]
    assert told(source.replace("@@", a)) == told(source.replace("@@", b))


def test_what_a_class_would_compute_again_is_no_change():
    space = run(
        "class H:\n    @functools.cached_property\n    def size(self): return 5\n"
        "class E(Energy):\n    def __init__(self, v): self.v = v\n    @functools.cached_property\n"
        "    def own(self): return 7\n    def __call__(self, s): return s"
    )
    made = space.E(space.H())
    before = describe(made)
    assert (made.v.size, made.own) == (5, 7)
    assert describe(made) == before


INSTALLED = (
    "def f(s): return s * {0}\nCALLS = [{0}]\ndef g(s): return len(CALLS)\nclass K:\n    def h(self): return {0}"
)


def test_of_installed_code_only_the_name_counts_and_the_version_of_a_class(monkeypatch):
    def made(k, expression, version="1"):
        module = run(INSTALLED.format(k), "a_package", "/lib/site-packages/a_package.py")
        module.__version__ = version
        source = f"import a_package\nclass E(Energy):\n    def __init__(self, v=a_package.{expression}): self.v = v\n"
        return told(f"{source}    def __call__(self, s): return a_package.g(s), a_package.K")

    try:
        for expression in ("f", "g", "K", "K()", "K().h"):
            assert made(1, expression) == made(2, expression), expression
        assert made(1, "f") != made(1, "g")
        from dap.base.describing import code

        before = made(1, "K()")
        code._version.cache_clear()
        assert made(1, "K()", version="2") != before
    finally:
        code._version.cache_clear()
        sys.modules.pop("a_package")


def test_a_module_of_the_users_may_have_a_name_of_pythons(monkeypatch):
    for name in ("statistics", "profile", "a_users_module"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        file = f"/somewhere/{name}.py"
        one, other = (told(ENERGY.replace("return s", f"return s * {k}"), name=name, file=file) for k in (1, 2))
        assert one != other
    assert not any(
        map(of_user, (json, json.dumps, torch, torch.nn.Linear, np.ones((1,)).__class__, describe, DapError))
    )
    assert of_user(sys.modules[__name__])


STRANGE = [
    "torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])",
    "nn.LazyLinear(2)",
    "Broken(1)",
    "threading.Lock()",
]


@pytest.mark.parametrize("made", STRANGE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_described_ends_no_run(made):
    source = f"{ENERGY}\nclass Broken(Held):\n    def __reduce_ex__(self, protocol): raise OSError('gone')"
    assert told(source, f"E({made})")["unknown"] == ["v"]


def test_a_class_without_a_module_is_described():
    kind = type("T", (), {"__module__": None, "f": lambda self: 1})
    assert Describer().described(kind()) == Describer().described(kind())


def test_the_advice_names_the_function_that_cannot_be_described(tmp_path):
    source = (
        "def locked(f, lock=threading.Lock()):\n    return lambda *a: (lock, f(*a))[1]\nclass E(Energy):\n    @locked\n"
    )
    said = told(f"{source}    def __call__(self, s): return s")
    (unknown,) = said["unknown"]
    assert "a_users_module:locked" in unknown and "holds an object of _thread:lock" in unknown
    (tmp_path / "classes.json").write_text("[]")
    with pytest.raises(Unknown):
        Describer().described(run(source + "    def __call__(self, s): return s").E.__call__)


def test_the_advice_fits_what_is_not_known(tmp_path, caplog):
    for unknown, advice in (
        (["value"], "attributes of the same names"),
        (["the code (f holds x)"], "Let the closures"),
    ):
        caplog.clear()
        check_goes_on(tmp_path, {"objects": {"guidance": {"unknown": unknown}}}, 1)
        assert advice in caplog.text and f"{unknown[0]} of guidance" in caplog.text


@pytest.mark.slow
def test_what_a_compiled_function_runs_counts():
    one, same, other = (
        told(f"class E(Energy):\n    @torch.compile\n    def __call__(self, s): return {k}") for k in (1, 1, 2)
    )
    assert one == same != other and "unknown" not in one


def all_told():
    code = [told(source.replace("@@", text)) for source, text, _ in APART.values()]
    return json.dumps([code, [told(ENERGY + source, made.format(1)) for source, made in MADE.values()]])


def test_descriptions_are_the_same_in_each_process():
    folders = [os.path.dirname(__file__), *sys.path]
    program = f"import sys; sys.path[:0] = {folders}; import test_code; print(test_code.all_told())"
    of = {**os.environ, "PYTHONHASHSEED": "1"}
    found = subprocess.run([sys.executable, "-c", program], env=of, capture_output=True, text=True)
    assert found.stdout.strip() == all_told(), found.stderr
