"""What the methods are, in words, for `dap methods`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from dap.methods import METHODS, find


def table() -> str:
    """Every method by name with what it needs beyond real images."""
    width = max(map(len, METHODS))
    lines = [f"{name:{width}}  {_needs(made.needs):32}  {made.reference}" for name, made in METHODS.items()]
    head = f"{'method':{width}}  {'needs':32}  reference"
    return "\n".join([head, *lines, "", "dap methods NAME says what one does, costs and can be told."])


def one(name: str) -> str:
    """A method in full: its idea, reference, needs, cost and own options with their defaults.

    Raises:
        DapError: no such method.
    """
    made = find(name)
    parts = [f"{name}: {' '.join((made.__doc__ or '').split())}", ""]
    parts += [f"{word:11}{text}" for word, text in (("reference", made.reference), ("needs", _needs(made.needs)))]
    parts += [f"{'cost':11}{made.cost}"] if made.cost else []
    if made.Options is not None:
        parts += ["", "options, as --option NAME=VALUE (in dap compare METHOD.NAME=VALUE):"]
        for option, field in made.Options.model_fields.items():
            parts += [
                f"  {option} = {field.default}",
                textwrap.indent(textwrap.fill(field.description or "", 100), "      "),
            ]
    if made.guidance is not None:
        told = (
            ", ".join(f"{key} {value}" for key, value in made.guidance.items()) or "the backbone card's and the paper's"
        )
        parts += ["", f"guidance: its flags of dap distill (--scale, --layer, ...); defaults: {told}"]
    if made.sampling:
        parts += [
            "",
            f"sampling: {', '.join(f'{key} {value}' for key, value in made.sampling.items())} unless told otherwise",
        ]
    return "\n".join(parts)


def _needs(needs: Iterable[str]) -> str:
    return ", ".join(sorted(needs)) or "nothing"
