"""Objects that a Python user gives in place of names, and what a distilled set says of them.

A name in a recipe can be looked up again; an object cannot. So a set that was made with objects keeps for each one the name
of its class, a hash of the file that defines the class, and the plain values it was made with. That is enough to
refuse to go on with most other objects, and to tell a reader what was used.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dap.backbones.base import Backbone
from dap.base.errors import DapError
from dap.data.real.memory import by_class
from dap.data.real.sources import Source
from dap.guidance.base import Energy, Guidance
from dap.methods.base import Method


@dataclass(frozen=True, eq=False)
class Objects:
    """What was given as objects; None for what the recipe names.

    Attributes:
        method: makes the images.
        backbone: the diffusion model.
        guidance: added to the method's own.
        source: the real images: a `Source`, or images in memory as `data.real.memory.by_class` takes them.

    Raises:
        DapError: one of them is of another kind.
    """

    method: Method | None = None
    backbone: Backbone | None = None
    guidance: Guidance | Energy | None = None
    source: Any = None

    def __post_init__(self) -> None:
        kinds = {"method": (Method,), "backbone": (Backbone,), "guidance": (Guidance, Energy)}
        for name, of in kinds.items():
            thing = getattr(self, name)
            if thing is not None and not isinstance(thing, of):
                wanted = " or ".join(f"dap.{kind.__module__.removeprefix('dap.')}.{kind.__name__}" for kind in of)
                raise DapError(
                    f"{name} should be a name or an object of a subclass of {wanted}, not a {type(thing).__name__}."
                )

    def named(self) -> dict[str, Any]:
        """What a recipe says in place of the objects, by keyword."""
        found: dict[str, Any] = {}
        if self.method is not None:
            found["method"] = name_of(self.method)
        if self.backbone is not None:
            card = self.backbone.card
            found |= {"backbone": card.name, "template": card.template, "negative_prompt": card.negative_prompt}
        if self.guidance is not None:
            found["guidance"] = name_of(self.guidance)
        if isinstance(self.source, Source):
            found |= {"data": self.source.name, "classes": self.source.class_names, "size": self.source.size}
        elif self.source is not None:
            found |= {"data": "images in memory", "classes": tuple(by_class(self.source))}
        return found

    def described(self) -> dict[str, Any]:
        """What a set says of its objects, by their role; {} where everything was named."""
        things = {"method": self.method, "backbone": self.backbone, "guidance": self.guidance}
        things |= {"source": self.source} if isinstance(self.source, Source) else {}
        return {role: describe(thing) for role, thing in things.items() if thing is not None}


def name_of(thing: Any) -> str:
    """The name of an object's class, as "module:Class"."""
    return f"{type(thing).__module__}:{type(thing).__qualname__}"


def describe(thing: Any) -> dict[str, Any]:
    """The class of an object, the hash of the code that defines it, and its plain values.

    Returns:
        "class": "module:Class". "code": sha256 by class, of the files of the class and of those it derives from; where there
        is no file, as in a notebook, of the text of the class; "unknown" where there is no text either. Classes of this
        package are left out, for the set notes the version. "values": the attributes that are numbers, texts or
        tuples of them and that the class takes as arguments; guidances and energies among them are described in turn.
    """
    code = {}
    for kind in type(thing).__mro__:
        if kind.__module__.partition(".")[0] not in ("dap", "builtins", "abc", "typing", "torch", "pydantic"):
            code[f"{kind.__module__}:{kind.__qualname__}"] = _code_of(kind)
    described: dict[str, Any] = {"class": name_of(thing), **({"code": code} if code else {})}
    values = _values_of(thing) if isinstance(thing, (Method, Guidance, Energy)) else {}
    return {**described, **({"values": values} if values else {})}


def _code_of(kind: type) -> str:
    try:
        file = inspect.getsourcefile(kind)
        if file is not None and Path(file).is_file():
            return hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):
        return "unknown"


def _values_of(thing: Any, depth: int = 4) -> dict[str, Any]:
    """What an object was made with: attributes that are arguments of its class, for those a run does not change."""
    found: dict[str, Any] = {}
    for name in inspect.signature(type(thing)).parameters:
        value = getattr(thing, name, inspect.Parameter.empty)
        if value is inspect.Parameter.empty:
            continue
        if _plain(value):
            found[name] = list(value) if isinstance(value, tuple) else value
        elif depth and isinstance(value, (Guidance, Energy)):
            found[name] = {"class": name_of(value), **_values_of(value, depth - 1)}
        elif depth and isinstance(value, tuple) and all(isinstance(one, (Guidance, Energy)) for one in value):
            found[name] = [{"class": name_of(one), **_values_of(one, depth - 1)} for one in value]
    return found


def _plain(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return isinstance(value, tuple) and all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
