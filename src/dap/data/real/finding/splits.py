"""The words that people use for the parts of a data set, and the user's own word on where a part lies."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

ORDER: dict[str, tuple[Split, ...]] = {"train": ("train",), "test": ("test", "validation")}
"""The splits that can be opened, and for each the splits of a folder that it can be, the best one first."""

WORDS: dict[str, str] = {
    **dict.fromkeys(("train", "training", "trainval", "tr", "trn"), "train"),
    **dict.fromkeys(
        ("val", "valid", "validation", "validate", "validating", "vali", "vld", "dev", "devel", "development", "eval"),
        "validation",
    ),
    "evaluation": "validation",
    **dict.fromkeys(("test", "testing", "tests", "tst", "te"), "test"),
}
"""The words for a split, in lower case."""

WEAK = frozenset({"tr", "te"})
"""Words for a split that are as often something else, such as the codes of Turkish and Telugu."""

FILLERS = frozenset(
    [
        "set",
        "sets",
        "data",
        "dataset",
        "ds",
        "image",
        "images",
        "img",
        "imgs",
        "pic",
        "pics",
        "picture",
        "pictures",
        "photo",
        "photos",
        "seg",
        "split",
        "folder",
        "files",
        "jpg",
        "jpeg",
        "png",
        "partial",
        "full",
        "final",
        "raw",
        "original",
    ]
)
"""Words that stand beside the word for a split and change nothing, as in `seg_train`, `train_set` and `images_test`."""

_GLUED = re.compile(r"(data|images?|imgs?|sets?|split)$")


def split_of(name: str) -> Split | None:
    """The split that the name of a folder means, as `seg_train`, `Testing`, `ValidationSet`, `train2017` do; else None."""
    found = {_word(token) for token in _tokens(name)}
    return _one(found)


def split_of_file(name: str) -> Split | None:
    """The split that the name of a file means: one of its words is one for a split, as in `train-00000-of-00001.parquet`,
    `cats_test.parquet` and `testing-0.parquet`. None where no word is, or words of two splits are."""
    found = {word for token in _tokens(name.rpartition(".")[0] or name) if (word := _word(token)) is not None}
    return _one(found)


def is_weak(name: str) -> bool:
    """Whether only a word of `WEAK` says that the folder of this name is a split."""
    tokens = _tokens(name)
    return bool(tokens) and set(tokens) <= WEAK


def exact(names: Iterable[str]) -> list[str]:
    """The names that are a word for a split and nothing else."""
    return [name for name in names if name.lower() in WORDS]


def _one(found: Collection[str | None]) -> Split | None:
    return next((said for said in SPLITS if found == {said}), None)


def _tokens(name: str) -> list[str]:
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)  # TrainSet
    tokens = [token for token in re.split(r"[^a-z]+", parted.lower()) if token]
    return [token for token in tokens if token not in FILLERS]


def _word(token: str) -> str | None:
    return WORDS.get(token) or WORDS.get(_GLUED.sub("", token))
