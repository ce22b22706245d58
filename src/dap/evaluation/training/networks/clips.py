"""Networks of clips. They see a clip of F frames as an image of 3 F channels, first all frames of red, then green, then blue.

So every step that moves or mixes images does the same to all frames of a clip, and any network of images can be trained on
clips too: its first convolution sees all frames at once (early fusion).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dap.base.errors import DapError
from dap.evaluation.training.networks.layers import Network, Norm, at_least

COLOURS = 3


class ClipNetwork(Network):
    """A body of three-dimensional convolutions, and a linear classifier on what it gives.

    Args:
        body: maps clips (n, 3, F, size, size) to a tensor whose first dimension is n, with D values a clip.
        classifier: maps features (n, D) to logits (n, classes).
    """

    def features(self, images: Tensor) -> Tensor:
        return self.body(unfolded(images)).flatten(1)


class _OverTime(ClipNetwork):
    """The logits are the largest ones over the time steps that the body leaves; features are the mean over them."""

    def __init__(self, body: nn.Module, classifier: nn.Linear) -> None:
        super().__init__(body, classifier)
        self.dropout = nn.Dropout(0.5)

    def features(self, images: Tensor) -> Tensor:
        return self._steps(images).mean(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self._steps(images))).amax(1)

    def _steps(self, images: Tensor) -> Tensor:
        """Features of each time step, (n, steps, width)."""
        return self.body(unfolded(images)).flatten(2).transpose(1, 2)


def convnet3d(*, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """ConvNet3D of Wang et al. 2024 (Dancing with Still Images, CVPR): three layers of 3x7x7 convolutions of stride (1, 2, 2).

    Each is followed by a ReLU and max-pooling, which leaves the time alone after the first one; then average-pooling over two
    time steps, dropout and a linear classifier of each time step, of which the largest logits count. The first layer has 64
    channels. The paper trains it without normalisation (`norm: none`) on 16 frames of 112 px.

    Raises:
        DapError: the clips have fewer than 8 frames, or are smaller than 64 px or larger than 128 px.
    """
    name = "convnet3d"
    _frames(channels, name, least=8)
    at_least(size, 64, name)
    if size > 128:
        raise DapError(f"{name} is made for clips of at most 128 px, not {size}; r3d18 takes larger ones.")
    layers: list[nn.Module] = []
    inputs, side = COLOURS, size
    for depth in range(3):
        outputs = 64 if depth == 0 else width
        pool = (1, 2, 2) if depth == 0 else (2, 2, 2)
        layers += [
            nn.Conv3d(inputs, outputs, (3, 7, 7), (1, 2, 2), (1, 3, 3)),
            _norm(norm, outputs),
            nn.ReLU(inplace=True),
        ]
        layers += [nn.MaxPool3d(pool)]
        inputs, side = outputs, ((side + 1) // 2) // 2
    layers += [nn.AvgPool3d((2, side, side), stride=1)]
    return _OverTime(nn.Sequential(*layers), nn.Linear(width, classes))


def small_convnet3d(*, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """A small network of our own for clips of 16 to 64 px: DC's ConvNet-3 with 3x3x3 convolutions.

    Three times [convolution, norm, ReLU, average-pooling]; the first pooling leaves the time alone.

    Raises:
        DapError: the clips are smaller than 8 px.
    """
    frames = _frames(channels, "small_convnet3d")
    at_least(size, 8, "small_convnet3d")
    layers: list[nn.Module] = []
    inputs, side = COLOURS, size
    for depth in range(3):
        time = min(frames, 1 if depth == 0 else 2)
        layers += [nn.Conv3d(inputs, width, 3, padding=1), _norm(norm, width), nn.ReLU(inplace=True)]
        layers += [nn.AvgPool3d((time, 2, 2))]
        inputs, side, frames = width, side // 2, frames // time
    return ClipNetwork(nn.Sequential(*layers), nn.Linear(width * frames * side * side, classes))


def r3d18(*, channels: int, classes: int, size: int, norm: Norm, width: int) -> Network:
    """R3D-18 (Tran et al. 2018), torchvision's `r3d_18`, untrained: a ResNet-18 whose convolutions are 3x3x3.

    Raises:
        DapError: the clips are smaller than 16 px, or `norm` is none.
    """
    from torchvision.models import video

    del width
    _frames(channels, "r3d18")
    at_least(size, 16, "r3d18")
    if norm == "none":
        raise DapError("r3d18 has no form without normalisation; use norm instance or batch.")
    model = video.r3d_18(weights=None, num_classes=classes)
    if norm == "instance":
        for path, part in list(model.named_modules()):
            if isinstance(part, _BatchNorm):
                model.set_submodule(path, nn.GroupNorm(part.num_features, part.num_features, eps=part.eps))
    classifier = model.fc
    model.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return ClipNetwork(model, classifier)


def unfolded(images: Tensor) -> Tensor:
    """Clips (n, 3, F, h, w) of images (n, 3 F, h, w)."""
    return images.unflatten(1, (COLOURS, -1))


def _frames(channels: int, name: str, least: int = 2) -> int:
    """The number of frames of clips with so many channels."""
    frames = channels // COLOURS
    if channels % COLOURS or frames < least:
        has = "images" if channels <= COLOURS else f"clips of {frames} frames"
        raise DapError(
            f"{name} is a network of clips of at least {least} frames, and these are {has}; distil with --frames N, or take "
            "another network."
        )
    return frames


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    return nn.GroupNorm(channels, channels) if norm == "instance" else nn.Identity()
