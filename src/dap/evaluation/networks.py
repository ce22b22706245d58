"""The classifiers that judge a distilled set: ConvNet-N, ResNetAP-10, ResNet-18, or your own.

Shapes and initialisation are those of the hard-label lineage (DC, IDC, MinimaxDiffusion; torchvision for ResNet-18),
where "instance" normalisation means GroupNorm with one channel a group and an affine map.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dap.errors import DapError
from dap.registry import resolve

Norm = Literal["instance", "batch", "none"]


class Network(nn.Module):
    """A body of any shape and a linear classifier on its flattened output.

    Args:
        body: images (n, channels, size, size) -> anything whose first dimension is n.
        dim: D, the number of features an image.
        classes: number of labels.
        per_image: True if no operation mixes the images of a batch, so that a batch may be cut into slices.
    """

    def __init__(self, body: nn.Module, dim: int, classes: int, *, per_image: bool) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(dim, classes)
        self.per_image = per_image

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (n, D) of normalised images (n, channels, size, size)."""
        return self.body(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, channels, size, size)."""
        return self.classifier(self.features(images))


def build(
    name: str, *, channels: int = 3, classes: int, size: int, norm: Norm = "instance", width: int = 128
) -> nn.Module:
    """A freshly initialised classifier; its weights come from torch's global generator.

    Args:
        name: `convnet1` ... `convnet8`, `resnetap10`, `resnet18`, or `file.py:callable` / `package.module:callable`,
            which is called with the keywords below and returns a module from images to logits.
        channels: channels of the images.
        classes: number of labels.
        size: height and width of the images in pixels; decides the stems of the ResNets and the head of a ConvNet.
        norm: "instance", "batch" or "none" (`resnet18` has no form without).
        width: channels of a ConvNet; the ResNets have their own.

    Raises:
        DapError: the name or the norm is unknown, or the images are too small for the network.
    """
    if norm not in get_args(Norm):
        raise DapError(f"Unknown norm {norm!r}. Known: {', '.join(get_args(Norm))}.")
    make = resolve(name, KNOWN, "network")
    network = make(channels=channels, classes=classes, size=size, norm=norm, width=width)
    if not isinstance(network, nn.Module):
        raise DapError(f"The network {name!r} should be a torch.nn.Module, but is a {type(network).__name__}.")
    return network


def convnet(*, depth: int, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """ConvNet-N (Gidaris & Komodakis 2018, as DC uses it): N x [3x3 convolution, norm, ReLU, 2x2 average pooling].

    Grey images of 28 px are padded to 32 px by the first convolution, as DC does. PyTorch's default initialisation.
    """
    padding = 3 if channels == 1 and size == 28 else 1
    side = (size + 2 * padding - 2) >> depth
    if side == 0:
        raise DapError(f"convnet{depth} halves the image {depth} times and needs at least {1 << depth} px, not {size}.")
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [
            nn.Conv2d(width if i else channels, width, 3, padding=1 if i else padding),
            _norm(norm, width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
    return Network(nn.Sequential(*layers), width * side * side, classes, per_image=norm != "batch")


def resnetap10(*, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """ResNetAP-10 (Kim et al. 2022, IDC): one basic block in each of four stages, average pooling instead of strides.

    Stem: 7x7 and pooling by 4 above 128 px, 3x3 and pooling by 2 above 64 px, else 3x3 alone.
    """
    del width
    _at_least(size, 16, "resnetap10")
    kernel, pool = (7, 4) if size > 128 else (3, 2) if size > 64 else (3, 1)
    body = nn.Sequential(
        _conv(channels, 64, kernel, norm),
        _norm(norm, 64),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(pool) if pool > 1 else nn.Identity(),
        _PoolingBlock(64, 64, pool=1, norm=norm),
        _PoolingBlock(64, 128, pool=2, norm=norm),
        _PoolingBlock(128, 256, pool=2, norm=norm),
        _PoolingBlock(256, 512, pool=2, norm=norm),
        nn.AdaptiveAvgPool2d(1),
    )
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            _initialise(module)
    return Network(body, 512, classes, per_image=norm != "batch")


def resnet18(*, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """ResNet-18 (He et al. 2016), torchvision's, with the stem of its image size.

    Stem: 7x7 stride 2 and max-pooling above 128 px, 3x3 and max-pooling above 64 px, else 3x3 alone.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    del width
    _at_least(size, 16, "resnet18")
    if norm == "none":
        raise DapError("resnet18 has no form without normalisation; use norm instance or batch.")
    whole = ResNet(BasicBlock, [2, 2, 2, 2], norm_layer=partial(_norm, norm))
    parts = OrderedDict((name, part) for name, part in whole.named_children() if name != "fc")
    if size <= 128:
        parts["conv1"] = _initialise(nn.Conv2d(channels, 64, 3, padding=1, bias=False))
    elif channels != 3:
        parts["conv1"] = _initialise(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
    if size <= 64:
        del parts["maxpool"]
    return Network(nn.Sequential(parts), 512, classes, per_image=norm != "batch")


KNOWN: dict[str, Callable[..., nn.Module]] = {
    **{f"convnet{depth}": partial(convnet, depth=depth) for depth in range(1, 9)},
    "resnetap10": resnetap10,
    "resnet18": resnet18,
}


class _PoolingBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, pool: int, norm: Norm) -> None:
        super().__init__()
        self.main = nn.Sequential(
            _conv(inputs, outputs, 3, norm),
            _norm(norm, outputs),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(pool) if pool > 1 else nn.Identity(),
            _conv(outputs, outputs, 3, norm),
            _norm(norm, outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(_conv(inputs, outputs, 1, norm), nn.AvgPool2d(pool), _norm(norm, outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


class InstanceNorm(nn.GroupNorm):
    """GroupNorm with one channel a group: w (x - mean) / sqrt(var + eps) + b over each image's pixels.

    On a CPU the gradient is written out here, because torch's own is slow in the channels-last layout.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        return _InstanceNorm.apply(input, self.weight, self.bias, self.eps)  # pyright: ignore[reportReturnType]


class _InstanceNorm(torch.autograd.Function):
    """With xhat = (x - mean) rstd and means over pixels: dx = w rstd (g - mean(g) - xhat mean(g xhat))."""

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
        if torch.is_grad_enabled():  # a second derivative is wanted, which only torch's own operation has
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


def _norm(norm: Norm, channels: int) -> nn.Module:
    return {"instance": InstanceNorm, "batch": nn.BatchNorm2d, "none": nn.Identity}[norm](channels)


def _conv(inputs: int, outputs: int, kernel: int, norm: Norm) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=norm == "none")


def _initialise(conv: nn.Conv2d) -> nn.Conv2d:
    """Normal with std sqrt(2 / (k^2 out_channels)), He et al. 2015 over the fan-out."""
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels)))
    return conv


def _at_least(size: int, smallest: int, name: str) -> None:
    if size < smallest:
        raise DapError(f"{name} needs images of at least {smallest} px, not {size}.")
