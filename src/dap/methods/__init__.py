"""Methods: everything that makes a distilled set, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping

from dap.errors import DapError
from dap.methods.base import Made, Method, Options, Task, Unit, plan
from dap.methods.d4m import D4m
from dap.methods.dap import Dap, DapSlots
from dap.methods.dc import Dc, Dsa
from dap.methods.dm import Dm
from dap.methods.herding import Herding
from dap.methods.igd import Igd
from dap.methods.kcenter import KCenter
from dap.methods.manifold_gd import ManifoldGd
from dap.methods.mgd3 import Mgd3
from dap.methods.minimax import Minimax
from dap.methods.mtt import Mtt
from dap.methods.random import Random
from dap.methods.rded import Rded
from dap.methods.vanilla import Dit, Sd, Vanilla
from dap.methods.vlcp import Vlcp
from dap.registry import resolve

__all__ = ["METHODS", "Made", "Method", "Options", "Task", "Unit", "find", "plan"]

METHODS: Mapping[str, type[Method]] = {
    "random": Random,
    "herding": Herding,
    "k-center": KCenter,
    "rded": Rded,
    "dm": Dm,
    "dc": Dc,
    "dsa": Dsa,
    "mtt": Mtt,
    "vanilla": Vanilla,
    "dit": Dit,
    "sd": Sd,
    "dap": Dap,
    "dap-slots": DapSlots,
    "mgd3": Mgd3,
    "d4m": D4m,
    "vlcp": Vlcp,
    "minimax": Minimax,
    "manifold-gd": ManifoldGd,
    "igd": Igd,
}


def find(name: str) -> Method:
    """The method behind a name or `file.py:Name`.

    Raises:
        DapError: unknown, or not a `Method`.
    """
    method = resolve(name, METHODS, "method")()
    if not isinstance(method, Method):
        raise DapError(f"{name!r} is not a method; subclass dap.methods.Method.")
    return method
