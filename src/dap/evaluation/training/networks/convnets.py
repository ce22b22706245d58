"""The two networks that dataset distillation has for itself: ConvNet-N (DC) and ResNetAP-10 (IDC).

Both are built as MinimaxDiffusion trains them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.evaluation.training.networks.layers import Network, Norm, at_least, he_normal, norm_layer


def convnet(*, depth: int, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """ConvNet-N (Gidaris & Komodakis 2018, as DC uses it): N x [3x3 convolution, norm, ReLU, 2x2 average pooling].

    The first convolution pads grey images of 28 px to 32 px, as DC does. The weights start with PyTorch's default
    initialisation.

    Raises:
        DapError: the images are too small to be halved `depth` times.
    """
    padding = 3 if channels == 1 and size == 28 else 1
    side = (size + 2 * padding - 2) >> depth
    if side == 0:
        raise DapError(f"convnet{depth} halves the image {depth} times and needs at least {1 << depth} px, not {size}.")
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [
            nn.Conv2d(width if i else channels, width, 3, padding=1 if i else padding),
            norm_layer(norm, width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
    return Network(nn.Sequential(*layers), nn.Linear(width * side * side, classes))


def resnetap10(*, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """ResNetAP-10 (Kim et al. 2022, IDC): four stages of one basic block each, with average pooling instead of strides.

    The stem depends on the image size. Above 128 px the stem is a 7x7 convolution and pooling by 4. From 65 to 128 px
    the stem is a 3x3 convolution and pooling by 2. Up to 64 px the stem is a 3x3 convolution alone.

    Raises:
        DapError: the images are smaller than 16 px.
    """
    del width
    at_least(size, 16, "resnetap10")
    kernel, pool = (7, 4) if size > 128 else (3, 2) if size > 64 else (3, 1)
    body = nn.Sequential(
        _conv(channels, 64, kernel, norm),
        norm_layer(norm, 64),
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
            he_normal(module)
    return Network(body, nn.Linear(512, classes))


class _PoolingBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, pool: int, norm: Norm) -> None:
        super().__init__()
        self.main = nn.Sequential(
            _conv(inputs, outputs, 3, norm),
            norm_layer(norm, outputs),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(pool) if pool > 1 else nn.Identity(),
            _conv(outputs, outputs, 3, norm),
            norm_layer(norm, outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(_conv(inputs, outputs, 1, norm), nn.AvgPool2d(pool), norm_layer(norm, outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


def _conv(inputs: int, outputs: int, kernel: int, norm: Norm) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=norm == "none")
