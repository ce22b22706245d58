"""Methods: everything that makes a distilled set, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping

from dap.base.errors import DapError
from dap.base.registry import resolve
from dap.methods.base import Made, Method, Options, Task, Unit, plan
from dap.methods.diffusion.cao2 import CaO2
from dap.methods.diffusion.d3hr import D3HR
from dap.methods.diffusion.d4m import D4m
from dap.methods.diffusion.dap import Dap, DapSlots
from dap.methods.diffusion.igd import Igd
from dap.methods.diffusion.manifold_gd import ManifoldGd
from dap.methods.diffusion.mgd3 import Mgd3
from dap.methods.diffusion.minimax import Minimax
from dap.methods.diffusion.vanilla import Dit, Sd, Vanilla
from dap.methods.diffusion.vlcp import Vlcp
from dap.methods.matching.dc import Dc, Dsa
from dap.methods.matching.dm import Dm
from dap.methods.matching.mtt import Mtt
from dap.methods.selection.herding import Herding
from dap.methods.selection.kcenter import KCenter
from dap.methods.selection.random import Random
from dap.methods.selection.rded import Rded

__all__ = ["METHODS", "Made", "Method", "Options", "Task", "Unit", "find", "plan"]

METHODS: Mapping[str, type[Method]] = {
    "random": Random,
    "herding": Herding,
    "k-center": KCenter,
    "dm": Dm,
    "dc": Dc,
    "dsa": Dsa,
    "mtt": Mtt,
    "rded": Rded,
    "vanilla": Vanilla,
    "dit": Dit,
    "sd": Sd,
    "d4m": D4m,
    "vlcp": Vlcp,
    "minimax": Minimax,
    "mgd3": Mgd3,
    "manifold-gd": ManifoldGd,
    "igd": Igd,
    "dap": Dap,
    "dap-slots": DapSlots,
    "d3hr": D3HR,
    "cao2": CaO2,
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
