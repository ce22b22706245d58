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
    """Whatever knows the classes, for code that must not depend on `classifier.Classifier`, which is one of these."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Changes with everything that the logits depend on."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes), in label order, of images (n, c, h, w) in [0, 1]; without a gradient."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Features (n, D), the input of the last linear layer, of the same images; without a gradient."""
        ...


class Hard(BaseModel):
    """Cross-entropy with the labels of the set."""

    model_config = _CLOSED

    kind: Literal["hard"] = "hard"


class Soft(BaseModel):
    """KL divergence from the logits that a classifier, the teacher, gives for the very images that the student sees."""

    model_config = _CLOSED

    kind: Literal["soft"] = "soft"
    teacher: str | None = None
    """`torchvision:NAME`, a file of `dap train-teacher`, or `file.py:build`; None: it has to be given."""
    temperature: PositiveFloat
    """T: log-softmax of student / T against softmax of teacher / T. The loss is not multiplied by T^2."""


class Stored(BaseModel):
    """The same with the teacher's logits and the augmentations read from files (FKD), which `dap export --layout fkd` writes."""

    model_config = _CLOSED

    kind: Literal["stored"] = "stored"
    temperature: PositiveFloat
    """As in soft labels."""


Labels = Annotated[Hard | Soft | Stored, Field(discriminator="kind")]


class When(BaseModel):
    """The conditions of a case; it holds if all of those that are given hold. Ranges are "10", "11-50" or "51-"."""

    model_config = _CLOSED

    ipc: str | None = None
    """Range of the images per class (of the largest class)."""
    classes: str | None = None
    """Range of the number of classes."""
    networks: tuple[str, ...] | None = None
    """Any of these networks; `convnet*` stands for all that begin so."""

    def holds(self, ipc: int, classes: int, network: str) -> bool:
        ranges = all(_within(value, text) for value, text in ((ipc, self.ipc), (classes, self.classes)))
        return ranges and (self.networks is None or any(_named(network, pattern) for pattern in self.networks))

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for text in (self.ipc, self.classes):
            _within(1, text)
        return self


class Case(BaseModel):
    """Other values for some fields, under a condition."""

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
