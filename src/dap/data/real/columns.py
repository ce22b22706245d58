"""Which columns of a parquet file hold the images and the labels, and what the labels are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dap.base.errors import DapError
from dap.base.parsing import Damaged, brief, counted, decode, parse_json, shown
from dap.data.real.names import some

if TYPE_CHECKING:
    import pyarrow as pa

USUAL = {
    "image": ("image", "img"),
    "clip": ("video", "clip", "image", "img"),
    "label": ("label", "labels", "fine_label", "class"),
}

_NO_LABEL = re.compile(
    r"(^|_)(id|ids|idx|index|key|url|path|file|filename|name|width|height|size|hash|md5|sha\d*|text|caption|captions|prompt|"
    r"description|title|sentence|source|license|split)$"
)
"""Names of columns that a reader must not take for labels because nothing else is there."""


def no_label(column: str) -> bool:
    """Whether a column is called as an id, a size, a caption or the like, and so holds no labels."""
    return _NO_LABEL.search(column.lower().replace(" ", "_").strip("_")) is not None


def is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return kinds.is_string(kind) or kinds.is_large_string(kind)


def is_words(kind: pa.DataType) -> bool:
    """Whether the values of a column are texts, each kept by itself or as the number of one of a few."""
    import pyarrow.types as kinds

    return is_text(kind) or (kinds.is_dictionary(kind) and is_text(kind.value_type))


def holds_files(kind: pa.DataType) -> bool:
    """Whether the values of a column are the bytes of files, alone or in a struct with the field `bytes`."""
    import pyarrow.types as kinds

    blob = kinds.is_binary(kind) or kinds.is_large_binary(kind)
    return blob or (kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def clip_columns(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> list[str]:
    said = [column for column in schema.names if features.get(column, {}).get("_type") == "Video"]
    return [field.name for field in schema if holds_files(field.type) and (not said or field.name in said)]


def image_columns(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> list[str]:
    said = [column for column in schema.names if features.get(column, {}).get("_type") == "Image"]
    found = said or [field.name for field in schema if holds_files(field.type)]
    named = [f.name for f in schema if f.name.lower() in ("image", "img", "image_path", "img_path") and is_text(f.type)]
    return found or named[:1]


def label_columns(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> list[str]:
    import pyarrow.types as kinds

    def is_label(field: pa.Field) -> bool:
        fits = is_text(field.type) or kinds.is_dictionary(field.type) or kinds.is_integer(field.type)
        return fits and (field.name in USUAL["label"] or not no_label(field.name))

    said = [column for column in schema.names if features.get(column, {}).get("_type") == "ClassLabel"]
    return said or [field.name for field in schema if is_label(field)]


def columns_of(
    schema: pa.Schema,
    features: dict[str, dict[str, Any]],
    where: str,
    wanted: Sequence[Literal["image", "clip", "label"]] = ("image", "label"),
) -> list[str]:
    """The names of the columns that hold what is wanted.

    Raises:
        DapError: there is no such column, or several that could be it.
    """
    images, clips = image_columns(schema, features), clip_columns(schema, features)
    labels = [name for name in label_columns(schema, features) if name not in (*images, *clips)]
    known: dict[str, list[str]] = {"image": images, "clip": clips, "label": labels}
    found: list[str] = []
    for what, columns in ((what, known[what]) for what in wanted):
        usual = USUAL[what]
        column = next((name for name in usual if name in columns), columns[0] if len(columns) == 1 else None)
        if column is None and not columns and (odd := next((name for name in usual if name in schema.names), None)):
            raise DapError(f"column {odd!r} of {where} holds {schema.field(odd).type}, {_WANTED[what]}")
        if column is None and columns:
            raise DapError(
                f"{where} has several columns that could be the {what}s: {some(columns, 6)}; call the right one {what!r}"
            )
        if column is None:
            lists = [
                field.name for field in schema if field.type.num_fields and field.name.lower() in ("images", "pixels")
            ]
            hint = f"column {lists[0]!r} holds {schema.field(lists[0]).type}; " if lists and what == "image" else ""
            raise DapError(f"{where} has no column of {what}s among {', '.join(schema.names)}; {hint}{_LACKING[what]}")
        found.append(column)
    return found


_WANTED = {
    "image": "and images are the bytes of image files (PNG, JPEG, …) or their paths; encode each image as one file",
    "clip": "and clips are the bytes of files (GIF, PNG, WebP, MP4, …); encode each clip as one file",
    "label": "and labels are whole numbers or names; write it as one of these",
}
_LACKING = {
    "image": "write the images as bytes of image files (PNG, JPEG, …) or as paths, in a column 'image'",
    "clip": "write the clips as bytes of files (GIF, PNG, WebP, MP4, …), in a column 'video'",
    "label": "captions, ids and sizes are no labels: write the class of each image, a name or a whole number, into a column "
    "'label'",
}


_BELOW = re.compile(r"-\d+(\.0*)?")


def label_of(value: Any) -> str | int | None:
    """A label as it counts: a name without the blanks around it, or a whole number from 0 on. None for whatever is none: an empty
    cell, a number below 0, which stands for a label that is kept secret, a fraction, and a list."""
    if value is None or isinstance(value, (list, dict, float)):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    text = str(value).strip()
    return None if not text or _BELOW.fullmatch(text) else text


def is_sure(column: str) -> bool:
    """Whether a column is called so that it is taken at its word: its values are labels, and be there one image of each."""
    return column.lower() in USUAL["label"]


def crowded(images: int, labels: int) -> bool:
    """Whether nearly every image has a label of its own. Where the column is not called so, these are captions or ids."""
    return images >= 4 and labels > images / 2


def said_crowded(column: str, images: int, labels: int) -> str:
    """A clause on what a column gives where most images have a label of their own."""
    return f"gives {counted(images, 'image')} {counted(labels, 'different value')} in its column {column!r}"


def check_groups(values: list[Any], column: str, names: list[str] | None, where: str) -> str | None:
    """Check that not nearly every row has a label of its own. A column that is called so is taken at its word.

    Returns:
        What is to be told of such a column; None where there is nothing to tell.

    Raises:
        DapError: nearly every row has one, so the column holds captions or ids.
    """
    kinds = set(map(type, values))
    if names or not (kinds <= {str} or kinds <= {int}):
        return None
    distinct = len({label_of(value) for value in values})
    if not crowded(len(values), distinct):
        return None
    said = said_crowded(column, len(values), distinct)
    if is_sure(column):
        return f"{shown(where)} {said}"
    raise DapError(
        f"{shown(where)} {said}, so it holds captions or ids and no labels; write the class of each image into a column 'label'"
    )


def numbered(values: list[Any], names: list[str] | None, where: str) -> tuple[np.ndarray, list[str] | None]:
    """The labels as numbers (n,), and the class names in label order. The names are None where labels are unnamed
    numbers."""
    # Numbers below 0 are left, as whoever numbers the classes tells them.
    values = [label_of(value) if isinstance(value, str) and value not in (names or ()) else value for value in values]
    kinds = {type(value) for value in values}
    if kinds <= {int}:
        if max(values, default=0) >= 2**63:  # parquet has unsigned numbers too
            raise DapError(f"{where} has {max(values)}, which is no label; labels are numbers or names")
        return np.array(values, dtype=np.int64), names
    if kinds != {str}:
        missing = values.count(None)
        found = f"{counted(missing, 'row')} without a label" if missing else f"labels of several types ({len(kinds)})"
        raise DapError(f"{where} has {found}; labels are numbers or names")
    places = {name: place for place, name in enumerate(names or sorted(set(values)))}
    if strangers := sorted(set(values) - set(places)):
        raise DapError(f"{where} has {some(strangers)}, not among the names in its metadata")
    return np.array([places[value] for value in values]), list(places)


def renumbered(values: list[Any], own: list[str] | None, names: list[str] | None, where: tuple[str, str]) -> list[Any]:
    """The labels of one of several files, numbered as the first file numbers its classes.

    Args:
        values: the labels of the file.
        own: the class names that the file lists; None where it lists none.
        names: those of the first file.
        where: the file and the first file, for the message.

    Raises:
        DapError: the file numbers other classes, so nobody knows what its numbers mean.
    """
    if own == names or not any(isinstance(value, int) for value in values):
        return values
    if own is None or names is None or sorted(own) != sorted(names):
        said = [
            f"{file} names {'none' if known is None else some(known)}"
            for file, known in zip(where, (own, names), strict=True)
        ]
        raise DapError(
            f"the files number different classes: {said[0]}, and {said[1]}. Write them again with the same names, or keep "
            "them in folders of their own"
        )
    places = {label: names.index(name) for label, name in enumerate(own)}
    return [places.get(value, value) if isinstance(value, int) else value for value in values]


def features_of(schema: pa.Schema, where: str) -> dict[str, dict[str, Any]]:
    """The feature types that Hugging Face datasets notes in the schema, by column; empty for other files."""
    note = (schema.metadata or {}).get(b"huggingface")
    if note is None:
        return {}
    try:
        said = f"the 'huggingface' metadata of {where}"
        features = parse_json(decode(note, said), said)["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except Damaged as error:
        raise DapError(f"{error} Write the file again.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DapError(f"the 'huggingface' metadata of {where} is damaged ({error!r}); write the file again") from error


def names_of(feature: Mapping[str, Any], where: str) -> list[str] | None:
    """The class names that the feature type of a label lists; None where it lists none."""
    names = feature.get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DapError(
            f"the 'huggingface' metadata of {where} lists {brief(names)} as class names; write the file again"
        )
    return names
