"""Parts of a protocol: the labels that a network is trained on, and fields that depend on the set."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Self
from typing import Protocol as Interface

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from dap.base.errors import DapError
from dap.base.fields import Chosen, Divisor, Name
from dap.base.parsing import brief
from dap.evaluation.training.steps import Closed

Loss = Callable[[Tensor, slice], Tensor]
"""A function from the logits of a slice of a batch, and that slice, to the sum of the losses of its images."""


class ClassifierLike(Interface):
    """A classifier of the classes of a set. Code that must not import `classifier.Classifier` uses this interface."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """A text that changes with everything that the logits depend on."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, c, h, w) in [0, 1]. The classes are in label order. There is no gradient."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Features (n, D) of images (n, c, h, w) in [0, 1]: the input of the last linear layer. There is no gradient."""
        ...


@dataclass(frozen=True)
class ImageLabels:
    """Soft labels that belong to the images of a set as they are stored. They take the place of a teacher.

    A teacher sees each image as the student sees it. These labels are those of the unchanged image, whatever a protocol does
    to it. The label of an image that is mixed with a partner is the mixture of both labels by the same share.
    """

    name: str
    """Who gave the labels: `backbone:starter`, or the name of a classifier."""
    class_names: tuple[str, ...]
    """The columns of the logits."""
    values: Tensor
    """Logits (n, classes), float32, in the order of the set's records."""
    fingerprint: str
    """A text that changes with everything that the labels depend on."""
    accuracy: float | None = None
    """How often whoever gave them is right on real images, a fraction; None if nobody measured it."""
    origin: str = ""
    """A text that labels of other images have too if they were made by the same in the same way; empty if that is not known."""

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return self.values.device

    def logits(self, chosen: Tensor, partner: Tensor | None = None, share: float = 1.0) -> Tensor:
        """Logits (m, classes) of the chosen images, on the device of `chosen`.

        Args:
            chosen: (m,), which images of the set.
            partner: (m,), the places among these of the images that they are mixed with; None for no mixing.
            share: r, the part of each mixed image that is its own: log(r softmax(own) + (1 - r) softmax(partner's)).
        """
        own = self.values[chosen.to(self.device)]
        if partner is not None and share < 1:
            log_p = own.log_softmax(1)
            other = log_p[partner.to(self.device)] + math.log1p(-share)
            own = other if share <= 0 else torch.logaddexp(log_p + math.log(share), other)
        return own.to(chosen.device)


def whose(teacher: ClassifierLike | ImageLabels) -> dict[str, str]:
    """Whose labels a training has, as a report must know it to put trainings of several sets together.

    Returns:
        "of": "views" where a classifier sees what the student sees, "images" where the labels are those of the stored images.
        "origin": the fingerprint of the classifier, or `ImageLabels.origin`; left out where it is not known.
    """
    image = isinstance(teacher, ImageLabels)
    origin = teacher.origin if isinstance(teacher, ImageLabels) else teacher.fingerprint
    return {"of": "images" if image else "views", **({"origin": origin} if origin else {})}


class Hard(Closed, frozen=True):
    """Cross-entropy with the labels of the set."""

    kind: Literal["hard"] = "hard"


class Soft(Closed, frozen=True):
    """KL divergence from the logits of a teacher, a classifier that sees exactly the images that the student sees."""

    kind: Literal["soft"] = "soft"
    teacher: str | None = None
    """`torchvision:NAME`, a file of `dap train-teacher`, or `file.py:build`. None: the user has to give a teacher."""
    temperature: Divisor
    """T. The loss compares log-softmax(student / T) with softmax(teacher / T) and is not multiplied by T^2."""


class Stored(Closed, frozen=True):
    """The loss of `Soft`, with the teacher's logits and the augmentations read from files (FKD).

    `dap export --layout fkd` writes these files.
    """

    kind: Literal["stored"] = "stored"
    temperature: Divisor
    """T, as in `Soft`."""


Labels = Annotated[Hard | Soft | Stored, Field(discriminator="kind")]


class When(Closed, frozen=True):
    """The conditions of a case. The case applies if all given conditions hold. Ranges are "10", "11-50" or "51-"."""

    ipc: str | None = None
    """Range of ipc, the number of images of the largest class."""
    classes: str | None = None
    """Range of the number of classes."""
    networks: Annotated[tuple[Name, ...], Field(max_length=1000)] | None = None
    """The network is one of these. `convnet*` stands for all names that begin with convnet."""

    def holds(self, ipc: int, classes: int, network: str) -> bool:
        ranges = all(_within(value, text) for value, text in ((ipc, self.ipc), (classes, self.classes)))
        return ranges and (self.networks is None or any(_named(network, pattern) for pattern in self.networks))

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for text in (self.ipc, self.classes):
            _within(1, text)
        return self


class Case(Chosen, frozen=True):
    """Other values for some fields of a protocol, under a condition."""

    when: When
    set: Mapping[str, Any]


def mixed_weights(weights: Tensor | None, chosen: Tensor, partner: Tensor | None, share: float) -> Tensor | None:
    """The weights (m,) of a batch, or None where there are none.

    Args:
        weights: (n,), of all images.
        chosen: (m,), which images the batch has.
        partner: (m,), the places in the batch of the images that they are mixed with; None for no mixing.
        share: the part of each mixed image that is its own.
    """
    if weights is None:
        return None
    own = weights[chosen.to(weights.device)]
    return own if partner is None else share * own + (1 - share) * own[partner.to(own.device)]


def soft_loss(said: Tensor, temperature: float, weights: Tensor | None = None) -> Loss:
    """The sum over images of w KL(softmax(said / T) || softmax(logits / T)).

    `said` (n, classes) are the teacher's logits and w the `weights` (n,); without them w is 1.
    """
    wanted = F.softmax(said.float() / temperature, 1)

    def loss(logits: Tensor, part: slice) -> Tensor:
        log_p = F.log_softmax(logits / temperature, 1)
        if weights is None:
            return F.kl_div(log_p, wanted[part], reduction="sum")
        return (F.kl_div(log_p, wanted[part], reduction="none").sum(1) * weights[part]).sum()

    return loss


def hard_loss(y: Tensor, other: Tensor | None, share: float, weights: Tensor | None = None) -> Loss:
    """The sum over images of w (r CE(y) + (1 - r) CE(other)), without the second part where `other` is None.

    `y` and `other` (n,) are labels, r is the `share` and w the `weights` (n,); without them w is 1.
    """

    def entropy(logits: Tensor, of: Tensor, part: slice) -> Tensor:
        if weights is None:
            return F.cross_entropy(logits, of[part], reduction="sum")
        return (F.cross_entropy(logits, of[part], reduction="none") * weights[part]).sum()

    def loss(logits: Tensor, part: slice) -> Tensor:
        own = entropy(logits, y, part)
        return own if other is None else share * own + (1 - share) * entropy(logits, other, part)

    return loss


def _within(value: int, text: str | None) -> bool:
    if text is None:
        return True
    if not (found := re.fullmatch(r"([0-9]{1,9})(?:(-)([0-9]{0,9}))?", text)):
        raise ValueError(f'the range {text[:40]!r} should look like "10", "11-50" or "51-"')
    low, high = int(found[1]), int(found[3]) if found[3] else None
    return value >= low and (high is None or value <= high) if found[2] else value == low


def _named(network: str, pattern: str) -> bool:
    return network.startswith(pattern[:-1]) if pattern.endswith("*") else network == pattern


def epoch_of(when: int | str, epochs: int) -> int:
    """The number of an epoch that is written as a number, as a fraction of all such as "2/3", or as "half+1".

    Raises:
        ValueError: the text is none of these.
    """
    if isinstance(when, int):
        return when
    if when == "half+1":
        return epochs // 2 + 1
    if re.fullmatch(r"[0-9]{1,9}/[1-9][0-9]{0,8}", when):
        return max(1, int(epochs * Fraction(when)))
    raise ValueError(f'decay_at {brief(when)} should be an epoch, a fraction of the epochs such as "2/3", or "half+1"')


def of_size(text: str, size: int) -> int:
    """A side in pixels that is written as a fraction: "8/7" of 224 is 224 // 7 * 8, in RDED's order of rounding.

    Raises:
        DapError: the text is no such fraction.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,5}/[1-9][0-9]{0,5}", text):
        raise DapError(f'the side {brief(text)} should be a number of pixels, or a fraction of the size such as "8/7"')
    above, below = map(int, text.split("/"))
    return size // below * above
