"""Transforms of batches. A protocol lists them as mappings, each with an `op`:

- {op: resize, side: 224}
- {op: random_resized_crop, size: 224, scale: [0.5, 1]}
- {op: flip, p: 0.5}
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError
from torch import Generator, Tensor
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.base.mistakes import problems
from dap.base.parsing import brief
from dap.base.registry import suggest
from dap.evaluation.training.mixing import CutMix, Mixing, MixUp
from dap.evaluation.training.steps import (
    CenterCrop,
    Closed,
    ColorJitter,
    Drawn,
    Dsa,
    Flip,
    Lighting,
    Normalize,
    RandomResizedCrop,
    Resize,
    Step,
    Tiles,
)

STEPS = (Resize, CenterCrop, Tiles, RandomResizedCrop, Flip, ColorJitter, Lighting, Normalize, Dsa)
MIXINGS = (CutMix, MixUp)

Transform = Annotated[
    Resize | CenterCrop | Tiles | RandomResizedCrop | Flip | ColorJitter | Lighting | Normalize | Dsa,
    Field(discriminator="op"),
]
"""One step of any kind. The field `op` tells the kind."""


def parse(entries: object) -> tuple[Step, ...]:
    """Make steps from a list of mappings. Entries of the list that are steps already stay as they are.

    Raises:
        DapError: `entries` is no list, or a step has an unknown `op` or field, a missing field or a wrong value. The
            message names the step.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise DapError(f"a list of steps such as [{{op: flip, p: 0.5}}] is needed, not {brief(entries)}.")
    if len(entries) > 100:
        raise DapError(f"there are {len(entries):,} steps; at most 100 are read.")
    return tuple(_build(entry, STEPS, f"step {k}") for k, entry in enumerate(entries, 1))


def parse_mixing(entry: object) -> Mixing | None:
    """Make a mixing from a mapping. None stays None, and a mixing stays as it is.

    Raises:
        DapError: the mapping has an unknown `op` or field, a missing field or a wrong value.
    """
    return None if entry is None else _build(entry, MIXINGS, "the mixing")


Steps = Annotated[tuple[Transform, ...], BeforeValidator(parse)]
"""The type of a field of a pydantic model that holds steps. `parse` makes the steps and raises the errors."""

Mix = Annotated[CutMix | MixUp | None, BeforeValidator(parse_mixing)]
"""The type of a field of a pydantic model that holds a mixing or None. `parse_mixing` makes it and raises errors."""


def split(steps: Sequence[Step]) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Split the steps in two: the steps before the first random step, and the rest.

    The first part gives the same images in every epoch, so it can be computed once.
    """
    fixed = tuple(itertools.takewhile(lambda step: not step.random, steps))
    return fixed, tuple(steps[len(fixed) :])


def size_after(steps: Iterable[Step], height: int, width: int) -> tuple[int, int]:
    """Height and width that images of this size have after all steps.

    Raises:
        DapError: the images are too small for a step.
    """
    for step in steps:
        height, width = step.size_after(height, width)
    return height, width


def draw_all(steps: Sequence[Step], n: int, height: int, width: int, generator: Generator) -> list[dict[str, Tensor]]:
    """Draw the parameters of every step for n images of this size.

    `apply_all` needs all n images in one batch: the batch must not be cut into slices between drawing and applying.
    """
    drawn = []
    for step in steps:
        drawn.append(step.draw(n, height, width, generator))
        height, width = step.size_after(height, width)
    return drawn


def apply_all(steps: Sequence[Step], images: Tensor, drawn: Sequence[Drawn]) -> Tensor:
    """Apply all steps to images (n, c, h, w), with the parameters that `draw_all` gave."""
    for step, parameters in zip(steps, drawn, strict=True):
        images = step.apply(images, parameters)
    return images


def run(steps: Sequence[Step], images: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw the parameters and apply all steps to images (n, c, h, w). A random step needs a generator."""
    if generator is None:
        return apply_all(steps, images, [{} for _ in steps])
    n, _, height, width = images.shape
    return apply_all(steps, images, draw_all(steps, n, height, width, generator))


def scaled(images: Tensor, side: int) -> Tensor:
    """Images (n, c, h, w), each scaled as a whole to a square of this side."""
    same = images.shape[2:] == (side, side)
    return images if same else F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def unnormalised(steps: Sequence[Step], images: Tensor) -> Tensor:
    """Undo every `normalize` of the steps in images that went through the steps.

    A classifier that gives soft labels needs such images, because it normalises them by its own mean.
    """
    for step in reversed(steps):
        if isinstance(step, Normalize):
            images = step.undo(images)
    return images


def _build(entry: object, kinds: Sequence[type[Closed]], where: str) -> Any:
    if isinstance(entry, tuple(kinds)):
        return entry
    known = {kind.model_fields["op"].default: kind for kind in kinds}
    if not isinstance(entry, Mapping) or "op" not in entry:
        raise DapError(f"{where} should be a mapping with an `op`, not {brief(entry)}. {suggest('', known)}")
    op = str(entry["op"])[:80]
    if op not in known:
        raise DapError(f"{where}: unknown op {op!r}. {suggest(op, known)}")
    try:
        return known[op].model_validate(entry)
    except ValidationError as error:
        raise DapError(f"{where} ({op}): {problems(error, known[op], most=1)[0]}.") from error
