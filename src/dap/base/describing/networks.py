"""What decides the output of a network beside its weights: the attributes of its parts, hooks, and compiled code."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from dap.base.describing.code import is_cached, of_user

TORCHS = frozenset(vars(nn.Module())) - {"training"}
"""The attributes in which torch keeps the parts, weights and hooks of a network."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

IDLE = (type(threading.Lock()), type(threading.RLock()), weakref.ReferenceType, *weakref.ProxyTypes)
"""The kinds of values that cannot be described and decide no output."""

OPTIONS = "_internal_dict"
"""The attribute in which diffusers keeps what a network was made with and, behind underscores, where it came from."""

RESERVED = "_dap_"
"""How the attributes begin in which this package notes something of an object."""


def is_network(value: Any) -> bool:
    """Whether a value is a network, or a pipeline of networks."""
    library = str(type(value).__module__).partition(".")[0] in ("diffusers", "transformers")
    return isinstance(value, nn.Module) or (library and hasattr(value, "config"))


def networks_in(held: object) -> Iterator[nn.Module]:
    """The networks among values, also those in lists and dictionaries."""
    if isinstance(held, nn.Module):
        yield held
    elif isinstance(held, Mapping | list | tuple):
        for value in held.values() if isinstance(held, Mapping) else held:
            yield from networks_in(value)


def held_by(thing: Any) -> dict[str, Any]:
    """What an object itself holds by name, in attributes and in slots, and what of it `lasts`; of a network also its parts and
    weights."""
    state: Any = object.__getstate__(thing)  # attributes, or a pair of attributes and slots
    parts = state if isinstance(state, tuple) else (state,)
    held = {name: value for part in parts for name, value in (part or {}).items()}
    if isinstance(thing, nn.Module):
        held = {name: value for name, value in held.items() if name not in TORCHS}
        held |= {**thing._parameters, **thing._buffers, **thing._modules}
    return {name: value for name, value in held.items() if lasts(type(thing), name)}


def lasts(kind: type, name: str) -> bool:
    """Whether an attribute says something of an object of a class: not if the class would compute it again, and not if this
    package has noted it."""
    return not (name.startswith(RESERVED) or is_cached(kind, name))


def attributes(part: nn.Module, counts: Callable[[Any], bool]) -> dict[str, Any]:
    """The attributes of one part of a network that are neither weights nor parts.

    In a part of the user's class all of them count, also lists and mappings, but for those of `IDLE`.

    Args:
        part: the part.
        counts: which attributes count where the class is not the user's own, and its name says the rest.
    """
    if isinstance(part, torch.jit.ScriptModule):
        return _of_script(part)
    weights = {*part._parameters, *part._buffers, *part._modules} - part._non_persistent_buffers_set
    held = {name: value for name, value in held_by(part).items() if name not in weights}
    if isinstance(options := held.get(OPTIONS), dict):
        held[OPTIONS] = {name: value for name, value in options.items() if not name.startswith("_")}
    if of_user(type(part)):
        return {name: value for name, value in held.items() if not isinstance(value, IDLE)}
    traced = {"code": part.code} if isinstance(part, torch.fx.GraphModule) else {}
    return {**{name: value for name, value in held.items() if counts(value)}, **traced}


def hooks(part: nn.Module) -> list[Any]:
    """What was hung on one part of a network, and may change what comes out of it."""
    return [list(found.values()) for name in HOOKS if (found := getattr(part, name, None))]


def _of_script(part: torch.jit.ScriptModule) -> dict[str, Any]:
    """What a compiled part runs, and the attributes that this reads."""
    method = getattr(part, "forward", None)
    if not hasattr(method, "inlined_graph"):  # only the part around it runs its other methods
        return {}
    graph, constants = script(method)
    read = {name: getattr(part, name, None) for name in sorted(set(re.findall(r'GetAttr\[name="(\w+)"\]', graph)))}
    plain = {name: value for name, value in read.items() if not isinstance(value, (nn.Module, torch.Tensor))}
    return {"graph": graph, "constants": constants, **plain}


def script(compiled: Any) -> tuple[str, list[torch.Tensor]]:
    """The instructions of a function or a method that `torch.jit` has compiled, with all that they call, and the tensors in them.
    The lines of files do not count, nor the numbers that torch gives to classes of one name."""
    graph = torch._C._jit_pass_canonicalize(compiled.inlined_graph)
    values = [node for node in graph.findAllNodes("prim::Constant") if node.hasAttribute("value")]
    tensors = [node.t("value") for node in values if node.kindOf("value") == "t"]
    return re.sub(r", scope: .*| +# .*|___torch_mangle_\d+\.", "", str(graph)), tensors
