"""Findings, and the function `run` that keeps checks independent of each other.

A check is a generator. It yields a `warn` or a `wrong` for everything that is not as it should be. At its end it
returns a sentence. If the check yielded nothing, this sentence becomes an `ok` finding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from dap.base.errors import DapError

Level = Literal["ok", "warn", "wrong"]
Verdict = tuple[Level, str]
Verdicts = Generator[Verdict, None, str]
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: the name of the check.
        level: "ok", "warn" (it works, but is probably not what was meant) or "wrong" (it breaks the contract).
        text: what was looked at, the number that was found and, unless the level is "ok", what to do.
    """

    check: str
    level: Level
    text: str

    def __str__(self) -> str:
        return f"{'WRONG' if self.level == 'wrong' else self.level:5}  {self.check}: {self.text}"


def warn(text: str) -> Verdict:
    return "warn", text


def wrong(text: str) -> Verdict:
    return "wrong", text


def run(checks: Mapping[str, Callable[[Subject], Verdicts]], subject: Subject) -> Iterator[Finding]:
    """Run every check in turn. If a check raises, the error becomes a "wrong" finding, and the next check runs all the same."""
    for name, check in checks.items():
        found, verdicts = 0, check(subject)
        while True:
            try:
                level, text = next(verdicts)
            except StopIteration as done:
                if not found:
                    yield Finding(name, "ok", done.value)
                break
            except Exception as error:
                yield Finding(name, "wrong", f"the check was stopped by {said(error)}")
                break
            found += 1
            yield Finding(name, level, text)


def said(error: BaseException) -> str:
    """An exception in one line without terminal colours: the sentence of a `DapError`, or the kind and text of another."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    text = text if len(text) <= 400 else text[:400] + " …"
    return text if isinstance(error, DapError) else f"{type(error).__name__}: {text}"


def kind_of(x: object) -> str:
    """A description such as "(3, 4, 8, 8) float32" of a tensor. For any other object, the name of its type."""
    if not isinstance(x, Tensor):
        return f"a {type(x).__name__}"
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def difference(x: Tensor, y: Tensor) -> float:
    """The relative difference ‖x − y‖ / ‖y‖ in float64. It is 0 for equal tensors."""
    x, y = x.detach().double(), y.detach().double()
    gap = (x - y).norm().item()
    return 0.0 if gap == 0 else gap / max(y.norm().item(), 1e-30)


def draw(shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal float32 numbers from a seed. The numbers are the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def slope(function: Callable[[Tensor], Tensor], x: Tensor, h: float = 2e-3) -> tuple[float, float]:
    """A directional derivative of a function at x (B, …), by autograd and by central differences.

    The direction d is random, and q ≈ J d is the difference quotient along d. The outputs are weighted by q/‖q‖, so
    that one number stands for all outputs. Autograd gives the number ⟨Jᵀ q/‖q‖, d⟩, and the quotient gives the number
    ‖q‖.

    Returns:
        The number by autograd, and the number by the quotient. The first is 0 if no graph leads from the output to x.
    """
    direction = draw(tuple(x.shape), 77, x.device).to(x)
    x = x.detach()
    with torch.no_grad():
        quotient = (function(x + h * direction).double() - function(x - h * direction).double()) / (2 * h)
    length = quotient.norm().item()
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        output = function(leaf)
        if not output.requires_grad:
            return 0.0, length
        along = (output.double() * quotient / max(length, 1e-30)).sum()
        (gradient,) = torch.autograd.grad(along, leaf, allow_unused=True)
    return 0.0 if gradient is None else (gradient.double() * direction.double()).sum().item(), length
