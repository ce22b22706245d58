"""The images of a report, embedded as base64 within a budget of bytes. The same slots of all groups stand above each other."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dap.base.files import sha256_of
from dap.base.parsing import shown
from dap.data.sets.notes import leaks
from dap.evaluation.report.meanings import noun_of, worded
from dap.evaluation.report.records import Json, SetRecord, is_number
from dap.evaluation.report.summary import Group
from dap.evaluation.report.text import count, figure

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


def inspected(record: SetRecord) -> dict[str, Json]:
    """The entries of `images.json` by the paths of the images."""
    images = record.inspected.get("images")
    listed = images if isinstance(images, list) else []
    return {one["path"]: one for one in listed if isinstance(one, dict) and isinstance(one.get("path"), str)}


def _seen(record: SetRecord) -> dict[str, Json]:
    """The facts about each image by its path: its entry of `inspected`, and as `zero_shot` the label that a backbone
    predicts."""
    seen: dict[str, Json] = inspected(record)
    images = record.zeroshot.get("images")
    for one in images if isinstance(images, list) else []:
        if isinstance(one, dict) and isinstance(one.get("path"), str):
            seen[one["path"]] = {**seen.get(one["path"], {}), "zero_shot": one.get("predicted")}
    return seen


def near_copies(groups: Sequence[Group]) -> list[str]:
    """Sentences about images that are near-copies of real training images, and about real images that are on both sides."""
    told = []
    for group in groups:
        for record in group.sets:
            real, rule = record.inspected.get("real") or {}, record.inspected.get("rule") or {}
            told += [f"{shown(record.path)}: {worded(sentence, record.noun)}" for sentence in leaks(real)]
            if rule.get("why"):
                told.append(
                    f"{shown(record.path)}: only exact copies of real {record.noun}s are flagged. {rule['why']}"
                )
        looks, noun = [(record, list(inspected(record).values())) for record in group.sets], group.first.noun
        copies = [(record, one) for record, images in looks for one in images if one.get("copy") is True]
        total = sum(len(images) for _, images in looks)
        if not copies:
            continue
        sets = f" in {len(looks)} sets" if len(looks) > 1 else ""
        if len(copies) == total:
            told.append(
                f"All {total:,} {noun}s{sets} of {group.label} are near-copies of real training {noun}s, "
                f"as a selection of real {noun}s is by nature: publish them only where the real {noun}s may be."
            )
            continue
        seeded = [f" of seed {record.seed}" if len(looks) > 1 else "" for record, _ in copies]
        where = [f"{record.class_name(one.get('label'))} slot {one.get('slot')}" for record, one in copies]
        places = [place + seed for place, seed in zip(where, seeded, strict=True)][:3]
        more = f" and {len(copies) - 3:,} more" if len(copies) > 3 else ""
        one = len(copies) == 1
        verb = "is flagged as a near-copy" if one else "are flagged as near-copies"
        verb += f" of a real training {noun}" if one else f" of real training {noun}s"
        rates, twins = [_rate(record) for record, _ in looks], [_twins(record) for record, _ in looks]
        fair = f"; so are about {100 * max(rates):.2g} % of {noun}s that copy nothing" if max(rates) else ""
        if max(twins) > max(rates):
            fair = f"; {100 * max(twins):.0f} % of the real {noun}s are as near to another real {noun} of their class"
        told.append(
            f"{len(copies):,} of {count(total, noun)}{sets} of {group.label} {verb}: "
            f"{', '.join(places)}{more}. Look at them before this set leaves your hands{fair}."
        )
    return told


def doubted(groups: Sequence[Group]) -> list[str]:
    """Sentences about images that are probably no images of anything, and about images of a kind that the backbone of a set has
    probably never seen."""
    told = []
    for group in groups:
        several, noun = len(group.sets) > 1, group.first.noun
        found = [(record, image) for record in group.sets for image in record.images if _doubt(image)]
        if found:
            of = count(sum(len(record.images) for record in group.sets), noun) + f" in {len(group.sets)} sets" * several
            places = [
                f"{record.class_name(image['label'])} slot {image['slot']}"
                + f" of seed {record.seed}" * several
                + f" ({_doubt(image)})"
                for record, image in found[:3]
            ]
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            are = f"is probably no {noun}" if len(found) == 1 else f"are probably no {noun}s"
            told.append(
                f"{len(found)} of {of} of {group.label} {are} of anything: {'; '.join(places)}{more}. "
                "An accuracy says little of such a set."
            )
        ratios = [float(value) for record in group.sets if is_number(value := record.env.get("strangeness"))]
        if ratios:
            path = group.first.value("backbone.path")
            name = shown(path)[:200] if isinstance(path, str) else "the backbone"
            told.append(
                f"The backbone of {group.label}, {name}, has probably never seen {noun}s like the real ones: it predicted their "
                f"noise {max(ratios):.2f} times as badly as a guess that knows only their mean and variance (trained weights: "
                f"0.2 to 0.5). So the {noun}s of this set do not show its classes, whatever their labels say."
            )
    return told


def _doubt(image: Json) -> str:
    """Why an image is probably no image of anything, as its line in the manifest says; "" where it says nothing."""
    doubt = image.get("doubt")
    return shown(doubt)[:200] if isinstance(doubt, str) else ""


def _rate(record: SetRecord) -> float:
    """The share of fresh real images that the search is calibrated to flag; 0 where it is not recorded."""
    rule = record.inspected.get("rule")
    pixel = rule.get("pixel") if isinstance(rule, dict) else None
    rate = pixel.get("rate") if isinstance(pixel, dict) else None
    return rate if is_number(rate) else 0.0


def _twins(record: SetRecord) -> float:
    """The share of real images that the search would flag beside the others; 0 where it is not recorded."""
    rule = record.inspected.get("rule")
    share = rule.get("reals") if isinstance(rule, dict) else None
    return share if is_number(share) else 0.0


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
    doubt = _doubt(image)
    told += [f"probably no {record.noun} of anything: {doubt}"] if doubt else []
    told += [f"near-copy of a real training {record.noun}"] if copy else []
    flags = {"reduced": reduced, "near_copy": copy, "wrong": wrong, "judged": bool(predicted), "nearest": bool(near)}
    flags["odd"] = bool(doubt)
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
