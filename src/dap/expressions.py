"""Reads the text of a kernel, such as `linear + 0.5 * rbf(bandwidth=3)`, into its parts. No text is ever run."""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from typing import Literal

from dap.base.errors import DapError
from dap.base.parsing import brief

LARGEST = 1e12
"""The largest number in a kernel; its inverse is the smallest. Beyond them, float32 numbers become infinite or 0."""
LONGEST = 1000
"""How many characters an expression may have."""
DEEPEST = 40
"""How many parts an expression may combine in a row."""


@dataclass(frozen=True)
class Named:
    """A kernel by its name, with underscores as hyphens, and the values of its parameters."""

    name: str
    values: dict[str, int | float | None]


@dataclass(frozen=True)
class Combined:
    """Two parts with a sign between them."""

    sign: Literal["+", "*"]
    a: Part
    b: Part


Part = int | float | Named | Combined
"""A part of an expression."""


def read(text: str) -> Part:
    """The parts of an expression.

    Raises:
        DapError: the text is no expression, is too long or too deep, or holds anything but names, finite numbers,
            name=value, + and *. The message points at the place.
    """
    if len(text) > LONGEST:
        raise DapError(
            f"The kernel {brief(text)} has more than {LONGEST} characters. Write a kernel of your own in a file."
        )
    text = text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.replace("rational-quadratic", "rational_quadratic"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        at = f" from character {error.offset} on" if isinstance(error, SyntaxError) and error.offset else ""
        raise DapError(
            f"Kernel {brief(text)} is not an expression{at}. Write it as 'linear + 0.5 * rbf(bandwidth=3)'."
        ) from error
    return _read(tree, text, 0)


def _read(node: ast.expr, text: str, depth: int) -> Part:
    if depth > DEEPEST:
        raise DapError(
            f"Kernel {brief(text)} combines more than {DEEPEST} parts. Write a kernel of your own in a file."
        )
    match node:
        case ast.Constant(value=int() | float()):
            return _number(node, text)
        case ast.Name(id=name):
            return Named(name.replace("_", "-"), {})
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return Named(name.replace("_", "-"), {str(k.arg): _parameter(k.value, text) for k in keywords})
        case ast.BinOp(left=left, op=ast.Add() | ast.Mult() as op, right=right):
            sign = "+" if isinstance(op, ast.Add) else "*"
            return Combined(sign, _read(left, text, depth + 1), _read(right, text, depth + 1))
    raise _misplaced(
        node, text, "only names, numbers, name=value, + and * are understood; write 0.5 * linear for linear / 2"
    )


def _parameter(node: ast.expr, text: str) -> int | float | None:
    """A parameter of a kernel: a number, with a sign or without, or None for one that is left open."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=number):
            value = _number(number, text)
            return -value if isinstance(sign, ast.USub) else value
    return _number(node, text)


def _number(node: ast.expr, text: str) -> int | float:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _misplaced(node, text, "a parameter is a number, such as bandwidth=3")
    if not abs(value) <= LARGEST:
        raise _misplaced(node, text, f"a number is at most {LARGEST:g}")
    return value


def _misplaced(node: ast.expr, text: str, what: str) -> DapError:
    """The error that points at a part of an expression."""
    part = ast.get_source_segment(text, node) or text
    start = len(text.encode()[: node.col_offset].decode(errors="ignore")) + 1
    return DapError(f"Kernel {brief(text)}, character {start}, {brief(part)}: {what}.")
