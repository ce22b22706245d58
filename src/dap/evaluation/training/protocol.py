"""A protocol pins every detail of how a distilled set is judged, because each of them changes the score.

Values that depend on the number of images per class, the number of classes or the network stand in `cases`.
`Protocol.settled` applies the cases that hold and returns a protocol without cases.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from dap.base.documents import LARGEST_YAML, read_text
from dap.base.errors import DapError
from dap.base.fields import Divisor, Images, Name, Number, Pixels
from dap.base.mistakes import placed, problems
from dap.base.parsing import brief, parse_yaml, shown
from dap.base.permission import refuse_code
from dap.base.registry import code_of, suggest
from dap.evaluation.training.labels import Case, Hard, Labels, epoch_of, of_size
from dap.evaluation.training.networks import Norm
from dap.evaluation.training.steps import Closed, Step
from dap.evaluation.training.transforms import Mix, parse
from dap.protocol_names import ordered

Epoch = Annotated[int, Field(gt=0, le=10**6)]
Entries = Annotated[tuple[Mapping[str, Any], ...], Field(max_length=100)]
Beta = Annotated[float, Field(ge=0, lt=1)]
OfChannels = Field(min_length=1, max_length=64)


class Protocol(Closed, frozen=True):
    """One recipe of training and testing. Epochs are numbered up to `epochs`, from 1, or from 0 with `extra_epoch`."""

    name: Annotated[str, Field(min_length=1)]
    """Written into every trial. Overridden fields are appended to it in their order here, as in `small-hard+epochs=30`."""
    source: str
    """Where the recipe and its numbers come from."""
    network: Name
    """A name of `dap.evaluation.training.networks`, `torchvision:NAME`, `timm:NAME`, `file.py:callable`."""
    size: Pixels
    """Height and width in pixels that the network sees."""
    norm: Norm = "instance"
    """Normalisation in the network; "instance" is GroupNorm with one channel a group."""
    width: Annotated[int, Field(gt=0, le=65_536)] = 128
    """Channels of a ConvNet."""
    mean: Annotated[tuple[Number, ...], OfChannels]
    """Subtracted from images in [0, 1], one value a channel, or one for all."""
    std: Annotated[tuple[Divisor, ...], OfChannels]
    """The images are divided by these values after `mean` is subtracted; as many values as `mean`."""
    train: Entries
    """Steps (`dap.evaluation.training.transforms`) from an image of the set in [0, 1] to what the network sees in
    training. Sides and sizes left out are `size`, and "8/7" is size // 7 * 8; `normalize` takes `mean` and `std`."""
    test: Entries
    """Steps from a real test image in [0, 1] to what the network sees in tests. None of these steps is random."""
    mix: Mix | None = None
    """Mixes every training batch after the steps of `train`."""
    epochs: Epoch
    """E, the number of the last epoch; milestones and looks are derived from it."""
    extra_epoch: bool = False
    """Run E + 1 epochs, numbered from 0, as DC's loop does."""
    batch: Images
    """Images a step; the last, smaller batch of an epoch is kept."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """SGD without Nesterov, or AdamW."""
    lr: Annotated[float, Field(gt=0, le=10_000)]
    """Learning rate at the start."""
    momentum: Beta = 0.0
    """Momentum of SGD."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Betas of AdamW."""
    weight_decay: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    """L2 penalty of SGD, or decoupled decay of AdamW."""
    weight_decay_on: Literal["all", "matrices"] = "all"
    """"matrices": only on weights of two dimensions or more, hence on no bias, no norm and no table of positions."""
    schedule: Literal["steps", "cosine"] = "steps"
    """How the learning rate falls, epoch by epoch."""
    decay_at: Annotated[tuple[Epoch | str, ...], Field(max_length=200)] = ()
    """For schedule steps: the epochs at whose end the learning rate falls. An entry is a number, a fraction of E such as
    "2/3" (rounded down, at least 1), or "half+1", DC's E // 2 + 1."""
    decay_factor: Annotated[float, Field(gt=0, le=10)] = 0.1
    """For schedule steps: the factor by which the learning rate is multiplied."""
    decay_restarts: bool = False
    """For schedule steps: a decay makes a new optimiser, so that the momentum is forgotten (DC) instead of kept."""
    cosine_length: Divisor = 1.0
    """Of cosine: lr (1 + cos(pi e / (cosine_length E))) / 2 in epoch e counted from 0; 2 ends at half of the start."""
    extra_forward: bool = False
    """Pass every batch through the network once more in training mode without a gradient, as RDED does to print its
    training accuracy: BatchNorm's running statistics then move twice a step. (Its CutMix writes into the batch that
    this pass is given, so both passes see the mixed images.)"""
    labels: Labels = Hard()
    """The labels that the network is trained on."""
    weights: Literal["none", "manifest"] = "none"
    """manifest: the loss of each image is multiplied by the `weight` of its manifest line, whose mean in a class is 1. The
    weight of a mixed image is the mixture of both weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: training passes under autocast; weights, their steps and looks at the test set stay float32."""
    score: Literal["last", "best"]
    """Which accuracy is the headline: after the last epoch, or the best look at the test set. Both are stored."""
    looks: Annotated[int, Field(gt=0, le=100_000)] = 1
    """How many evenly spaced looks at the test set, the last after the last epoch; at most one an epoch."""
    look_from: str = "0"
    """The looks are spread over the epochs after this fraction of E."""
    cases: Annotated[tuple[Case, ...], Field(max_length=100)] = ()
    """Fields with other values under conditions; all that hold apply, in this order."""

    def facts(self, **of: Any) -> dict[str, Any]:
        """The fields as JSON values, by which trainings are told apart. `weights` is left out where it is "none", so that
        the trainings of versions without this field stay valid. `code` has the hash of a network of one's own."""
        fields = self.model_dump(mode="json", **of)
        code = {"code": found} if (found := code_of(self.network)) else {}
        return {name: value for name, value in fields.items() if (name, value) != ("weights", "none")} | code

    @property
    def first_epoch(self) -> int:
        """Number of the first epoch: 0 with `extra_epoch`, else 1."""
        return 0 if self.extra_epoch else 1

    @property
    def passes(self) -> int:
        """How many epochs a training runs: `epochs`, and one more with `extra_epoch`."""
        return self.epochs - self.first_epoch + 1

    @property
    def decay_epochs(self) -> tuple[int, ...]:
        """Epochs at whose end the learning rate falls by `decay_factor`, ascending."""
        return tuple(sorted(epoch_of(when, self.epochs) for when in self.decay_at)) if self.schedule == "steps" else ()

    @property
    def look_epochs(self) -> tuple[int, ...]:
        """Epochs at whose end the network is tested, ascending; the last is `epochs`."""
        start = int(self.epochs * Fraction(self.look_from))
        looks = {start + round((self.epochs - start) * k / self.looks) for k in range(1, self.looks + 1)}
        return tuple(sorted(look for look in looks if look >= self.first_epoch and look > 0))

    def lr_at(self, epoch: int) -> float:
        """The learning rate during an epoch."""
        if self.schedule == "cosine":
            turned = math.pi * (epoch - self.first_epoch) / (self.cosine_length * self.epochs)
            return self.lr * (1 + math.cos(turned)) / 2
        return self.lr * self.decay_factor ** sum(decay < epoch for decay in self.decay_epochs)

    @property
    def train_steps(self) -> tuple[Step, ...]:
        """The steps of `train` with every size and value in place."""
        return self._steps("train")

    @property
    def test_steps(self) -> tuple[Step, ...]:
        """The steps of `test` with every size and value in place."""
        return self._steps("test")

    def settled(self, *, ipc: int, classes: int, network: str | None = None) -> Protocol:
        """This protocol for one set and network. The cases that hold are applied, and `cases` is empty afterwards.

        Args:
            ipc: images per class, of the largest class.
            classes: number of classes.
            network: the network to train instead of the protocol's own.

        Raises:
            DapError: a case sets something impossible.
        """
        name = network or self.network
        fields = self.model_dump(exclude={"cases"})
        for case in self.cases:
            if case.when.holds(ipc, classes, name):
                fields.update(case.set)
        return _validate({**fields, "network": name}, f"The protocol {self.name}")

    def _steps(self, which: Literal["train", "test"]) -> tuple[Step, ...]:
        places = {"resize": "side", "center_crop": "size", "random_resized_crop": "size"}
        filled = []
        for step in getattr(self, which):
            values, op = dict(step), str(step.get("op"))
            if op == "normalize":
                values = {"mean": self.mean, "std": self.std, **values}
            elif op in places:
                side = values.get(places[op], self.size)
                values[places[op]] = of_size(side, self.size) if isinstance(side, str) else side
            filled.append(values)
        return parse(filled)

    @field_validator("labels", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        for when, epoch in zip(self.decay_at, [epoch_of(when, self.epochs) for when in self.decay_at], strict=True):
            if not self.first_epoch <= epoch <= self.epochs:
                raise ValueError(
                    f"decay_at {brief(when)} is epoch {epoch}, outside {self.first_epoch} ... {self.epochs}"
                )
        if not re.fullmatch(r"0|[0-9]{1,9}/[1-9][0-9]{0,8}", self.look_from) or Fraction(self.look_from) >= 1:
            raise ValueError(f'look_from {brief(self.look_from)} should be "0" or a fraction below 1 such as "4/5"')
        try:
            _, test = self.train_steps, self.test_steps
        except DapError as error:
            raise ValueError(str(error).removesuffix(".")) from error
        if random := [type(step).model_fields["op"].default for step in test if step.random]:
            raise ValueError(f"test has the random step {random[0]!r}; only training images are augmented")
        for case in self.cases:
            if unknown := [field for field in case.set if field not in type(self).model_fields]:
                raise ValueError(f"cases set the unknown key {brief(unknown[0])}")
        return self


def load_protocol(name_or_path: str | Path, **overrides: Any) -> Protocol:
    """A shipped protocol by name, or a protocol of your own by the path of its YAML file, with some fields replaced.

    A file may begin with `extends: NAME`, the name of a shipped protocol or the path of another file, seen from the
    folder of this file. It then needs only a `name` and the fields that differ.

    A field that is replaced, here or by an extending file, keeps the new value under every case.

    Raises:
        DapError: there is no such file, the name or a field is unknown, a value is wrong, or files extend each other
            in a circle; the message names the culprit and lists the known names.
    """
    fields, where, origins = _fields(name_or_path)
    refuse_code({key: value for key, value in fields.items() if key not in overrides}, where)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}
    in_cases = {field for case in _cases(fields) for field in case["set"]}
    changed = {
        key: value for key, value in plain.items() if key in in_cases or key not in fields or fields[key] != value
    }
    origins = {key: origin for key, origin in origins.items() if key not in changed}
    protocol = _validate({**fields, **changed}, where, origins)
    kept = tuple(
        case.model_copy(update={"set": {key: value for key, value in case.set.items() if key not in changed}})
        for case in protocol.cases
    )
    labels = [f"{key}={_short(value)}" for key, value in changed.items() if key not in ("name", "source")]
    return protocol.model_copy(update={"name": ordered("+".join([protocol.name, *labels])), "cases": kept})


def known_protocols() -> tuple[str, ...]:
    """Names of the protocols that ship with the package."""
    folder = files("dap.evaluation.training") / "protocols"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


LONGEST = 20
"""How many files may extend each other in a chain."""


def _fields(
    name_or_path: str | Path, begun: tuple[str, ...] = ()
) -> tuple[dict[str, Any], str, dict[str, tuple[str, str]]]:
    """The fields of a protocol, those of the protocols that it extends among them, and what to call it in a message.

    Args:
        name_or_path: as of `load_protocol`.
        begun: the files that led here, each of which extends the next.

    Returns:
        The fields, the name for messages, and for each field what to call the file that it is from, and that file's text.
    """
    text, where = _read(name_or_path)
    own = parse_yaml(text, where)
    if not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
        raise DapError(f"{where} should be a mapping of fields such as {', '.join(list(Protocol.model_fields)[:4])}.")
    origins = dict.fromkeys(own, (where, text))
    if "extends" not in own:
        return own, where, origins
    extended, here = own.pop("extends"), str(Path(name_or_path).resolve())
    if here in begun:
        circle = " -> ".join(shown(Path(file).name) for file in (*begun[begun.index(here) :], here))
        said = f"These protocol files extend each other in a circle: {circle}"
        raise DapError(f"{said}. Remove `extends` from one of them.")
    if len(begun) >= LONGEST:
        raise DapError(f"{where} is the end of a chain of {LONGEST} files that extend each other; extend fewer.")
    if not isinstance(extended, str):
        raise DapError(f"{where}: extends should name one protocol, such as small-hard, not {brief(extended)}.")
    if extended.endswith((".yaml", ".yml")):
        extended = str(Path(name_or_path).parent / extended)
    try:
        base, _, from_base = _fields(extended, (*begun, here))
    except DapError as error:
        said = begun or "circle" in str(error)
        raise error if said else DapError(f"{where} extends {shown(extended)}: {error}") from error
    if own.get("name", base.get("name")) == base.get("name"):
        raise DapError(
            f"{where} extends {shown(extended)}; give it a name of its own, so that their trials are told apart."
        )
    changed = [field for field in own if field not in ("name", "source")]
    base["source"] = f"As {base.get('name')}, but for {', '.join(changed) or 'its name'}."
    if "cases" in base and "cases" not in own:
        for case in _cases(base):
            case["set"] = {key: value for key, value in case["set"].items() if key not in own}
    return {**base, **own}, where, {**from_base, **origins}


def _cases(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases as written that set something. Whatever is no case is left to the validation."""
    cases = fields.get("cases")
    found = [case for case in cases if isinstance(case, dict)] if isinstance(cases, list) else []
    return [case for case in found if isinstance(case.get("set"), dict)]


def _read(name_or_path: str | Path) -> tuple[str, str]:
    """The text of a protocol, and what to call it in a message."""
    name = str(name_or_path)
    if name.endswith((".yaml", ".yml")):
        if not os.path.lexists(name):
            raise DapError(f"No protocol file {shown(name)}. Shipped protocols: {', '.join(known_protocols())}.")
        return read_text(Path(name), LARGEST_YAML), shown(name)
    if name not in known_protocols():
        known = suggest(shown(name), known_protocols())
        raise DapError(f"Unknown protocol {brief(name)}. {known} Or give the .yaml file of your own.")
    file = files("dap.evaluation.training") / "protocols" / f"{name}.yaml"
    return file.read_text(encoding="utf-8"), f"The protocol {name}"


def _validate(fields: Mapping[str, Any], where: str, origins: Mapping[str, tuple[str, str]] | None = None) -> Protocol:
    """The protocol of these fields.

    Args:
        fields: the values by field.
        where: what to call the protocol in a message.
        origins: for fields that are written in a file, what to call that file, and its text.

    Raises:
        DapError: a field is unknown, missing or wrong. The message names the file and the line.
    """
    try:
        return Protocol.model_validate(fields)
    except DapError as error:  # of a step or a mixing
        raise DapError(f"{where}: {error}") from error
    except ValidationError as error:
        first, text = error.errors()[0]["loc"], None
        if first and first[0] in (origins or {}):
            where, text = (origins or {})[str(first[0])]
        # One problem is told, because others may stand in another file of the chain.
        raise DapError(placed(where, problems(error, Protocol, text, most=1)[0])) from error


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
