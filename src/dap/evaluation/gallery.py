"""The images a report shows: the same slots of every group side by side, as base64, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dap.evaluation.records import Json, SetRecord
from dap.evaluation.summary import Group

ByClass = dict[str, dict[int, Json]]

MAX_SLOTS, MAX_CLASSES = 10, 20
MAX_SIDE = 64
"""Larger images are shown reduced to `THUMBNAIL` pixels."""
THUMBNAIL = 96
BUDGET = 4_500_000
"""Bytes of base64 images in one page; fewer slots are shown where ten of each would exceed it."""


def gallery(groups: Sequence[Group]) -> dict[str, Any]:
    """Classes, each with a row per group and a column per slot, and notes on what was left out.

    Every group is shown by its set of the seed that most groups have, so that a column shares seed and slot; a group
    without that seed is shown by its first set, and its row names the seed.
    """
    chosen = [(group, _with_seed(group, common_seed(groups))) for group in groups]
    indexed = [(group, record, _by_class(record)) for group, record in chosen]
    names = list(dict.fromkeys(name for _, _, classes in indexed for name in classes))
    shown = names[:MAX_CLASSES]
    columns = {name: sorted({slot for _, _, classes in indexed for slot in classes.get(name, ())}) for name in shown}
    most = max(map(len, columns.values()), default=0)
    slots = _affordable(indexed, columns)
    notes = [f"The first {slots} of {most} slots of each class are shown."] if slots < most else []
    notes += [f"The first {MAX_CLASSES} of {len(names)} classes are shown."] if len(names) > MAX_CLASSES else []
    if len({record.seed for _, record in chosen}) > 1:
        notes.append("Not all groups have a set of the same seed; each row names its own.")
    classes, reduced = [], False
    for name in shown:
        rows = []
        for group, record, by_class in indexed:
            images = by_class.get(name, {})
            tiles = [_tile(record, images[slot]) if slot in images else None for slot in columns[name][:slots]]
            reduced = reduced or any(tile and tile["reduced"] for tile in tiles)
            rows.append({"label": group.label, "seed": record.seed, "tiles": tiles})
        classes.append({"name": name, "slots": columns[name][:slots], "rows": rows})
    if reduced:
        notes.append(f"Images are shown reduced to {THUMBNAIL} pixels.")
    return {"classes": classes, "notes": notes}


def common_seed(groups: Sequence[Group]) -> object:
    """The seed that most groups have a set of; of several the one met first."""
    counts = Counter(seed for group in groups for seed in dict.fromkeys(group.seeds) if seed is not None)
    return max(counts, key=lambda seed: counts[seed], default=None)


def _with_seed(group: Group, seed: object) -> SetRecord:
    return next((record for record in group.sets if record.seed == seed), group.first)


def _by_class(record: SetRecord) -> ByClass:
    classes: ByClass = {}
    for image in record.images:
        label = image["label"]
        name = record.class_names[label] if 0 <= label < len(record.class_names) else f"label {label}"
        classes.setdefault(name, {})[image["slot"]] = image
    return classes


def _file(record: SetRecord, image: Json) -> Path | None:
    """The image's file; None where it is missing or a manifest points outside the set."""
    file = (record.path / image["path"]).resolve()
    return file if file.is_relative_to(record.path.resolve()) and file.is_file() else None


def _affordable(indexed: Sequence[tuple[Group, SetRecord, ByClass]], columns: dict[str, list[int]]) -> int:
    """How many slots of every class fit into the budget: at least one, at most `MAX_SLOTS`."""
    most = max(map(len, columns.values()), default=0)
    spent, slots = 0, 0
    for k in range(min(MAX_SLOTS, most)):
        kth = [(name, slots_of[k]) for name, slots_of in columns.items() if k < len(slots_of)]
        places = [(record, classes.get(name, {}).get(slot)) for _, record, classes in indexed for name, slot in kth]
        files = [_file(record, image) for record, image in places if image]
        spent += sum(min(file.stat().st_size, 8_000) * 4 // 3 for file in files if file)
        if slots and spent > BUDGET:
            break
        slots = k + 1
    return slots


def _tile(record: SetRecord, image: Json) -> dict[str, Any]:
    """One image for the page; `src` is None where the file is missing or cannot be read."""
    file = _file(record, image)
    src, reduced = embedded(file) if file else (None, False)
    about = {"slot": image["slot"], "seed": image.get("seed"), "sha256": str(image.get("sha256") or "")[:12]}
    told = [f"{name} {value}" for name, value in about.items() if value is not None and value != ""]
    return {"src": src, "reduced": reduced, "about": " · ".join(told)}


def embedded(file: Path) -> tuple[str | None, bool]:
    """A data URI of an image, and whether it was reduced; (None, False) for a file that is no image.

    A PNG of at most 64 px is embedded byte for byte, so it is the file that its sha256 names.
    """
    from PIL import Image

    data = file.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            small, png = max(image.size) <= MAX_SIDE, image.format == "PNG"
            image.load()
            if not (small and png):
                buffer = io.BytesIO()
                rgb = image.convert("RGB")
                if not small:
                    rgb.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
                rgb.save(buffer, "PNG" if small else "JPEG", quality=82)
                data = buffer.getvalue()
    except (OSError, ValueError, SyntaxError):
        return None, False
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", not small
