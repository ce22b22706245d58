"""A protocol pins every detail of how a distilled set is judged, because each of them changes the score."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from dap.errors import DapError
from dap.evaluation.augment import OPERATIONS, Operation
from dap.evaluation.networks import Norm
from dap.registry import suggest


class Protocol(BaseModel):
    """One recipe of training and testing. Epochs are numbered up to `epochs`, from 1, or from 0 with `extra_epoch`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    """Written into every trial. Overridden fields are appended to it, as in `small-hard+epochs=30`."""
    source: str
    """Where the recipe and its numbers come from."""
    network: str
    """`convnet1` ... `convnet8`, `resnetap10`, `resnet18`, `file.py:callable` or `package.module:callable`."""
    size: PositiveInt
    """Height and width in pixels that train and test images are resized to (bilinear, antialiased)."""
    norm: Norm = "instance"
    """Normalisation in the network; "instance" is GroupNorm with one channel a group."""
    width: PositiveInt = 128
    """Channels of a ConvNet."""
    mean: tuple[FiniteFloat, ...]
    """Subtracted from images in [0, 1], one value a channel, or one for all."""
    std: tuple[PositiveFloat, ...]
    """Divides the images after that, as `mean`."""
    epochs: PositiveInt
    """E, the number of the last epoch; milestones and looks are derived from it."""
    extra_epoch: bool = False
    """Run E + 1 epochs, numbered from 0, as DC's loop does."""
    batch: PositiveInt
    """Images a step; the last, smaller batch of an epoch is kept."""
    lr: PositiveFloat
    """Learning rate of SGD at the start."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of SGD, without Nesterov."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty of SGD, on all parameters."""
    decay_at: tuple[PositiveInt | str, ...] = ()
    """At the end of which epochs the learning rate is multiplied: numbers, fractions of E such as "2/3" (rounded down,
    at least 1), or "half+1", DC's E // 2 + 1."""
    decay_factor: PositiveFloat = 0.1
    """What the learning rate is multiplied by."""
    decay_restarts: bool = False
    """A decay makes a new optimiser, so that the momentum gathered is forgotten (DC) instead of kept (MultiStepLR)."""
    augment: Literal["none", "dsa"] = "none"
    """"dsa": one operation a batch, drawn from `operations` (Zhao & Bilen 2021)."""
    operations: Annotated[tuple[Operation, ...], Field(min_length=1)] = OPERATIONS
    """Operations of `dsa`. DSA leaves out the flip on digits."""
    labels: Literal["hard"] = "hard"
    """Cross-entropy with the labels of the set."""
    score: Literal["last", "best"]
    """Which accuracy is the headline: after the last epoch, or the best look at the test set. Both are stored."""
    looks: PositiveInt = 1
    """How many evenly spaced looks at the test set, the last after the last epoch."""

    @property
    def first_epoch(self) -> int:
        """Number of the first epoch: 0 with `extra_epoch`, else 1."""
        return 0 if self.extra_epoch else 1

    @property
    def decay_epochs(self) -> tuple[int, ...]:
        """Epochs at whose end the learning rate falls, ascending."""
        return tuple(sorted(_epoch(when, self.epochs) for when in self.decay_at))

    @property
    def look_epochs(self) -> tuple[int, ...]:
        """Epochs at whose end the network is tested, ascending; the last is `epochs`."""
        return tuple(round(self.epochs * k / self.looks) for k in range(1, self.looks + 1))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.looks > self.epochs:
            raise ValueError(f"looks {self.looks} is more than the {self.epochs} epochs")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        for when, epoch in zip(self.decay_at, [_epoch(when, self.epochs) for when in self.decay_at], strict=True):
            if not self.first_epoch <= epoch <= self.epochs:
                raise ValueError(f"decay_at {when!r} is epoch {epoch}, outside {self.first_epoch} ... {self.epochs}")
        return self


def load_protocol(name_or_path: str | Path, **overrides: Any) -> Protocol:
    """A shipped protocol by name, or one of your own by the path of its YAML file, with some fields replaced.

    Raises:
        FileNotFoundError: the path ends in .yaml or .yml and there is no such file.
        DapError: the name or a field is unknown, or a value is wrong; the message names it and lists the known ones.
    """
    text, where = _read(name_or_path)
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DapError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, Mapping):
        raise DapError(f"{where} should be a mapping of fields such as {', '.join(list(Protocol.model_fields)[:4])}.")
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}
    changed = {key: value for key, value in plain.items() if key not in fields or fields[key] != value}
    protocol = _validate({**fields, **changed}, where)
    labels = [f"{key}={_short(value)}" for key, value in changed.items() if key not in ("name", "source")]
    return protocol.model_copy(update={"name": "+".join([protocol.name, *labels])}) if labels else protocol


def known_protocols() -> tuple[str, ...]:
    """Names of the protocols that ship with the package."""
    folder = files("dap.evaluation") / "protocols"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def _read(name_or_path: str | Path) -> tuple[str, str]:
    name = str(name_or_path)
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise FileNotFoundError(f"No protocol file {name}. Shipped protocols: {', '.join(known_protocols())}.")
        return Path(name).read_text(), name
    if name not in known_protocols():
        known = suggest(name, known_protocols())
        raise DapError(f"Unknown protocol {name!r}. {known} Or give the .yaml file of your own.")
    return (files("dap.evaluation") / "protocols" / f"{name}.yaml").read_text(), f"The protocol {name}"


def _validate(fields: Mapping[str, Any], where: str) -> Protocol:
    try:
        return Protocol.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise DapError(f"{where}: unknown field {key!r}. {suggest(key, Protocol.model_fields)}") from error
        if first["type"] == "missing":
            raise DapError(f"{where}: the field {key!r} is missing.") from error
        message = first["msg"].removeprefix("Value error, ")
        culprit = f"{key} = {first['input']!r}: " if key else ""
        raise DapError(f"{where}: {culprit}{message}.") from error


def _epoch(when: int | str, epochs: int) -> int:
    if isinstance(when, int):
        return when
    if when == "half+1":
        return epochs // 2 + 1
    if re.fullmatch(r"\d+/[1-9]\d*", when):
        return max(1, int(epochs * Fraction(when)))
    raise ValueError(f'decay_at {when!r} should be an epoch, a fraction of the epochs such as "2/3", or "half+1"')


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
