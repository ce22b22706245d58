"""The steps of a transform. Each step is a set of numbers and changes a whole batch at once.

A random step works in two parts. `draw` gives the parameters of every image. `apply` depends on images and parameters
alone, so the parameters can be stored and the step repeated. Parameters are drawn on the generator's device: a CPU
generator gives the same augmentation on every device. No image depends on the other images of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.base.fields import Chosen, Divisor, Number, Pixels, Share
from dap.evaluation.training.augment import OPERATIONS, Operation, dsa

Drawn = Mapping[str, Tensor]
"""Parameters of one step for one batch."""

Part = Annotated[float, Field(gt=0, le=1000)]
Pair = tuple[Part, Part]
Spread = Annotated[float, Field(ge=0, le=1000)]

TRIES = 10  # tries of a random crop; if none fits, the largest central crop is taken. torchvision has 10 too


class Closed(Chosen, frozen=True):
    """A pydantic model that refuses unknown fields and cannot be changed. The text below a field explains it."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Step(Closed, frozen=True):
    """One transform of a batch; this one changes nothing."""

    random: ClassVar[bool] = False
    """Whether `draw` draws anything. The steps before the first random step can be computed once for all epochs."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """Parameters for n images of this height and width, one row an image; {} for a step that is not random."""
        del n, height, width, generator
        return {}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Float images (n, c, h, w) -> (n, c, *size_after(h, w)), on the same device and differentiable."""
        del drawn
        return images

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the images that `apply` returns.

        Raises:
            DapError: the step cannot be applied to images of this size.
        """
        return height, width


class Resize(Step, frozen=True):
    """Scale the shorter side to `side`, round the longer side down, as torchvision's Resize: bilinear, antialiased."""

    op: Literal["resize"] = "resize"
    side: Pixels
    """Length of the shorter side afterwards, in pixels."""

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        size = self.size_after(*images.shape[2:])
        return images if images.shape[2:] == size else F.interpolate(images, size, mode="bilinear", antialias=True)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        shorter = min(height, width)
        return int(self.side * height / shorter), int(self.side * width / shorter)


class CenterCrop(Step, frozen=True):
    """Cut out the square in the middle of the image."""

    op: Literal["center_crop"] = "center_crop"
    size: Pixels
    """Height and width of the square, in pixels."""

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        height, width = images.shape[2:]
        self.size_after(height, width)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return images[:, :, top : top + self.size, left : left + self.size]

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        if min(height, width) < self.size:
            raise DapError(f"center_crop of {self.size} px needs larger images than {height} x {width}; resize first.")
        return self.size, self.size


class Tiles(Step, frozen=True):
    """Cut images into factor x factor tiles and permute the tiles. Pixels beyond a multiple of `factor` are dropped."""

    random: ClassVar[bool] = True
    op: Literal["tiles"] = "tiles"
    factor: Annotated[int, Field(ge=1, le=256)]
    """How many tiles a side has."""
    order: Literal["lines", "free"] = "lines"
    """"lines": permute whole columns of tiles, then whole rows, as RDED's code does; factor 2 has 4 arrangements.
    "free": any permutation of the tiles; factor 2 has 24."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """`source` (n, factor^2): the number of the tile that comes to each place; tiles are counted row by row."""
        k = self.factor
        if self.order == "free":
            return {"source": _permutations(n, k * k, generator)}
        columns, rows = _permutations(n, k, generator), _permutations(n, k, generator)
        return {"source": (rows[:, :, None] * k + columns[:, None, :]).flatten(1)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        n, c = images.shape[:2]
        k, (height, width) = self.factor, self.size_after(*images.shape[2:])
        tiles = images[:, :, :height, :width].reshape(n, c, k, height // k, k, width // k)
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        moved = tiles[torch.arange(n, device=images.device)[:, None], drawn["source"].to(images.device)]
        return moved.unflatten(1, (k, k)).permute(0, 3, 1, 4, 2, 5).reshape(n, c, height, width)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        if min(height, width) < self.factor:
            raise DapError(f"tiles of factor {self.factor} need larger images than {height} x {width}.")
        return height - height % self.factor, width - width % self.factor


class RandomResizedCrop(Step, frozen=True):
    """Scale a random rectangle of the image to a square, as torchvision's RandomResizedCrop: bilinear, antialiased."""

    random: ClassVar[bool] = True
    op: Literal["random_resized_crop"] = "random_resized_crop"
    size: Pixels
    """Height and width of the square, in pixels."""
    scale: Pair
    """Smallest and largest area of the rectangle, as a part of the image's area."""
    ratio: Pair = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the rectangle; the logarithm of the ratio is uniform."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{name} should be the smaller number and the larger, not {low}, {high}")
        return self

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """`box` (n, 4), int64: top, left, height and width of each rectangle."""
        low, high = self.ratio
        area = height * width * between(*self.scale, (n, TRIES), generator)
        ratio = between(math.log(low), math.log(high), (n, TRIES), generator).exp()
        where = between(0, 1, (2, n), generator)
        shape = width / height
        largest = (round(width / low) if shape < low else height, round(height * high) if shape > high else width)
        last = area.new_tensor(largest).expand(n, 1, 2)
        tries = torch.cat([torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2).round(), last], 1)
        limits = area.new_tensor([height, width])
        fits = ((tries > 0) & (tries <= limits)).all(2)
        fits[:, -1] = True
        first = fits.int().argmax(1)
        sides = tries[torch.arange(n, device=first.device), first]
        room = limits - sides
        corner = torch.where((first == TRIES)[:, None], room // 2, (where.T * (room + 1)).floor())
        return {"box": torch.cat([corner, sides], 1).long()}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        top, left, height, width = drawn["box"].to(images.device, torch.int32).unbind(1)
        rows = _resampling(self.size, images.shape[2], top, height).to(images.dtype)
        columns = _resampling(self.size, images.shape[3], left, width).to(images.dtype)
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 is too coarse for grey values
            return torch.einsum("noh,nchw,npw->ncop", rows, images, columns)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size


class Flip(Step, frozen=True):
    """Mirror left and right."""

    random: ClassVar[bool] = True
    op: Literal["flip"] = "flip"
    p: Share = 0.5
    """Probability for each image."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """`flipped` (n,), bool: whether each image is mirrored."""
        return {"flipped": between(0, 1, (n,), generator) < self.p}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        return torch.where(drawn["flipped"].to(images.device)[:, None, None, None], images.flip(3), images)


class ColorJitter(Step, frozen=True):
    """Change brightness, contrast and saturation of each image in its own order, as IDC and MinimaxDiffusion do.

    Each change is x <- centre + factor (x - centre). Centres: black, the mean of the grey image, and the grey image.
    """

    random: ClassVar[bool] = True
    op: Literal["color_jitter"] = "color_jitter"
    brightness: Spread
    """Strength s: the factor is uniform in [1 - s, 1 + s]."""
    contrast: Spread
    """Strength, as for `brightness`."""
    saturation: Spread
    """Strength, as for `brightness`. Images of one channel do not change."""
    luma: tuple[Number, Number, Number] = (0.299, 0.587, 0.114)
    """Weights of red, green and blue in the grey image. torchvision has 0.2989 for red."""
    clamp: bool = False
    """Clamp to [0, 1] after each change, as torchvision does. IDC's code, and so the published results, do not."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """`factors` (n, 3) of brightness, contrast and saturation, and `order` (n, 3), a permutation of 0, 1, 2."""
        strength = torch.tensor([self.brightness, self.contrast, self.saturation], device=generator.device)
        factors = 1 + strength * between(-1, 1, (n, 3), generator)
        return {"factors": factors.float(), "order": _permutations(n, 3, generator)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        channels = images.shape[1]
        if channels not in (1, 3):
            raise DapError(f"color_jitter needs images of 1 or 3 channels, not {channels}.")
        luma = images.new_tensor(self.luma if channels == 3 else [1.0]).view(1, -1, 1, 1)
        order = drawn["order"].to(images.device)
        factors = drawn["factors"].to(images).gather(1, order)
        for which, factor in zip(order.T[:, :, None, None, None], factors.T[:, :, None, None, None], strict=True):
            grey = (images * luma).sum(1, keepdim=True)
            around = torch.where(which == 1, grey.mean((2, 3), keepdim=True), torch.where(which == 2, grey, 0.0))
            images = around + factor * (images - around)
            images = images.clamp(0, 1) if self.clamp else images
        return images


class Lighting(Step, frozen=True):
    """Add a random colour along the principal axes of ImageNet's pixels (Krizhevsky et al. 2012).

    Every pixel moves by sum_k alpha_k eigenvalues[k] eigenvectors[:, k]. Each image has its own alpha_k, which is
    normal.
    """

    random: ClassVar[bool] = True
    op: Literal["lighting"] = "lighting"
    std: Spread
    """Standard deviation of alpha."""
    eigenvalues: tuple[Number, ...] = (0.2175, 0.0188, 0.0045)
    """One for each channel."""
    eigenvectors: tuple[tuple[Number, ...], ...] = (
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    )
    """One row for each channel, one column for each axis."""

    @model_validator(mode="after")
    def _square(self) -> Self:
        if {len(self.eigenvectors), *map(len, self.eigenvectors)} != {len(self.eigenvalues)}:
            raise ValueError(f"eigenvectors should be {len(self.eigenvalues)} rows as long as eigenvalues")
        return self

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """`alpha` (n, channels), normal with standard deviation `std`."""
        shape = (n, len(self.eigenvalues))
        return {"alpha": torch.randn(shape, generator=generator, device=generator.device) * self.std}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        if images.shape[1] != len(self.eigenvalues):
            raise DapError(f"lighting has {len(self.eigenvalues)} eigenvalues, but images {images.shape[1]} channels.")
        axes = torch.tensor(self.eigenvectors) * torch.tensor(self.eigenvalues)
        shift = (drawn["alpha"].cpu()[:, None] * axes).sum(2)  # on the CPU, so every device gets the same shift
        return images + shift.to(images)[:, :, None, None]


class Normalize(Step, frozen=True):
    """(x - mean) / std."""

    op: Literal["normalize"] = "normalize"
    mean: tuple[Number, ...]
    """One for each channel, or one for all; for clips one for each colour."""
    std: tuple[Divisor, ...]
    """One for each channel, or one for all; as many as `mean`."""

    @model_validator(mode="after")
    def _as_long(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        return self

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        if images.shape[1] % len(self.mean):
            raise DapError(f"normalize has {len(self.mean)} means, but the images have {images.shape[1]} channels.")
        return (images - self._of(images, self.mean)) / self._of(images, self.std)

    def undo(self, images: Tensor) -> Tensor:
        """The inverse of `apply`."""
        return images * self._of(images, self.std) + self._of(images, self.mean)

    def _of(self, images: Tensor, values: tuple[float, ...]) -> Tensor:
        # A clip has all its frames of a colour one after the other, see `networks.clips`.
        return images.new_tensor(values).repeat_interleave(images.shape[1] // len(values)).view(1, -1, 1, 1)


class Dsa(Step, frozen=True):
    """Differentiable siamese augmentation of normalised images; see `augment.dsa`. Each batch gets one operation."""

    random: ClassVar[bool] = True
    op: Literal["dsa"] = "dsa"
    operations: Annotated[tuple[Operation, ...], Field(min_length=1)] = OPERATIONS
    """The operations to draw from."""

    def draw(self, n: int, height: int, width: int, generator: Generator) -> dict[str, Tensor]:
        """`seed` (1,), int64, of the whole batch. The batch must not be cut into slices before `apply`."""
        return {"seed": torch.randint(2**62, (1,), generator=generator, device=generator.device)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        return dsa(images, torch.Generator().manual_seed(int(drawn["seed"])), self.operations)


def between(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Random numbers, uniform in [low, high), float64, on the generator's device."""
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * drawn


def _permutations(n: int, k: int, generator: Generator) -> Tensor:
    """Random permutations of 0 ... k - 1, one in every row: (n, k), int64."""
    return between(0, 1, (n, k), generator).argsort(1)


def _resampling(out: int, side: int, start: Tensor, length: Tensor) -> Tensor:
    """Matrices (n, out, side) that scale the pixels start ... start + length - 1 of each line to `out` pixels.

    Every row sums to 1. Before that, the weight is max(0, 2 max(length, out) - |(2 p + 1) out - (2 o + 1) length|). In
    this unit, half a pixel over `out`, all terms are whole numbers, so the weights are exact on every device.
    """
    pixel = torch.arange(side, device=start.device, dtype=torch.int32) - start[:, None]
    target = torch.arange(out, device=start.device, dtype=torch.int32)
    length = length[:, None]
    distance = ((2 * pixel + 1) * out)[:, None, :] - ((2 * target + 1) * length)[:, :, None]
    inside = (pixel >= 0) & (pixel < length)
    weight = (2 * length.clamp(min=out)[:, None, :] - distance.abs()).clamp(min=0) * inside[:, None, :]
    return weight / weight.sum(2, keepdim=True)
