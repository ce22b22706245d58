"""RDED: crops of real images that a teacher classifies with a low loss, tiled into one image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.base.parsing import counted
from dap.base.seeding import seed_of
from dap.evaluation.training.steps import RandomResizedCrop
from dap.methods import base
from dap.methods.base import Made, Method, Task, Unit, check_compared
from dap.methods.selection.features import check_decoded, check_finite, decodable

CHUNK = 64
"""How many real images, at most, have their crops judged together."""


SMALL = 64
"""Up to this side in px, the side of Tiny-ImageNet, the paper's scripts make an image of one crop. CIFAR is smaller."""


class RdedOptions(base.Options, frozen=True):
    """Defaults are those of the paper's scripts."""

    factor: int | None = Field(
        default=None,
        ge=1,
        description=f"An image is made of factor x factor crops. Default, as in the paper's scripts: 1 up to {SMALL} px, "
        "2 above.",
    )
    crops: int = Field(
        default=5, ge=1, description="How many random crops of each real image are tried; the best one stays."
    )
    smallest: float = Field(
        default=0.08, gt=0, le=1, description="The smallest part of the real image's area that a crop may cover."
    )
    images: int = Field(
        default=300,
        ge=1,
        description="Real images of each class that are looked at, drawn by the run seed: at least as many as crops are "
        "needed, and "
        "all images of a smaller class.",
    )


class Rded(Method):
    """Tiles each image from factor x factor random crops of real images with the lowest cross-entropy under a teacher.

    As in the authors' code, a crop is a square whose part of the image's area is uniform, scaled to size / factor. The
    teacher judges the crop in the middle of an image of the full size. The best crop of each real image stays. The
    crops are ranked, and image i of n is made, row by row, of the crops ranked i, n + i, 2 n + i, ..., so that every
    image has some of the best crops. Three things differ from the authors' code. They crop the files as they are; here
    the source's squares of the full size are cropped. Their border has the mean colour of the teacher's data; here the
    border has the mean colour of the class's images. They store JPEG files; here a set is PNG. The paper trains on the
    teacher's soft labels (`rded-soft`); the images are the same.
    """

    from_reals = True
    needs = frozenset({"classifier"})
    reference = "Sun, Shi, Yu & Lin, CVPR 2024 (RDED)"
    cost = "a classifier trained on all real data, and a pass over images x crops a class"
    bounded = ("options.images", 1)
    Options = RdedOptions

    def prepare(self, task: Task) -> Callable[[Unit], Made]:
        recipe, source, options, classifier = task.recipe, task.source, task.options, task.classifier
        check_compared(task)
        factor = options.factor or (1 if source.size <= SMALL else 2)
        wanted = recipe.ipc * factor**2
        if factor > source.size:
            raise DapError(f"Images of {source.size} px cannot be cut into {factor} tiles a side; lower factor.")
        for label, name in enumerate(source.class_names):
            if source.count(label) < wanted:
                less = "--option factor=1 or a smaller ipc" if factor > 1 else "a smaller ipc"
                raise DapError(
                    f"{counted(recipe.ipc, 'image')} of class {name!r} take {wanted} crops of as many real images, and it has "
                    f"{source.count(label)}; give {less}."
                )
        step = RandomResizedCrop(size=source.size // factor, scale=(options.smallest, 1.0), ratio=(1.0, 1.0))

        def crops(name: str) -> dict[str, Tensor]:
            label = source.class_names.index(name)
            drawn: list[int] = []
            reals: list[Tensor] = []
            looked = max(options.images, wanted)
            for indices, images in decodable(source, label, looked, seed_of(recipe.seed, name, "rded")):
                drawn += indices
                reals += images.split(CHUNK)
            check_decoded(source, label, len(drawn), wanted)
            colour = torch.stack([real.double().sum((0, 2, 3)) for real in reals]).sum(0) / (
                len(drawn) * source.size**2
            )
            generator = torch.Generator().manual_seed(seed_of(recipe.seed, name, "crops"))
            boxes = step.draw(len(drawn) * options.crops, source.size, source.size, generator)["box"]
            found, scores = [], []
            for real, box in zip(reals, boxes.split([len(real) * options.crops for real in reals]), strict=True):
                views = step.apply(real.repeat_interleave(options.crops, 0), {"box": box}).clamp(0, 1)
                logits = classifier.logits(bordered(views, source.size, colour.float())).cpu()
                check_finite(logits, classifier, "logits", name)
                loss = F.cross_entropy(logits, torch.full((len(views),), label), reduction="none").view(len(real), -1)
                best = loss.argmin(1)
                found.append(views.unflatten(0, (len(real), -1))[torch.arange(len(real)), best])
                scores.append(loss.amin(1))
            order = torch.cat(scores).argsort(stable=True)[:wanted]
            return {"crops": torch.cat(found)[order], "indices": torch.tensor(drawn)[order]}

        def make(unit: Unit) -> Made:
            name = source.class_names[unit.label]
            key = {"class": name, "ipc": recipe.ipc, "seed": recipe.seed, **options.model_dump(), "factor": factor}
            made = task.store.get(f"surest crops of {name}", key, lambda: crops(name))
            n = factor**2
            images, records = [], []
            for slot in unit.slots:
                part = slice(slot, n * recipe.ipc, recipe.ipc)
                images.append(tiled(made["crops"][part], factor, source.size))
                records.append({"seed": recipe.seed, "real": source.keys(unit.label, made["indices"][part].tolist())})
            return Made(torch.stack(images), records)

        return make


def bordered(crops: Tensor, size: int, colour: Tensor) -> Tensor:
    """Put crops (n, 3, side, side) in the middle of images (n, 3, size, size) that have one colour (3,)."""
    images = colour[:, None, None].expand(len(crops), 3, size, size).clone()
    side = crops.shape[-1]
    first = (size - side) // 2
    images[:, :, first : first + side, first : first + side] = crops
    return images


def tiled(crops: Tensor, factor: int, size: int) -> Tensor:
    """Tile factor² crops (factor², 3, side, side) into one image (3, size, size) in [0, 1], row by row.

    If `factor` does not divide `size`, the first tiles of a row or column are one pixel larger.
    """
    bounds = [i * (size // factor) + min(i, size % factor) for i in range(factor + 1)]
    image = crops.new_empty(3, size, size)
    for k, crop in enumerate(crops):
        row, column = divmod(k, factor)
        (top, bottom), (left, right) = bounds[row : row + 2], bounds[column : column + 2]
        tile = (bottom - top, right - left)
        same = tile == crop.shape[1:]
        scaled = crop if same else F.interpolate(crop[None], tile, mode="bilinear", antialias=True)[0]
        image[:, top:bottom, left:right] = scaled.clamp(0, 1)
    return image
