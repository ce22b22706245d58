"""The result of one training on a set, which is a line of trials.jsonl."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from dap.base.errors import DapError
from dap.base.fields import Count, FromFile, Name, Share
from dap.data.sets.notes import Matrix, Positive
from dap.protocol_names import WRITTEN, ordered

KEYS = ("judged", "tested", "by")
"""The other fields of a line of trials.jsonl: hashes of the set's images, of the test data and of the protocol."""
DATA = "data"
"""The field of a line with the name of the test data, which a report shows. Lines of earlier versions lack it."""
APART = "apart"
"""The words by which a report tells a trial apart from others of the same names; see
`evaluation.comparable`. No file has them."""


class TrialLine(FromFile, frozen=True):
    """A line of `trials.jsonl`, whoever wrote it: a `Trial` and its keys. A report needs the first four fields."""

    protocol: Name
    network: Name
    last: Share
    best: Share
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    epochs: Count | None = None
    n_train: Count | None = None
    n_test: Count | None = None
    headline: Literal["last", "best"] | None = None
    curve: Annotated[
        list[Annotated[list[Annotated[float, Field(ge=0, le=10**9)]], Field(min_length=2, max_length=2)]],
        Field(max_length=100_000),
    ] = []
    train_last: Share | None = None
    seconds: Positive | None = None
    device: Name | None = None
    torch: Name | None = None
    tested_on: Literal["test", "validation"] | None = None
    labels: Name | None = None
    confusion: Matrix | None = None
    classes: list[Name] | None = None
    judged: Name | None = None
    tested: Name | None = None
    by: Name | None = None
    data: Name | None = None


def one_each(trials: Iterable[Mapping[str, Any]], *, images: bool = False) -> list[Mapping[str, Any]]:
    """The lines of `trials.jsonl`, each training once. Two processes, or two folders of one set, may both have recorded it.

    It is the same training if protocol, network, seed, epochs, test data and hash of the protocol are equal; a line of an
    earlier version may lack the last two, which says nothing against it. Of such lines the one with the most keys counts, else
    the last one. A line without a seed is a training of its own.

    Args:
        trials: lines of `trials.jsonl`.
        images: whether the lines may be of several images, so that their key "judged" tells trainings apart too.
    """
    keys = (*(KEYS if images else KEYS[1:]), "epochs")
    kept = list[Mapping[str, Any]]()
    places = defaultdict[tuple[object, ...], list[int]](list)
    for line in trials:
        found = places[line["protocol"], line["network"], line.get("seed")] if line.get("seed") is not None else []
        same = next((at for at in found if agree(line, kept[at], keys)), None)
        if same is None:
            found.append(len(kept))
            kept.append(line)
        elif _known(line) >= _known(kept[same]):
            kept[same] = line
    return kept


def agree(one: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str] = KEYS) -> bool:
    """Whether two lines have the same keys, as far as both say them."""
    pairs = [(one.get(key), other.get(key)) for key in keys]
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def _known(line: Mapping[str, Any]) -> int:
    return sum(line.get(key) is not None for key in KEYS)


def whole_trials(lines: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """The trials of lines that have all that a `Trial` has. A report shows the others too, which others may have written."""
    found = list[Trial]()
    for line in lines:
        with contextlib.suppress(DapError):
            found.append(Trial.from_record(line))
    return found


@dataclass(frozen=True)
class Trial:
    """One network trained on one set. Accuracies are fractions."""

    protocol: str
    network: str
    seed: int
    epochs: int
    n_train: int
    n_test: int
    last: float
    """Accuracy on the test set after the last epoch."""
    best: float
    """The highest test accuracy of all looks. This look is chosen on the test set itself."""
    headline: str
    """"last" or "best": the accuracy that the protocol reports."""
    curve: tuple[tuple[int, float], ...]
    """(epoch, test accuracy) at every look."""
    train_last: float
    """Accuracy on the training images, without augmentation, after the last epoch."""
    seconds: float
    """Time of training and testing, the sum over all sessions of a resumed trial."""
    device: str
    torch: str
    tested_on: str = "test"
    """"test", or "validation": real training images that nothing else has seen."""
    labels: str = "hard"
    """"hard", or the name of the teacher."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """How many test images of a label (row) got each label (column) after the last epoch; () above 100 classes."""

    @property
    def accuracy(self) -> float:
        """The headline accuracy."""
        return self.best if self.headline == "best" else self.last

    def to_json(self) -> str:
        """One line of trials.jsonl."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Trial:
        """The inverse of `to_json`. The fields of a protocol's name are put into their one order.

        Raises:
            DapError: the line is not JSON, or a field is missing or unknown. The message names the field.
        """
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise DapError(f"Not a trial, since not JSON: {line[:60]!r}.") from error
        known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(cls)}
        given = set(fields) if isinstance(fields, dict) else set[str]()
        odd = (given - set(known)) | {name for name, needed in known.items() if needed and name not in given}
        if odd:
            raise DapError(f"Not a trial: missing or unknown fields {', '.join(sorted(odd))} in {line[:60]!r}.")
        try:  # null stands for a table that is not there
            tables = {name: tuple(map(tuple, fields[name] or ())) for name in ("curve", "confusion") if name in fields}
        except TypeError as error:
            raise DapError(f"Not a trial: its curve or its confusion is no table in {line[:60]!r}.") from error
        return cls(**{**fields, **tables, "protocol": ordered(str(fields["protocol"]))})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trial:
        """The trial of one line of trials.jsonl, without the fields that belong to no trial: `KEYS`, `DATA` and `APART`.

        Raises:
            DapError: a field is missing or unknown.
        """
        beside = {*KEYS, DATA, WRITTEN, APART}
        return cls.from_json(json.dumps({name: value for name, value in record.items() if name not in beside}))
