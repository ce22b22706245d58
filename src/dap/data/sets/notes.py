"""The files that making and judging a set write beside its images, as closed models with bounds: they may be a stranger's."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, WrapValidator, model_validator

from dap.base.documents import read_json
from dap.base.errors import DapError
from dap.base.fields import Count, FromFile, Name, Share, Text
from dap.base.files import inside
from dap.base.parsing import Damaged, halved

T = TypeVar("T")
log = logging.getLogger("dap")

MOST_CLASSES = 100_000
"""How many classes a set may have."""
MOST_IMAGES = 10**7
"""How many images a set may have."""
RESTORE = "Restore this file from a copy, or make the set again in a new folder."

LARGEST = 1e30
"""The largest size of a number. The square of a square of it is still finite."""
LONGEST = 10_000
"""The most characters of a text."""


def _plain(value: Any) -> Any:
    """Check a value of any structure.

    Raises:
        ValueError: a text in it is too long or cannot be written as UTF-8, or a number in it is too large.
    """
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
        elif isinstance(one, str):
            if len(one) > LONGEST or "\0" in one or halved(one):
                raise ValueError(f"the text {one[:40]!r} is too long, or holds a NUL or half of a character")
        elif isinstance(one, (int, float)) and not isinstance(one, bool) and not abs(one) <= LARGEST:
            raise ValueError(f"the number {one!r} is too large")
    return value


def _filled(value: dict[str, Any]) -> dict[str, Any]:
    if not all(value):
        raise ValueError("a key is empty")
    return value


Plain = Annotated[dict[str, Any], AfterValidator(_plain), AfterValidator(_filled)]
"""A mapping whose structure is open, such as the fields of a recipe. Its texts and numbers have bounds."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
"""A finite number."""
Positive = Annotated[float, Field(ge=0, le=LARGEST)]
"""A finite number that is not negative: seconds, bytes or a distance."""
Label = Annotated[int, Field(ge=0, le=10**6)]
"""The position of a class."""
Names = Annotated[list[Name], Field(min_length=1, max_length=MOST_CLASSES)]
"""Class names in label order."""
Ipc = Annotated[int, Field(ge=1, le=MOST_IMAGES)]
"""The number of images per class."""
Matrix = Annotated[list[Annotated[list[Count], Field(max_length=10_000)]], Field(max_length=10_000)]
"""How often each label (row) got each label (column)."""


class Open(BaseModel, frozen=True):
    """A model of a file with keys that nobody can list, such as the names of measures. Texts and numbers have bounds."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        return _filled(_plain(value)) if isinstance(value, dict) else value


class Made(FromFile, frozen=True):
    """Something that a method made once: how long it took, and whether this set's run made it."""

    seconds: Positive
    made: bool = False


class Cost(FromFile, frozen=True):
    """`cost.json`: what making the set took."""

    seconds: Positive = 0.0
    images: Count = 0
    peak_memory_gb: Positive | None = None
    needs: Annotated[list[Name], Field(max_length=100)] = []
    prepared: dict[Name, Made] = {}


class OwnNumbers(FromFile, frozen=True):
    """The numbers of a measure of the user's own."""

    values: dict[Name, Number]
    better: dict[Name, Text] = {}
    text: Text = ""
    code: Text = ""


class Measures(Open, frozen=True):
    """`measures.json`: numbers by name, and what belongs to them."""

    __pydantic_extra__: dict[str, Number | None]  # pyright: ignore[reportIncompatibleVariableOverride]

    features: Text | None = None
    judged: Text | None = None
    of: Plain = {}  # how the measures were taken, see `evaluation.taken`; files of earlier versions lack it
    by_class: dict[Name, dict[Name, Number]] = {}
    notes: dict[Name, Text] = {}
    own: dict[Name, OwnNumbers] = {}
    confusion: Matrix = []
    trained: Plain | None = None  # of the network whose features were taken, see `training.trained.trained_facts`


class Near(FromFile, frozen=True):
    """A real image near an image of the set. `file` is a copy of it in the set's folder."""

    key: Text | None = None
    label: Annotated[int, Field(ge=-1, le=10**6)] | None = None
    distance: Positive | None = None
    file: Text | None = None
    """Shown only where it leads to a file inside the set, see `files.inside`."""


class Inspected(FromFile, frozen=True):
    """What `images.json` says of one image."""

    path: Text
    label: Label | None = None
    slot: Count | None = None
    nearest: dict[Name, Near | None] | None = None
    closeness: dict[Name, Positive] | None = None
    copied: Annotated[bool | None, Field(alias="copy")] = None
    original: Near | None = None
    predicted: Label | None = None
    probability: Share | None = None


class Limit(FromFile, frozen=True):
    """From where on an image is too near: c of at most `at_most`, which `rate` of fresh real images are below."""

    at_most: Positive | None = None
    rate: Share | None = None


class Rule(FromFile, frozen=True):
    """The rule by which images were flagged as near-copies, and the share of real images that it would flag (`reals`)."""

    pixel: Limit | None = None
    feature: Limit | None = None
    calibrated_on: Count | None = None
    duplicates: Count | None = None
    reals: Share | None = None
    why: Text | None = None


class Images(FromFile, frozen=True):
    """`images.json`: the nearest real images, near-copies and predicted labels."""

    features: Text | None = None
    judged: Text | None = None
    data: Text | None = None  # the fingerprint of the searched images, as inputs.json has that of the images of a set
    copies: Count | None = None
    share: Share | None = None
    worst: Annotated[list[Text], Field(max_length=1000)] = []
    rule: Rule | None = None
    searched: dict[Name, Count] | None = None
    real: dict[Name, Count] | None = None  # how many test images are training images, and images of the set test images
    images: list[Inspected] = []


class Tested(FromFile, frozen=True):
    """How often a backbone is right on real images."""

    accuracy: Share | None = None
    images: Count | None = None
    seconds: Positive | None = None


class Zeroshot(FromFile, frozen=True):
    """`zeroshot.json`: the labels that a backbone predicts."""

    backbone: Text | None = None
    times: Count | None = None
    keep: list[Count] = []
    seed: int | None = None
    real: Tested | None = None
    agreement: Share | None = None
    seconds: Positive | None = None
    images: list[Inspected] = []
    judged: Text | None = None
    tested: Text | None = None


class Choice(FromFile, frozen=True):
    """A choice that a recipe left to `auto`, with the scores of all candidates by each criterion, the deciding one last."""

    field: Name
    value: Name | Number
    by: Name
    candidates: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    scores: Annotated[dict[Name, Annotated[list[Number | None], Field(max_length=1000)]], Field(min_length=1)]
    limit: Positive | None = None
    images: Count
    seconds: Positive
    warning: Text | None = None
    key: Text


class Choices(FromFile, frozen=True):
    """`chosen.json`: what was chosen for the set on real images, in the order of the choices."""

    choices: Annotated[list[Choice], Field(max_length=100)]


class Growth(FromFile, frozen=True):
    """`growth.json`: how many images per class the set had before it grew."""

    ipc: Annotated[list[Ipc], Field(max_length=1000)]


class RecipeNote(Open, frozen=True):
    """`recipe.json`, as far as it is read without the model of a recipe; all else is plain."""

    method: Name | None = None
    ipc: Ipc | None = None
    seed: int | None = None
    data: Plain | None = None
    backbone: Plain | None = None
    sampling: Plain | None = None
    guidance: Plain | None = None


class Imported(Open, frozen=True):
    """`import.json`: where a set came from. `recipe` is that of the set that it was drawn from."""

    classes: Names
    ipc: Ipc
    notes: list[Text] = []
    recipe: RecipeNote | None = None


class Inputs(Open, frozen=True):
    """`inputs.json`: the classes, and fingerprints of the data, weights and code that a set was made of."""

    classes: Names


NOTES: dict[str, Any] = {
    "cost.json": Cost,
    "chosen.json": Choices,
    "measures.json": Measures,
    "images.json": Images,
    "zeroshot.json": Zeroshot,
    "env.json": Plain,
    "protocols.json": dict[Name, Plain],
    "ranking.json": Plain,
    "import.json": Imported,
    "growth.json": Growth,
    "recipe.json": RecipeNote,
}
"""The model of each file that a report reads, by its name."""


def as_read(model: Any) -> Any:
    """A type that checks a value by a model and gives the value itself, such as a mapping, as it was read."""

    def check(value: Any, handler: Any) -> Any:
        handler(value)
        return value

    checked: Any = Annotated[model, WrapValidator(check)]  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(checked)


def there(folder: Path, name: str) -> bool:
    """Whether the folder holds something of this name, be it no file or a link to nothing."""
    return os.path.lexists(folder / name)


def read(folder: Path, name: str, model: type[T] | TypeAdapter[T], advice: str = RESTORE) -> T:
    """The value of a JSON file of a set, as a model.

    Raises:
        DapError: the file leads out of the folder, cannot be read, or does not fit the model. The message ends with the
            advice.
    """
    try:
        return read_json(inside(folder, name), model)
    except Damaged as error:
        raise Damaged(f"{error} {advice}".rstrip()) from error


def read_note(folder: Path, name: str, advice: str = RESTORE) -> Any:
    """The value of a file in the folder of a set, checked by its model; None where there is no such file.

    Args:
        folder: the folder of the set.
        name: the name of the file, one of `NOTES` or inputs.json. A file of another name is checked for its texts and
            numbers alone.
        advice: what to do where the file is damaged, as a sentence.

    Raises:
        DapError: it is no regular file of the folder, no JSON, or does not fit. The message names the file, and the line
            where it is known.
    """
    return read(folder, name, _model(name), advice) if there(folder, name) else None


@functools.cache
def _model(name: str) -> Any:
    return as_read(Inputs if name == "inputs.json" else NOTES.get(name, Plain))


def whole_note(folder: Path, name: str) -> dict[str, Any]:
    """What `read_note` reads; {} where there is no such file or it is damaged. A warning then names it, and it is made anew."""
    try:
        return read_note(folder, name, advice="") or {}
    except DapError as error:
        log.warning("%s It is made anew.", error)
        return {}


def leaks(real: Mapping[str, int]) -> list[str]:
    """Sentences about real images that are on both sides, from the counts in `images.json`; none where there are none."""
    both, drawn = real.get("test_in_train", 0), real.get("set_in_test", 0)
    said = [f"{both} of {real.get('test', both)} test images are training images too."] if both else []
    if drawn:
        of = real.get("set", drawn)
        said.append(
            f"{drawn} of {of} images of the set are test images, so it is judged on images that it was drawn from."
        )
    return said
