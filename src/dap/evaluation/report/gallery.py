"""The images of a report, embedded as base64 within a budget of bytes. The same slots of all groups stand above each other."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dap.base.files import sha256_of
from dap.evaluation.report.groups import Group
from dap.evaluation.report.meanings import noun_of
from dap.evaluation.report.records import Json, SetRecord, is_number
from dap.evaluation.report.suspicious import doubt, inspected
from dap.evaluation.report.text import figure

ByClass = dict[str, dict[int, Json]]

MAX_SLOTS, MAX_CLASSES = 10, 20
"""Up to so many slots of so many classes are shown as they are."""
FEW = 2
"""Up to so many slots of every further class are shown, reduced to `SMALL` pixels."""
MAX_SIDE = 64
"""Larger images are shown reduced to `THUMBNAIL` pixels."""
THUMBNAIL, SMALL = 96, 40
LARGEST_IMAGE = 100_000_000
"""The most pixels of an image that is shown."""
LARGEST_CLIP = 30_000
"""The most bytes of a clip that is embedded as it is."""
BUDGET, FURTHER_BUDGET = 4_500_000, 8_000_000
"""Bytes of base64 images in one page, of the first classes and of all others. Fewer slots are shown where all would exceed it."""
REAL_BUDGET = 2_500_000
"""Bytes of base64 for the nearest real images. Images beyond the budget are named and not shown."""
SPACES = {"feature": "by features", "pixel": "in pixels"}
"""The spaces in which the nearest real image is looked for."""


class NearestReals:
    """The nearest real images of a page. Each is embedded once, even where it is the nearest one of several images."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.left_out = False
        self._known: dict[str, int | None] = {}
        self._spent = 0

    def add(self, file: Path) -> int | None:
        """The position of the image in `sources`; None where the image cannot be read or the budget is spent."""
        digest = sha256_of(file) or ""
        if digest not in self._known:
            source, _ = embedded(file)
            fits = source is not None and self._spent + len(source) <= REAL_BUDGET
            self.left_out |= source is not None and not fits
            self._known[digest] = len(self.sources) if fits else None
            if source is not None and fits:
                self._spent += len(source)
                self.sources.append(source)
        return self._known[digest]


def gallery(groups: Sequence[Group]) -> dict[str, Any]:
    """Classes with a row for each group and a column for each slot, the nearest real images, and notes.

    Each group shows its set of the seed that most groups have, so that the images of a column have the same seed and slot. A
    group without that seed shows its first set, and the row names the seed.
    """
    chosen, noun = [(g, with_seed(g, common_seed(groups))) for g in groups], noun_of(g.first.noun for g in groups)
    indexed = [(group, record, _by_class(record)) for group, record in chosen]
    names = list(dict.fromkeys(name for _, _, classes in indexed for name in classes))
    first = names[:MAX_CLASSES]
    columns = {name: sorted({slot for _, _, classes in indexed for slot in classes.get(name, ())}) for name in names}
    most = max((len(columns[name]) for name in first), default=0)
    slots = _affordable(indexed, {name: columns[name] for name in first})
    few = min(FEW, slots)
    notes = [f"The first {slots} of {most:,} slots of each class are shown."] if slots < most else []
    if len(names) > MAX_CLASSES:
        notes.append(f"Of classes after the first {MAX_CLASSES}, at most {few} slots are shown, and small.")
    if len({record.seed for _, record in chosen}) > 1:
        notes.append("Not all groups have a set of the same seed; each row names its own.")
    looked = {record.path: _seen(record) for _, record in chosen}
    classes, reals, spent = [], NearestReals(), 0
    for at, name in enumerate(names):
        rows, side = [], None if at < MAX_CLASSES else SMALL
        slots_here = columns[name][: slots if side is None else few if spent < FURTHER_BUDGET // 2 else 1]
        if spent > FURTHER_BUDGET:
            notes.append(f"The first {at} of {len(names)} classes are shown, to keep the page small.")
            break
        for group, record, by_class in indexed:
            images, seen = by_class.get(name, {}), looked[record.path]
            tiles = [
                _tile(record, images[slot], seen.get(images[slot]["path"]), reals, side) if slot in images else None
                for slot in slots_here
            ]
            spent += sum(len(tile["src"] or "") for tile in tiles if tile) if side else 0
            rows.append({"label": group.label, "seed": record.seed, "tiles": tiles})
        classes.append({"name": name, "slots": slots_here, "rows": rows})
    tiles = [tile for one in classes for row in one["rows"] for tile in row["tiles"] if tile]
    if any(tile["reduced"] for one in classes[:MAX_CLASSES] for row in one["rows"] for tile in row["tiles"] if tile):
        notes.append(f"{noun.capitalize()}s are shown reduced to {THUMBNAIL} pixels.")
    if reals.left_out:
        notes.append(f"Not every nearest real {noun} is shown, to keep the page small.")
    marks = {mark: any(tile[mark] for tile in tiles) for mark in ("near_copy", "wrong", "nearest", "judged", "odd")}
    return {"classes": classes, "notes": notes, "reals": reals.sources, "marks": marks}


def common_seed(groups: Sequence[Group]) -> object:
    """The seed of which most groups have a set; where several seeds do, the first of them."""
    counts = Counter(seed for group in groups for seed in dict.fromkeys(group.seeds) if seed is not None)
    return max(counts, key=lambda seed: counts[seed], default=None)


def with_seed(group: Group, seed: object) -> SetRecord:
    """The set of the group that has this seed; the first set where none has it."""
    return next((record for record in group.sets if record.seed == seed), group.first)


def _seen(record: SetRecord) -> dict[str, Json]:
    """The facts about each image by its path: its entry of `inspected`, and as `zero_shot` the label that a backbone
    predicts."""
    seen: dict[str, Json] = inspected(record)
    images = record.zeroshot.get("images")
    for one in images if isinstance(images, list) else []:
        if isinstance(one, dict) and isinstance(one.get("path"), str):
            seen[one["path"]] = {**seen.get(one["path"], {}), "zero_shot": one.get("predicted")}
    return seen


def _by_class(record: SetRecord) -> ByClass:
    classes: ByClass = {}
    for image in record.images:
        classes.setdefault(record.class_name(image["label"]), {})[image["slot"]] = image
    return classes


def file_in(record: SetRecord, path: object) -> Path | None:
    """A file of the set; None where it is missing or the path points outside the set."""
    file = (record.path / path).resolve() if isinstance(path, str) and path else None
    return file if file and file.is_relative_to(record.path.resolve()) and file.is_file() else None


def _affordable(indexed: Sequence[tuple[Group, SetRecord, ByClass]], columns: dict[str, list[int]]) -> int:
    """How many slots of every class fit into the budget: at least one, at most `MAX_SLOTS`."""
    most = max(map(len, columns.values()), default=0)
    spent, slots = 0, 0
    for k in range(min(MAX_SLOTS, most)):
        kth = [(name, slots_of[k]) for name, slots_of in columns.items() if k < len(slots_of)]
        places = [(record, classes.get(name, {}).get(slot)) for _, record, classes in indexed for name, slot in kth]
        files = [(record, file_in(record, image["path"])) for record, image in places if image]
        spent += sum(min(file.stat().st_size, _most(record)) * 4 // 3 for record, file in files if file)
        if slots and spent > BUDGET:
            break
        slots = k + 1
    return slots


def _most(record: SetRecord) -> int:
    """About how many bytes an image of a set has in the page at most. A clip has more of them."""
    return LARGEST_CLIP if is_number(record.value("data.frames")) else 8_000


def _tile(record: SetRecord, image: Json, seen: Json | None, reals: NearestReals, side: int | None) -> dict[str, Any]:
    """One image for the page; `src` is None where the file is missing or cannot be read. A `side` makes it so small, and leaves
    out its nearest real images."""
    file = file_in(record, image["path"])
    src, reduced = embedded(file, side) if file else (None, False)
    about = {"slot": image["slot"], "seed": image.get("seed"), "sha256": str(image.get("sha256") or "")[:12]}
    told = [f"{name} {value}" for name, value in about.items() if value is not None and value != ""]
    seen = seen or {}
    predicted, wrong = _predicted(record, image["label"], seen)
    near = _nearest(record, seen, reals) if side is None else []
    told += [predicted] if predicted else []
    told += [f"to the backbone {record.class_name(seen['zero_shot'])}"] if "zero_shot" in seen else []
    told += [f"nearest real {record.noun} {one['space']}: {one['name']}" for one in near]
    copy = seen.get("copy") is True
    doubtful = doubt(image)
    told += [f"probably no {record.noun} of anything: {doubtful}"] if doubtful else []
    told += [f"near-copy of a real training {record.noun}"] if copy else []
    flags = {"reduced": reduced, "near_copy": copy, "wrong": wrong, "judged": bool(predicted), "nearest": bool(near)}
    flags["odd"] = bool(doubtful)
    return {"src": src, "about": " · ".join(told), "near": near, **flags}


def _predicted(record: SetRecord, label: int, seen: Json) -> tuple[str, bool]:
    """The predicted label in words, and whether it differs from the label of the image."""
    predicted = seen.get("predicted")
    if not isinstance(predicted, int) or isinstance(predicted, bool):
        return "", False
    probability = seen.get("probability")
    sure = f" ({100 * probability:.0f} %)" if is_number(probability) else ""
    verdict = "as labelled" if predicted == label else f"not {record.class_name(label)}"
    return f"predicted {record.class_name(predicted)}{sure}, {verdict}", predicted != label


def _nearest(record: SetRecord, seen: Json, reals: NearestReals) -> list[dict[str, Any]]:
    """The nearest real image in each space that was searched: its name, its distance, and its position in `reals`."""
    nearest = seen.get("nearest")
    found = []
    for space, said in SPACES.items():
        one = nearest.get(space) if isinstance(nearest, dict) else None
        if not isinstance(one, dict):
            continue
        file = file_in(record, one.get("file"))
        label = one.get("label")
        name = record.class_name(label) if isinstance(label, int) else ""
        distance = f"distance {figure(one['distance'])}" if is_number(one.get("distance")) else ""
        key = "" if one.get("key") is None else str(one["key"])
        place = reals.add(file) if file else None
        found.append({"space": said, "name": ", ".join(filter(None, (name, key, distance))), "place": place})
    return found


def embedded(file: Path, side: int | None = None) -> tuple[str | None, bool]:
    """A data URI of an image, and whether it was reduced; (None, False) for a file that is no image.

    Args:
        file: the image.
        side: the largest number of pixels a side; default: `THUMBNAIL` for what is larger than `MAX_SIDE`.

    A PNG of at most 64 px is embedded byte for byte, so that the sha256 in the manifest is that of the embedded file. A clip
    plays: an animated PNG that is large or has many bytes becomes an animated WebP.
    """
    from PIL import Image

    from dap.data.real.clips.moving import is_moving, preview
    from dap.data.real.decode import BrokenImage, pixels, read_file

    try:
        data = read_file(file)
        rgb = Image.fromarray(pixels(data, LARGEST_IMAGE))
    except BrokenImage:
        return None, False
    small = max(rgb.size) <= (side or MAX_SIDE)
    if is_moving(data) and not (small and len(data) <= LARGEST_CLIP):
        film = preview(data, max(rgb.size) if small else side or THUMBNAIL)
        return f"data:image/webp;base64,{base64.b64encode(film).decode()}", not small
    if not (small and data.startswith(b"\x89PNG")):
        buffer = io.BytesIO()
        if not small:
            rgb.thumbnail((side or THUMBNAIL, side or THUMBNAIL), Image.Resampling.LANCZOS)
        rgb.save(buffer, "PNG" if small else "JPEG", quality=82)
        data = buffer.getvalue()
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", not small
