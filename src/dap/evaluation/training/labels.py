"""Parts of a protocol: the labels that a network is trained on, and fields that depend on the set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, Self
from typing import Protocol as Interface

from pydantic import Field, model_validator
from torch import Tensor

from dap.base.errors import DapError
from dap.base.fields import Chosen, Divisor, Name
from dap.base.parsing import brief
from dap.evaluation.training.steps import Closed


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
