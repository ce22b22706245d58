"""Contracts for what users write: whether a backbone, kernel, guidance or method of their own keeps the library's promises.

    from dap.testing import check_kernel
    assert all(finding.level != "wrong" for finding in check_kernel(Mine()))

Each check stands alone and says in words what was looked at, the number seen and what to do. `dap check NAME` prints the same.
"""

from __future__ import annotations

from torch import Tensor

from dap.backbones.base import Backbone
from dap.guidance.base import Energy, Guidance
from dap.kernels import Kernel
from dap.methods.base import Method
from dap.testing import backbone as _backbone
from dap.testing import guidance as _guidance
from dap.testing import kernel as _kernel
from dap.testing import method as _method
from dap.testing.findings import Finding
from dap.testing.names import check

__all__ = ["Finding", "check", "check_backbone", "check_guidance", "check_kernel", "check_method", "summary"]


def check_backbone(backbone: Backbone, images: Tensor | None = None) -> list[Finding]:
    """The findings on a backbone: what it says of itself, predictions, features, gradients, autoencoder, a short run.

    Args:
        backbone: what is checked.
        images: at least one real image of its classes, (n, 3, h, w) in [0, 1] at its size; default: three of
            Fashion-MNIST. They decide only how well the autoencoder and the noise prediction do.
    """
    return list(_backbone.findings(backbone, images))


def check_kernel(kernel: Kernel) -> list[Finding]:
    """The findings on a kernel, on random points: positive semi-definite, a metric, a gradient that is right."""
    return list(_kernel.findings(kernel))


def check_guidance(guidance: Guidance | Energy, backbone: Backbone | None = None) -> list[Finding]:
    """The findings on a guidance, or on an energy and its descent, in short runs on three images.

    Args:
        guidance: what is checked.
        backbone: what it is run on; default: an exact Gaussian mixture over latents (3, 4, 4), whose features (B, 1, 48)
            stand in for whatever layer the guidance names.
    """
    return list(_guidance.findings(guidance, backbone))


def check_method(method: Method) -> list[Finding]:
    """The findings on a method, from tiny sets of two classes of Fashion-MNIST on the embedded starter."""
    return list(_method.findings(method))


def summary(name: str, kind: str, findings: list[Finding]) -> str:
    """The last line of `dap check`."""
    wrong, warnings = (sum(f.level == level for f in findings) for level in ("wrong", "warn"))
    verdict = f"{wrong} wrong" if wrong else "keeps its contract"
    return f"{name} ({kind}): {verdict}, {warnings} warnings, {len(findings)} findings."
