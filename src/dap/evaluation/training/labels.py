"""Parts of a protocol: the labels that a network is trained on, and fields that depend on the set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from typing import Protocol as Interface

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator
from torch import Tensor

_CLOSED = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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


class Hard(BaseModel):
    """Cross-entropy with the labels of the set."""

    model_config = _CLOSED

    kind: Literal["hard"] = "hard"


class Soft(BaseModel):
    """KL divergence from the logits of a teacher, a classifier that sees exactly the images that the student sees."""

    model_config = _CLOSED

    kind: Literal["soft"] = "soft"
    teacher: str | None = None
    """`torchvision:NAME`, a file of `dap train-teacher`, or `file.py:build`. None: the user has to give a teacher."""
    temperature: PositiveFloat
    """T. The loss compares log-softmax(student / T) with softmax(teacher / T) and is not multiplied by T^2."""


class Stored(BaseModel):
    """The loss of `Soft`, with the teacher's logits and the augmentations read from files (FKD).

    `dap export --layout fkd` writes these files.
    """

    model_config = _CLOSED

    kind: Literal["stored"] = "stored"
    temperature: PositiveFloat
    """T, as in `Soft`."""


Labels = Annotated[Hard | Soft | Stored, Field(discriminator="kind")]


class When(BaseModel):
    """The conditions of a case. The case applies if all given conditions hold. Ranges are "10", "11-50" or "51-"."""

    model_config = _CLOSED

    ipc: str | None = None
    """Range of ipc, the number of images of the largest class."""
    classes: str | None = None
    """Range of the number of classes."""
    networks: tuple[str, ...] | None = None
    """The network is one of these. `convnet*` stands for all names that begin with convnet."""

    def holds(self, ipc: int, classes: int, network: str) -> bool:
        ranges = all(_within(value, text) for value, text in ((ipc, self.ipc), (classes, self.classes)))
        return ranges and (self.networks is None or any(_named(network, pattern) for pattern in self.networks))

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for text in (self.ipc, self.classes):
            _within(1, text)
        return self


class Case(BaseModel):
    """Other values for some fields of a protocol, under a condition."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: When
    set: Mapping[str, Any]


def _within(value: int, text: str | None) -> bool:
    if text is None:
        return True
    if not (found := re.fullmatch(r"(\d+)(?:(-)(\d*))?", text)):
        raise ValueError(f'the range {text!r} should look like "10", "11-50" or "51-"')
    low, high = int(found[1]), int(found[3]) if found[3] else None
    return value >= low and (high is None or value <= high) if found[2] else value == low


def _named(network: str, pattern: str) -> bool:
    return network.startswith(pattern[:-1]) if pattern.endswith("*") else network == pattern
