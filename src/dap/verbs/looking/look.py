"""`dap look`: what a folder of images or a distilled set holds, in sentences, with a contact sheet."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dap.backbones import device_of
from dap.base.errors import DapError
from dap.base.parsing import counted, path_of, shown
from dap.base.watch import Watcher
from dap.data.real.base import Source
from dap.data.real.counts import counts_of
from dap.data.real.finding.outputs import check_outside_source
from dap.data.real.parquet import ParquetSource
from dap.data.real.sizes import kind_of, told
from dap.data.real.sources import open_source
from dap.data.sets.distilled import DistilledSet
from dap.evaluation.current import AGAIN, keys_now, of_these_images
from dap.evaluation.measures.embedding import embedding
from dap.evaluation.measures.measures import extract
from dap.recipe import Data, Recipe
from dap.verbs.looking.alike import SIDE, Seen, groups, near_pairs, outliers, same, seen
from dap.verbs.looking.sheet import numbered, write_sheet
from dap.verbs.options import Machine, permitted
from dap.verbs.recorded import check_there, of_others, recorded_data

KINDS = 2000
"""The heads of at most so many files of a part are read for sizes and modes."""
NAMED = 5
"""How many images or groups a sentence names."""


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
        sentences: in plain words, the most important ones first in each part.
        facts: the same as JSON values; lists are whole here.
        sheet: the contact sheet.
    """

    sentences: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    sheet: Path | None = None


@permitted
def look(
    what: str | Path,
    *,
    out: str | Path | None = None,
    data: str | None = None,
    classes: Sequence[str] | None = None,
    split: Any = None,
    reference: Path | None = None,
    most: int = 20_000,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> Look:
    """Look into a folder of images, or into a distilled set: counts, sizes, modes, duplicates, leaks, labels and broken files.

    Nothing is changed, and what is found is no error. `alike` says when two images are near-duplicates, and when an image looks
    like another class.

    Args:
        what: a folder or name of real images as for `--data`, or a distilled set.
        out: the file of the contact sheet, a .png; None: no sheet. There is none either where no image can be decoded.
        data: for a set, the real images to look for in it; default: those that it was made of, if they are there.
        classes: the classes, as in a recipe.
        split: where the splits lie, as `data.split` of a recipe.
        reference: a file of `train_teacher`, whose features tell which images look like another class; default: those of the
            measures, see `embedding`.
        most: the largest number of images of each part that are looked at. Of more, an equal share of each class is drawn.
        machine: the device.
        watcher: is told of every class.

    Raises:
        DapError: there are no images, or the contact sheet would lie among them.
        OSError: the contact sheet cannot be written.
    """
    if most < 1:
        raise DapError(f"At least one image is looked at, not {most}; give --most a larger number.")
    if out is not None and Path(out).suffix.lower() != ".png":
        raise DapError(f"The contact sheet is a .png file, and {out} has another ending.")
    device = str(device_of(machine.device))
    made = _set(what)
    quiet = logging.getLogger("dap")
    before, quiet.level = quiet.level, logging.ERROR  # broken images are listed below, and not one by one
    try:
        parts, sentences, where = _parts(what, made, data, classes, split)
        if out is not None:
            for source in parts.values():
                check_outside_source(Path(out).parent, source)
        found = {name: seen(source, name, most, watcher.work) for name, source in parts.items()}
    finally:
        quiet.level = before
    facts: dict[str, Any] = {"path": str(what), "kind": "set" if made else "images", "parts": {}}
    for name, source in parts.items():
        told_of, lines = _of_part(found[name], source, where, reference, device)
        facts["parts"][name] = told_of
        sentences += lines
    names = list(found)
    facts["leaks"] = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            known, asked = (second, first) if first == "set" else (first, second)
            told_of, lines = _leaks(found[known], found[asked])
            facts["leaks"].append(told_of)
            sentences += lines
    sheet, first = None, next(iter(found.values()))
    if out is not None and not len(first.keys):
        sentences.append("There is no contact sheet, as no image can be decoded.")
    elif out is not None:
        sheet = write_sheet(first, Path(out))
        sentences += numbered(first)
    return Look([_one_line(line) for line in sentences], facts, sheet)


def _one_line(text: str) -> str:
    return " ".join(shown(text).split())


def _set(what: str | Path) -> DistilledSet | None:
    place = path_of(what, "A set, or a folder of images,")
    return DistilledSet.open(place) if place.is_dir() and (place / "classes.json").is_file() else None


def _parts(
    what: str | Path, made: DistilledSet | None, data: str | None, classes: Sequence[str] | None, split: Any
) -> tuple[dict[str, Source], list[str], str]:
    """The parts to look at, what is to be said of them first, and the name of the real data."""
    if made is None:
        values = Recipe.parse({"data": {"path": str(what), "classes": classes, "split": split}}).data
        train = _open(values, "train")
        parts, lines = {"train": train}, list[str]()
        try:
            test = _open(values, "test", train.class_names)
            if train.place is None or test.place != train.place:
                parts["test"] = test
        except DapError as error:
            lines = [f"There are no test images: {error}"]
        return parts if len(parts) > 1 else {"images": train}, lines, values.path
    if not made.records:
        raise DapError(f"{made.path} holds no finished image yet; run dap distill again to go on.")
    names = {folder: name for folder, name in zip(made.folders, made.class_names, strict=True)}
    parts = {"set": open_source(made.path / "images", size=SIDE, max_bad_fraction=1.0, chosen={"train": "."})}
    parts["set"].class_names = tuple(names.get(folder, folder) for folder in parts["set"].class_names)
    problems = made.verify()
    lines = [f"The set is not whole: {'; '.join(problems[:3])}."] if problems else []
    lines += _near_copies(made)
    recorded = {} if of_others(made, data) else recorded_data(made)
    values = {key: recorded[key] for key in ("path", "split") if recorded.get(key)} | ({"path": data} if data else {})
    if values.get("path"):
        chosen = Recipe.parse({"data": {**values, "classes": list(made.class_names)}}).data
        try:
            if recorded:
                check_there(made, values["path"])
        except DapError as error:
            return parts, [*lines, str(error)], str(made.path)
        for name, part in (("real training images", "train"), ("real test images", "test")):
            try:
                parts[name] = _open(chosen, part)
            except DapError as error:
                lines.append(f"The {name} were not looked at: {error}")
    return parts, lines, str(values.get("path") or made.path)


def _near_copies(made: DistilledSet) -> list[str]:
    """What `dap evaluate` found out on near-copies of real images, as far as this is of the images that the set holds now."""
    said = made.noted("images.json") or {}
    listed = said.get("images") or []
    if not listed:
        return []
    if not of_these_images(said, made.records, keys_now(made.records, made.class_names)):
        return [f"What dap evaluate said of near-copies is left out. {AGAIN}."]
    copies = [one for one in listed if one.get("copy") is True]
    unknown = sum(one.get("copy") is None for one in listed)
    lines = list[str]()
    if copies or unknown < len(listed):
        flagged = f"{counted(len(copies), 'image')} of the set {_are(copies)} flagged as near-copies of real images"
        lines.append(f"{flagged} by dap evaluate.")
    if unknown:
        they, why = "it is a near-copy" if unknown == 1 else "they are near-copies", (said.get("rule") or {}).get("why")
        told = f"Of {counted(unknown, 'image')} of the set dap evaluate could not tell whether {they} of real images."
        lines.append(f"{told} {why}" if why else told)
    return lines


def _open(data: Data, part: str, classes: Sequence[str] | None = None) -> Source:
    chosen = None if data.split is None else data.split.given()
    return open_source(data.path, part, size=SIDE, classes=classes or data.classes, max_bad_fraction=1.0, chosen=chosen)


def _of_part(
    part: Seen, source: Source, data: str, reference: Path | None, device: str
) -> tuple[dict[str, Any], list[str]]:
    """What one part holds."""
    name, counts = part.name, counts_of(source)
    by_class = dict(zip(source.class_names, counts, strict=True))
    kinds = _kinds(source)
    sizes, modes, formats = [one[0] for one in kinds], [one[1] for one in kinds], [one[2] for one in kinds]
    least, largest = min(by_class, key=lambda one: by_class[one]), max(by_class, key=lambda one: by_class[one])
    spread = (
        f"{counts[0]:,} in each"
        if len(set(counts)) == 1
        else f"from {by_class[least]:,} ({least}) to {by_class[largest]:,} ({largest})"
    )
    lines = [f"{name}: {counted(sum(counts), 'image')} of {counted(len(counts), 'class')}, {spread}."]
    lines += [f"{name}: {note}." for note in source.notes]
    if sizes or source.sizes():
        lines.append(
            f"{name}: sizes {told(sizes or source.sizes())} px"
            + (f"; {_counted(modes)}; {_counted(formats)}." if modes else ".")
        )
    looked = len(part.keys) + len(part.broken)
    if looked < part.of:
        lines.append(f"{name}: {looked:,} of these {part.of:,} images were looked at; --most looks at more.")
    if part.broken:
        first = "; ".join(f"{key} ({reason})" for key, reason in part.broken[:NAMED])
        lines.append(f"{name}: {counted(len(part.broken), 'file')} cannot be decoded: {first}. Repair or remove them.")
    exact = same(part.hashes())
    twice = {place for group in exact for place in group[1:]}
    near = [
        group for group in groups(len(part.keys), list(near_pairs(part.pictures))) if set(group) - twice - {group[0]}
    ]
    across = [group for group in exact if len({int(part.labels[place]) for place in group}) > 1]
    lines += _grouped(part, exact, "the same picture", len(twice))
    if across:
        lines.append(
            f"{name}: {counted(len(across), 'group')} of them {_are(across)} in several classes: {_named(part, across)}."
        )
    lines += _grouped(part, near, "nearly the same", sum(len(group) - 1 for group in near))
    which, function = embedding(data, SIDE, reference, device)
    odd = list[tuple[int, int]]()
    if len(part.keys) > 20 and len(counts) > 1:
        features = extract(function, part.pictures.float() / 255).float().cpu()
        odd = outliers(features, part.labels)
    if odd:
        first = "; ".join(f"{part.told(place)} looks like {part.class_names[label]}" for place, label in odd[:NAMED])
        lines.append(
            f"{name}: {counted(len(odd), 'image')} may have a wrong label, by the features of {which}: {first}."
        )
    facts = {
        "images": sum(counts),
        "classes": by_class,
        "looked_at": looked,
        "sizes": sorted({f"{width}x{height}" for width, height in sizes or source.sizes()})[:100],
        "modes": dict(Counter(modes)),
        "formats": dict(Counter(formats)),
        "broken": [{"image": key, "reason": reason} for key, reason in part.broken],
        "duplicates": [[part.keys[place] for place in group] for group in exact],
        "near_duplicates": [[part.keys[place] for place in group] for group in near],
        "label_outliers": [
            {
                "image": part.keys[place],
                "label": part.class_names[int(part.labels[place])],
                "looks_like": part.class_names[label],
            }
            for place, label in odd
        ],
        "features": which,
    }
    return facts, lines


def _leaks(first: Seen, second: Seen) -> tuple[dict[str, Any], list[str]]:
    """Images of one part that are in the other part too."""
    known = {found: place for place, found in enumerate(first.hashes())}
    exact = [(known[found], place) for place, found in enumerate(second.hashes()) if found in known]
    done = {place for _, place in exact}
    near = [(i, j) for i, j in near_pairs(first.pictures, second.pictures) if j not in done]
    near = list({j: (i, j) for i, j in reversed(near)}.values())[::-1]
    lines = []
    for pairs, words in ((exact, "the same picture as an image"), (near, "nearly the same as an image")):
        if pairs:
            named = "; ".join(f"{second.told(j)} and {first.told(i)}" for i, j in pairs[:NAMED])
            lines.append(
                f"{counted(len(pairs), 'image')} of {second.name} {_are(pairs)} {words} of {first.name}: {named}."
            )
    if not lines:
        lines = [f"No image of {second.name} is among those of {first.name}."]
    told_of = {"of": second.name, "among": first.name}
    told_of |= {
        kind: [{"image": second.keys[j], "like": first.keys[i]} for i, j in pairs]
        for kind, pairs in (("same", exact), ("near", near))
    }
    return told_of, lines


def _kinds(source: Source) -> list[tuple[tuple[int, int], str, str]]:
    """Size, mode and format of images by the heads of their files; empty for images that lie in no file of their own."""
    counts = counts_of(source)
    share, found = max(1, KINDS // len(counts)), []
    for label, count in enumerate(counts):
        for index, key in enumerate(source.keys(label, range(min(count, share)))):
            data: bytes | Path | None = None
            if isinstance(source, ParquetSource):
                try:
                    data = source.encoded(label, index)
                except DapError:
                    continue
            elif source.root is not None and (source.root / key).is_file():
                data = source.root / key
            if data is not None and (kind := kind_of(data)) is not None:
                found.append(kind)
    return found


def _grouped(part: Seen, found: Sequence[Sequence[int]], words: str, spare: int) -> list[str]:
    if not found:
        return []
    said = f"{counted(len(found), 'group')} of images {_are(found)} {words}, {spare:,} more than needed"
    return [f"{part.name}: {said}: {_named(part, found)}."]


def _named(part: Seen, found: Sequence[Sequence[int]]) -> str:
    return "; ".join(" = ".join(part.told(place) for place in group[:3]) for group in found[:NAMED])


def _counted(values: Sequence[str]) -> str:
    return ", ".join(f"{count:,} {value}" for value, count in Counter(values).most_common(4))


def _are(found: Sequence[object]) -> str:
    return "is" if len(found) == 1 else "are"
