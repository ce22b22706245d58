"""Checks for parts that users write: whether their own backbone, kernel, guidance or method keeps its contract.

    from dap.testing import check_kernel
    assert all(finding.level != "wrong" for finding in check_kernel(Mine()))

Each check is independent of the others. A check says in words what it looked at, which number it found and what to do.
The command `dap check NAME` prints the same findings.
"""

from __future__ import annotations

from torch import Tensor

from dap.backbones.base import Backbone
from dap.base.parsing import counted
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
    """Check a backbone: its description, predictions, features, gradients, autoencoder and a short run.

    Args:
        backbone: the backbone to check.
        images: one or more real images of the backbone's classes, (n, 3, h, w) in [0, 1] at the backbone's size.
            Default: three images of Fashion-MNIST. The images matter only for the quality of the autoencoder and of the
            noise prediction.
    """
    return list(_backbone.findings(backbone, images))


def check_kernel(kernel: Kernel) -> list[Finding]:
    """Check a kernel on random points: it is positive semi-definite, its distance is a metric, and its gradient is right."""
    return list(_kernel.findings(kernel))


def check_guidance(guidance: Guidance | Energy, backbone: Backbone | None = None) -> list[Finding]:
    """Check a guidance, or an energy and its descent, in short runs on three images.

    Args:
        guidance: the guidance or energy to check.
        backbone: the backbone of the runs. Default: an exact Gaussian mixture over latents (3, 4, 4). Its features (B, 1, 48)
            take the place of the layer that the guidance names.
    """
    return list(_guidance.findings(guidance, backbone))


def check_method(method: Method) -> list[Finding]:
    """Check a method by tiny sets of two classes of Fashion-MNIST, made on the embedded starter."""
    return list(_method.findings(method))


def summary(name: str, kind: str, findings: list[Finding]) -> str:
    """The last line of `dap check`."""
    wrong, warnings = (sum(f.level == level for f in findings) for level in ("wrong", "warn"))
    verdict = f"{wrong} wrong" if wrong else "keeps its contract"
    return f"{name} ({kind}): {verdict}, {counted(warnings, 'warning')}, {counted(len(findings), 'finding')}."
