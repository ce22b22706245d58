"""Methods: everything that makes a distilled set, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping

from dap.errors import DapError
from dap.methods.base import Made, Method, Options, Task, Unit, plan
from dap.methods.cao2 import CaO2
from dap.methods.d3hr import D3HR
from dap.methods.dap import Dap, DapSlots
from dap.methods.dc import DC, DSA
from dap.methods.dm import DM
from dap.methods.herding import Herding
from dap.methods.kcenter import KCenter
from dap.methods.random import Random
from dap.methods.rded import RDED
from dap.methods.vanilla import Dit, Sd, Vanilla
from dap.registry import resolve

__all__ = ["METHODS", "Made", "Method", "Options", "Task", "Unit", "find", "plan"]

METHODS: Mapping[str, type[Method]] = {
    "random": Random,
    "herding": Herding,
    "k-center": KCenter,
    "rded": RDED,
    "dm": DM,
    "dc": DC,
    "dsa": DSA,
    "vanilla": Vanilla,
    "dit": Dit,
    "sd": Sd,
    "d3hr": D3HR,
    "cao2": CaO2,
    "dap": Dap,
    "dap-slots": DapSlots,
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
