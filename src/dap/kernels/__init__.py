r"""Kernels and the distance they induce.

A positive semi-definite kernel K induces (DAP, Section 3)

    D_K(x, y) = \sqrt{K(x, x) + K(y, y) - 2 K(x, y)},

a metric on the image of its feature map (Theorem 3.1). Every kernel is a callable `k(x, y) -> (n, m)` with a method `diag(x)`.
Kernels are combined with `+` and `*` and scaled with a positive number. The expansion above loses all digits when x is close to
y. So every built-in kernel has its own `squared_distance`, in a form that does not subtract large numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dap.base.devices.precision import precise
from dap.base.errors import DapError
from dap.base.parsing import brief
from dap.base.registry import Recorded, resolve
from dap.expressions import LARGEST, Named, Part, read
from dap.kernels.pairs import distances

EPSILON = 1e-12
"""A number that is added under the root of `Kernel.distance`, so that the gradient is finite at x = y."""


def _check_positive(number: float, what: str) -> None:
    if not 1 / LARGEST <= number <= LARGEST:
        raise DapError(f"{what} must be positive, from {1 / LARGEST:g} to {LARGEST:g}, not {number}.")


def euclidean(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """‖x_i − y_j‖, computed as the norm of a difference. Its gradient at x_i = y_j is 0."""
    return distances(x, y)


class Kernel(Recorded, ABC):
    """A positive semi-definite function of two vectors. A subclass must have `__call__` and `diag`."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """The matrix K(x_i, y_j)."""

    @abstractmethod
    def diag(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The diagonal K(x_i, x_i) without the matrix."""

    def squared_distance(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """D_K(x_i, y_j)². The default expands it in float64. Override it if a form is known that subtracts no large numbers."""
        x, y = precise(x), precise(y)
        return (self.diag(x)[:, None] + self.diag(y)[None] - 2 * self(x, y)).clamp_min(0)

    def fit(self, features: Float[Tensor, "n d"]) -> Kernel:
        """This kernel with open parameters, such as a bandwidth, set from features. Default: the kernel itself."""
        return self

    def distance(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """D_K(x_i, y_j), in float32 or float64. It is differentiable everywhere, even at x_i = y_j."""
        x, y = (v if v.dtype == torch.float64 else v.float() for v in (x, y))
        return (self.squared_distance(x, y) + EPSILON).sqrt().to(x.dtype)

    def __add__(self, other: Kernel) -> Kernel:
        return Sum(self, other)

    def __mul__(self, other: Kernel | float) -> Kernel:
        return Product(self, other) if isinstance(other, Kernel) else Scaled(self, float(other))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Linear(Kernel):
    """K(x, y) = x·y, hence D_K(x, y) = ‖x − y‖. The paper's choice."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y.T

    def diag(self, x: Tensor) -> Tensor:
        return x.square().sum(1)

    def squared_distance(self, x: Tensor, y: Tensor) -> Tensor:
        return euclidean(x, y).square()


@dataclass(frozen=True)
class Polynomial(Kernel):
    """K(x, y) = (x·y / d + offset)^degree for vectors of d entries."""

    degree: int = 2
    offset: float = 1.0

    def __post_init__(self) -> None:
        if not (1 <= self.degree <= 100 and self.degree == int(self.degree) and 0 <= self.offset <= LARGEST):
            given = f"{self.degree} and {self.offset}"
            raise DapError(
                f"A polynomial kernel needs a whole degree >= 1 and offset >= 0, not {given}. "
                f"The degree is at most 100, and the offset {LARGEST:g}."
            )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + self.offset) ** self.degree

    def diag(self, x: Tensor) -> Tensor:
        return (x.square().mean(1) + self.offset) ** self.degree

    def squared_distance(self, x: Tensor, y: Tensor) -> Tensor:
        first = euclidean(x, y).square() / x.shape[1]
        kxx, kyy = (v.square().mean(1) + self.offset for v in (x, y))
        total, txx, tyy = first, kxx, kyy
        for _ in range(self.degree - 1):
            total = _product_distance(total, txx, tyy, first, kxx, kyy)
            txx, tyy = txx * kxx, tyy * kyy
        return total


@dataclass(frozen=True)
class Cosine(Kernel):
    """K(x, y) = x·y / (‖x‖ ‖y‖)."""

    def _unit(self, x: Tensor) -> Tensor:
        return x / (x.square().sum(1, keepdim=True) + EPSILON).sqrt()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self._unit(x) @ self._unit(y).T

    def diag(self, x: Tensor) -> Tensor:
        return self._unit(x).square().sum(1)

    def squared_distance(self, x: Tensor, y: Tensor) -> Tensor:
        return euclidean(self._unit(x), self._unit(y)).square()


@dataclass(frozen=True)
class _Stationary(Kernel):
    """K(x, y) = exp(−h(r)) with r = ‖x − y‖_p / bandwidth. If the bandwidth is open, `fit` sets it to the median distance."""

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.bandwidth is not None:
            _check_positive(self.bandwidth, f"The bandwidth of {type(self).__name__}")

    @property
    def norm(self) -> float:
        return 2.0

    @abstractmethod
    def exponent(self, r: Tensor) -> Tensor:
        """h(r) >= 0 for r >= 0."""

    def _r(self, x: Tensor, y: Tensor) -> Tensor:
        if self.bandwidth is None:
            name = type(self).__name__
            raise DapError(f"{name} has no bandwidth yet: give bandwidth=..., or call fit(features) for the median.")
        return distances(x, y, self.norm) / self.bandwidth

    def fit(self, features: Tensor) -> Kernel:
        if self.bandwidth is not None:
            return self
        x = features.detach().float()
        median = torch.pdist(x, p=self.norm).median().item() if len(x) > 1 else 0.0
        return replace(self, bandwidth=median if median > 0 else 1.0)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (-self.exponent(self._r(x, y))).exp()

    def diag(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x))

    def squared_distance(self, x: Tensor, y: Tensor) -> Tensor:
        return -2 * torch.expm1(-self.exponent(self._r(x, y)))


@dataclass(frozen=True)
class RBF(_Stationary):
    """K(x, y) = exp(−‖x − y‖² / (2 bandwidth²)); an open bandwidth is set by the median heuristic."""

    def exponent(self, r: Tensor) -> Tensor:
        return r.square() / 2


@dataclass(frozen=True)
class Laplacian(_Stationary):
    """K(x, y) = exp(−‖x − y‖₁ / bandwidth)."""

    @property
    def norm(self) -> float:
        return 1.0

    def exponent(self, r: Tensor) -> Tensor:
        return r


@dataclass(frozen=True)
class RationalQuadratic(_Stationary):
    """K(x, y) = (1 + ‖x − y‖² / (2 alpha bandwidth²))^(−alpha): a scale mixture of RBF kernels."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self.alpha, "alpha of a rational quadratic kernel")

    def exponent(self, r: Tensor) -> Tensor:
        return self.alpha * torch.log1p(r.square() / (2 * self.alpha))


@dataclass(frozen=True)
class Sum(Kernel):
    """K = a + b. The squared distances are added too."""

    a: Kernel
    b: Kernel

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x, y) + self.b(x, y)

    def diag(self, x: Tensor) -> Tensor:
        return self.a.diag(x) + self.b.diag(x)

    def squared_distance(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a.squared_distance(x, y) + self.b.squared_distance(x, y)

    def fit(self, features: Tensor) -> Kernel:
        return Sum(self.a.fit(features), self.b.fit(features))


@dataclass(frozen=True)
class Product(Kernel):
    """K = a · b (positive semi-definite by the Schur product theorem)."""

    a: Kernel
    b: Kernel

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x, y) * self.b(x, y)

    def diag(self, x: Tensor) -> Tensor:
        return self.a.diag(x) * self.b.diag(x)

    def squared_distance(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.a, self.b
        return _product_distance(
            a.squared_distance(x, y), a.diag(x), a.diag(y), b.squared_distance(x, y), b.diag(x), b.diag(y)
        )

    def fit(self, features: Tensor) -> Kernel:
        return Product(self.a.fit(features), self.b.fit(features))


@dataclass(frozen=True)
class Scaled(Kernel):
    """K = factor · a with factor > 0. The distance is multiplied by the root of the factor."""

    a: Kernel
    factor: float

    def __post_init__(self) -> None:
        if not 1 / LARGEST <= self.factor <= LARGEST:
            wanted = f"a positive number, from {1 / LARGEST:g} to {LARGEST:g}"
            raise DapError(f"A kernel can only be scaled by {wanted}, not by {self.factor}.")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.factor * self.a(x, y)

    def diag(self, x: Tensor) -> Tensor:
        return self.factor * self.a.diag(x)

    def squared_distance(self, x: Tensor, y: Tensor) -> Tensor:
        return self.factor * self.a.squared_distance(x, y)

    def fit(self, features: Tensor) -> Kernel:
        return Scaled(self.a.fit(features), self.factor)


def _product_distance(da: Tensor, axx: Tensor, ayy: Tensor, db: Tensor, bxx: Tensor, byy: Tensor) -> Tensor:
    """D² of a product of two kernels, from the D² and the diagonals of both.

    Put a(x, y) = (a(x, x) + a(y, y) − D_a²)/2, and b in the same way, into the expansion of the product. It becomes
    ½ [(a_xx − a_yy)(b_xx − b_yy) + (a_xx + a_yy) D_b² + (b_xx + b_yy) D_a² − D_a² D_b²], in which all terms are small.
    """
    asum, adiff = axx[:, None] + ayy[None], axx[:, None] - ayy[None]
    bsum, bdiff = bxx[:, None] + byy[None], bxx[:, None] - byy[None]
    return 0.5 * (adiff * bdiff + asum * db + bsum * da - da * db).clamp_min(0)


KERNELS: Mapping[str, type[Kernel]] = {
    "linear": Linear,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "rbf": RBF,
    "laplacian": Laplacian,
    "rational-quadratic": RationalQuadratic,
}


def parse(text: str) -> Kernel:
    """A kernel from its name or an expression, e.g. `linear`, `rbf(bandwidth=3)`, `linear + 0.5 * rbf`, `file.py:Mine`.

    Raises:
        DapError: a kernel or parameter is unknown, or the expression holds anything else.
    """
    if text in KERNELS or ":" in text:
        return _make(text, {})
    kernel = _built(read(text), text)
    if not isinstance(kernel, Kernel):
        raise DapError(f"Kernel {brief(text)} is a number; write for example '{kernel:g} * linear'.")
    return kernel


def _built(part: Part, text: str) -> Kernel | float:
    """The kernel or the number that a part of an expression stands for."""
    if isinstance(part, (int, float)):
        return float(part)
    if isinstance(part, Named):
        return _make(part.name, part.values)
    a, b = _built(part.a, text), _built(part.b, text)
    if part.sign == "*" and isinstance(b, float):
        a, b = b, a
    if not isinstance(b, Kernel) or (part.sign == "+" and not isinstance(a, Kernel)):
        raise DapError(f"Kernel {brief(text)}: only names, numbers, name=value, + and * are understood.")
    return b * a if not isinstance(a, Kernel) else a + b if part.sign == "+" else a * b


def _make(name: str, values: Mapping[str, object]) -> Kernel:
    kind = resolve(name, KERNELS, "kernel")
    try:
        kernel = kind(**values)
    except TypeError as error:
        fields = ", ".join(getattr(kind, "__dataclass_fields__", {})) or "none"
        raise DapError(f"Kernel {brief(name)} takes these parameters: {fields}.") from error
    if not isinstance(kernel, Kernel):
        raise DapError(f"{name!r} is not a Kernel; subclass dap.kernels.Kernel.")
    return kernel
