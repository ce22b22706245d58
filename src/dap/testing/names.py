"""Finds the object of a name, and checks the object against the contract of its kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from dap import backbones
from dap.backbones.base import Backbone
from dap.backbones.opening import STARTERS
from dap.base.errors import DapError
from dap.base.files import expanded
from dap.base.registry import build, resolve, suggest
from dap.guidance.base import Energy, Guidance
from dap.kernels import KERNELS, Kernel
from dap.methods import METHODS, Method
from dap.testing import backbone, guidance, kernel, method
from dap.testing.findings import Finding

log = logging.getLogger(__name__)

CONTRACTS: Mapping[str, tuple[type, Callable[[Any], Iterator[Finding]]]] = {
    "backbone": (Backbone, backbone.findings),
    "kernel": (Kernel, kernel.findings),
    "guidance": (Guidance, guidance.findings),
    "energy": (Energy, guidance.findings),
    "method": (Method, method.findings),
}


def check(
    name: str,
    *,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    offline: bool = False,
) -> tuple[str, Iterator[Finding]]:
    """Check the object of a name against the contract of its kind.

    A name is looked up in this order: built-in kernels and methods; the embedded starters; a folder, which is a backbone;
    `file.py:Name` or `package.module:Name`, which is a class, a function without arguments that returns the object, or the object
    itself; a hub id `owner/name`, which is a backbone. So a folder that is called `rbf` must be given as `./rbf`.

    Args:
        name: see above.
        device, dtype, offline: the choices for a backbone, see `dap.backbones.load`. Other kinds do not use them.

    Returns:
        The kind ("backbone", "kernel", "guidance", "energy" or "method"), and the findings. Each finding comes when it
        is made.

    Raises:
        DapError: there is no object of that name, the object cannot be loaded or made, or its kind has no contract.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, "offline": offline}
    thing: Any
    backbones.device_of(device)
    if name in {*KERNELS, *METHODS, *STARTERS} and expanded(name).is_dir():
        log.warning("%s is checked as the name of a part of dap; the folder of this name is ./%s.", name, name)
    if name in KERNELS or name in METHODS:
        thing = {**KERNELS, **METHODS}[name]()
    elif name in STARTERS or expanded(name).is_dir():
        thing = backbones.load(name, **options)
    elif ":" in name:
        thing = build(resolve(name, {}, "class"), name)
        if isinstance(thing, Backbone):
            thing = backbones.own(thing, name, device=device, dtype=dtype)
    elif "/" in name:
        thing = backbones.load(name, **options)
    else:
        raise DapError(
            f"There is no {name!r} to check. {suggest(name, [*STARTERS, *KERNELS, *METHODS])} "
            "Or give a folder, a hub id owner/name, or your own as file.py:Name."
        )
    for kind, (of, findings) in CONTRACTS.items():
        if isinstance(thing, of):
            return kind, findings(thing)
    raise DapError(
        f"{name!r} is {type(thing).__name__!r}, which has no contract; subclass Backbone, Kernel, Guidance, Energy or Method."
    )
