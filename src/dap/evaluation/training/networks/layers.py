"""Parts of the networks: the class `Network`, the normalisation layers, and an instance norm that is fast on a CPU."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dap.base.errors import DapError

Norm = Literal["instance", "batch", "none"]


class Network(nn.Module):
    """A body and a linear classifier on the flattened output of the body.

    Args:
        body: maps images (n, channels, size, size) to a tensor whose first dimension is n, with D values an image.
        classifier: maps features (n, D) to logits (n, classes).

    Attributes:
        per_image: True if no operation mixes the images of a batch. Then a batch may be cut into slices. BatchNorm
            mixes the images. Dropout and stochastic depth do not, because they are drawn for every image on its own.
    """

    def __init__(self, body: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.classifier = classifier
        self.per_image = not any(_mixes(part) for part in body.modules())

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (n, D) of normalised images (n, channels, size, size): the input of the classifier."""
        return self.body(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, channels, size, size)."""
        return self.classifier(self.features(images))


def n_parameters(network: nn.Module) -> int:
    """How many trainable numbers a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A new normalisation layer for this number of channels."""
    return {"instance": InstanceNorm, "batch": nn.BatchNorm2d, "none": nn.Identity}[norm](channels)


def he_normal(conv: nn.Conv2d) -> nn.Conv2d:
    """Draw the weights anew from a normal distribution with std sqrt(2 / (k^2 out_channels)); k is the kernel size.

    This is the initialisation of He et al. 2015 over the fan-out. The convolution is changed in place and returned.
    """
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels)))
    return conv


def at_least(size: int, smallest: int, name: str) -> None:
    """Raise DapError if images of this size are too small for the network."""
    if size < smallest:
        raise DapError(f"{name} needs images of at least {smallest} px, not {size}.")


class InstanceNorm(nn.GroupNorm):
    """Instance norm w (x - mean) / sqrt(var + eps) + b: GroupNorm with one channel a group.

    Mean and variance are those of the pixels of each image and channel. On a CPU the gradient is written out here,
    because torch's own gradient is slow in the channels-last layout. This saves 12 to 24 % of a training step on one
    thread (docs/performance.md; `benchmarks/norm.py` measures the saving).

    Raises:
        DapError: the images have a single pixel.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2] * input.shape[3] == 1:
            raise DapError("instance normalisation of a single pixel erases it; use larger images or norm batch.")
        if input.device.type != "cpu":
            return super().forward(input)
        return _InstanceNorm.apply(input, self.weight, self.bias, self.eps)  # pyright: ignore[reportReturnType]


class _InstanceNorm(torch.autograd.Function):
    """The instance norm with its gradient dx = w rstd (g - mean(g) - xhat mean(g xhat)).

    Here xhat = (x - mean) rstd, g is the gradient of the output, and the means are over pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        n, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, h * w, c, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # only torch's own operation has a second derivative
            y = F.group_norm(x, x.shape[1], weight, bias, ctx.eps)
            wanted = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None
        pixels = x.shape[2] * x.shape[3]
        scratch = g * x
        g_mean = g.mean((2, 3))
        slope = rstd * (scratch.mean((2, 3)) - mean * g_mean)  # mean(g xhat)
        of_g = weight * rstd
        of_x = -of_g * rstd * slope
        constant = -of_g * g_mean - of_x * mean
        torch.addcmul(_over_pixels(constant), x, _over_pixels(of_x), out=scratch)
        return scratch.addcmul_(g, _over_pixels(of_g)), slope.sum(0) * pixels, g_mean.sum(0) * pixels, None


def _over_pixels(values: Tensor) -> Tensor:
    return values[:, :, None, None]


def _mixes(part: nn.Module) -> bool:
    """Whether a module is a batch norm of torch, or another batch norm that keeps a buffer `running_var`."""
    return isinstance(part, _BatchNorm) or any(name == "running_var" for name, _ in part.named_buffers(recurse=False))
