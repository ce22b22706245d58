"""The run-time checker of shape annotations in tests: beartype, with int accepted where float is meant (PEP 484)."""

from __future__ import annotations

from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_inside: dict[Any, Any] = {}


def check(what: Any) -> Any:
    """Let a function check its arguments and its result.

    jaxtyping hands over a function without a body that has the names and the annotations of the function to check. A function
    inside another one, such as a loss, is made anew whenever the outer one runs, and compiling its check anew was a tenth of the
    time of many tests. So the check of an inner function is compiled once for its names and annotations.
    """
    if "<locals>" not in getattr(what, "__qualname__", "") or not hasattr(what, "__code__"):
        return _checked(what)
    annotations = tuple((name, repr(annotation)) for name, annotation in what.__annotations__.items())
    key = (what.__module__, what.__qualname__, what.__code__.co_varnames, annotations)
    if key not in _inside:
        _inside[key] = _checked(what)
    return _inside[key]
