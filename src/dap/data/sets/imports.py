"""Import distilled sets of other projects, in any layout of the field, as sets of this library."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dap.base.documents import read_text
from dap.base.errors import DapError
from dap.base.files import building, check_beside, check_folder, dump, in_use, natural_order, write_atomically
from dap.base.parsing import counted, path_of, shown
from dap.base.registry import suggest
from dap.base.seeding import seed_of
from dap.data.real.decode import BrokenImage, as_png
from dap.data.sets.beside import KEPT, label_files
from dap.data.sets.cards import card_of_import, cell
from dap.data.sets.contents import check_exported, sha256
from dap.data.sets.differences import differences
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.folders import check_classes, exported
from dap.data.sets.notes import read_note
from dap.data.sets.readers import (
    Ask,
    Entry,
    Reading,
    detect,
    read_fiftyone,
    read_folders,
    read_minimax,
    read_parquet,
    read_rded,
    read_set,
    read_webdataset,
)
from dap.data.sets.said import COUNTED, notes_of
from dap.data.sets.tensors import read_tensors
from dap.data.sets.verification import check_unchanged

LAYOUTS: dict[str, Callable[[Path, Ask], Reading]] = {
    "folders": read_folders,
    "minimax": read_minimax,
    "rded": read_rded,
    "d4m": read_rded,
    "tensors": read_tensors,
    "parquet": read_parquet,
    "webdataset": read_webdataset,
    "fiftyone": read_fiftyone,
    "set": read_set,
}
"""The layouts that can be imported."""

ALIASES = {
    "imagefolder": "folders",
    "mgd3": "minimax",
    "manifoldgd": "minimax",
    "ddranking": "rded",
    "pt": "tensors",
    "safetensors": "tensors",
}
"""Other names of layouts: names of projects that write the same layout, and names of `dap export`."""

PICKS = ("natural", "string", "random")
"""Which images of a class are taken where it has more than ipc: the first in natural order (2 before 10), the first in
string order (10 before 2, as MinimaxDiffusion's evaluation does under the name "random"), or a random draw."""


@dataclass(frozen=True)
class Opened:
    """A source that can be imported.

    Attributes:
        reading: what the source holds.
        chosen: the images to take: for each class a list in slot order.
        told: what `import.json` says, but for the images.
        again: whether the folder holds an import already.
    """

    reading: Reading
    chosen: list[list[Entry]]
    told: dict[str, Any]
    again: bool


def opened(
    source: str | Path,
    out: str | Path,
    layout: str = "auto",
    class_names: str | Sequence[str] | None = None,
    ipc: int | None = None,
    pick: str | None = None,
    seed: int = 0,
    labels: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Opened:
    """What `import_set` will import. Arguments and errors are those of `import_set`; nothing is written."""
    source, out = path_of(source), path_of(out)
    given = ALIASES.get(layout, layout)
    if given != "auto" and given not in LAYOUTS:
        raise DapError(f"Unknown layout {layout!r}. {suggest(layout, ['auto', *LAYOUTS, *ALIASES])}")
    if pick is not None and pick not in PICKS:
        raise DapError(f"Unknown pick {pick!r}. {suggest(pick, PICKS)}")
    if ipc is not None and ipc < 1:
        raise DapError(f"ipc must be at least 1, not {ipc}.")
    if not -(2**63) <= seed < 2**63:
        raise DapError(f"The seed {str(seed)[:40]} does not fit 64 bits; give a smaller one with --seed.")
    if not source.exists():
        raise DapError(f"There is no file or folder {source}.")
    again = in_use(out) and (out / "import.json").is_file()
    if not again:
        _check_new(out)
    if source.is_dir():
        check_exported(source, exported(source))
    kind, why = detect(source) if given == "auto" else (given, f"as given with --layout {layout}")
    for flag, value in {"--labels": labels, "--mean": mean, "--std": std}.items():
        if value is not None and kind != "tensors":
            raise DapError(f"{flag} is for tensors; {source} is read as {kind} ({why}).")
    if kind not in ("tensors", "parquet", "webdataset"):
        check_beside(out, source / "images" if kind == "set" else source, "would be read as one of its classes")
    pick = pick or ("string" if kind == "minimax" else "natural")
    ask = Ask(class_names, ipc, None if labels is None else Path(labels), mean, std, first=pick == "natural")
    reading = LAYOUTS[kind](source, ask)
    check_unchanged(source)  # after the reader, which says of damage what it is
    chosen = _pick(reading, str(source), ipc, pick, seed)
    told: dict[str, Any] = {
        "source": shown(source),
        "layout": kind,
        "layout_found": why,
        "classes": reading.names,
        "class_order": reading.order,
        "pick": pick,
        "seed": seed if pick == "random" else None,
        "ipc": len(chosen[0]),
        "images_a_class_there": sorted({len(entries) for entries in reading.images}),
        "facts": reading.facts,
        "version": version("diffusion-as-priors"),
    }
    if recipe := _recipe_of(source):
        told["recipe"] = recipe
        if (frames := (recipe.get("data") or {}).get("frames")) is not None:
            raise DapError(
                f"{shown(source)} holds clips of {counted(frames, 'frame')}, and dap import takes images alone: it would "
                "keep the first frame of each."
            )
    check_classes(reading.names, len(chosen[0]))
    return Opened(reading, chosen, told, again)


def _recipe_of(source: Path) -> Any:
    """The recipe that made the images of a source: a set of ours, an import of one, or an export. None where nobody knows."""
    made, imported = read_note(source, "recipe.json"), read_note(source, "import.json") or {}
    return made or imported.get("recipe") or exported(source if source.is_dir() else source.parent).get("recipe")


def _check_new(out: Path) -> None:
    check_folder(out)
    if in_use(out):
        raise DapError(f"{out} is not empty; choose a new folder with --out.")


def import_set(
    source: str | Path,
    out: str | Path,
    layout: str = "auto",
    class_names: str | Sequence[str] | None = None,
    ipc: int | None = None,
    pick: str | None = None,
    seed: int = 0,
    labels: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    licence: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> DistilledSet:
    """Make a `DistilledSet` of images that others made. The file `import.json` in the set records every choice that was
    made. The field `notes` of that file says the choices in sentences.

    The bytes of 8-bit RGB PNGs are kept. All other images are decoded as real images are, and stored as PNG.

    Args:
        source: a folder or a file.
        out: a new or empty folder for the set. The folder appears when the set is whole. If it is there already, with the same
            images by the same choices, it is returned and nothing is written.
        layout: one of `LAYOUTS` or `ALIASES`, or "auto".
        class_names: names in label order, the name of a subset of ImageNet, a .json or .txt file of names, or "sorted".
            For classes that the source only numbers, this may be the number of classes.
        ipc: images per class. By default all are taken, and every class must then have the same number of images.
        pick: one of `PICKS`; default: "string" for the minimax layout, else "natural". The slots have the same order;
            after a random draw they have the natural order.
        seed: the seed of the random draw.
        labels: the file of labels, where the tensors lie in two files.
        mean, std: mean and standard deviation by which the tensors were normalised: one for each channel, or one for
            all.
        licence: the licence of the images, for the dataset card.
        progress: called with (done, all, class name) after every image.

    Raises:
        DapError: something is unclear or contradictory, or a file of an export was changed, which is found before anything is
            written; or an image is broken.
        OSError: the folder cannot be written; nothing is left behind.
    """
    source, out = path_of(source), path_of(out)
    found = opened(source, out, layout, class_names, ipc, pick, seed, labels, mean, std)
    reading, chosen, told = found.reading, found.chosen, found.told
    dump(told)  # a name that UTF-8 cannot hold is told now
    weights = _weights_of(chosen, reading)
    if found.again:
        if "soft_labels" in (read_note(out, "import.json") or {}):  # early versions do not say it
            told["soft_labels"] = len(reading.beside.logits) > 0
        return _finished(out, told, chosen, weights, licence)
    with building(out, "import.json", lambda: _check_new(out)) as folder:
        made = DistilledSet.blank(folder, reading.names, len(chosen[0]))
        told["weights"], told["soft_labels"] = len(weights) > 0, len(reading.beside.logits) > 0
        told["images"] = _store(made, chosen, weights, progress)
        told["notes"] = notes_of(told)
        made.note("README.md", card_of_import(told, licence, source))
        made.note("import.json", told)
        keys = [key for entries in chosen for key, _ in entries]
        if (logits := reading.beside.rows_for(keys, reading.names, shown(source))) is not None:
            hashes, teacher = [line["sha256"] for line in made.records], f"the soft labels of {shown(source.name)}"
            for name, data in label_files(
                logits, hashes, reading.names, teacher, None, {"source": shown(source)}
            ).items():
                write_atomically(folder / KEPT / name, data)
        _check_all(folder, chosen)  # before the folder takes its place
    return _check_all(out, chosen)


def _finished(
    out: Path, told: dict[str, Any], chosen: list[list[Entry]], weights: Mapping[str, float], licence: str | None
) -> DistilledSet:
    """The set that an earlier call of the same import made.

    Args:
        out: its folder.
        told: what import.json would say now, but for the images. Reading the images adds to its facts.
        chosen: the images that would be imported now.
        weights: the weights that they would have.
        licence: the licence of the images, if it was given.

    Raises:
        DapError: the folder holds something else, or the set is not whole.
    """
    now = {(c, k): sha256(read()) for c, entries in enumerate(chosen) for k, (_, read) in enumerate(entries)}
    before, told = read_note(out, "import.json") or {}, json.loads(dump(told))
    if isinstance(earlier := before.get("facts"), dict):
        told["facts"] = {k: fact for k, fact in told["facts"].items() if k in earlier or k not in COUNTED}
    compared = [name for name in told if name != "version" and (name != "recipe" or name in before)]
    changed = differences({name: before.get(name) for name in compared}, {name: told[name] for name in compared})
    made = DistilledSet.open(out)
    sources = {(record["label"], record["slot"]): record.get("source_sha256") for record in made.records}
    if others := sum(sources[place] != digest for place, digest in now.items() if place in sources):
        changed.append(f"{others} of {counted(len(now), 'image')} of the source")
    weighed = {(line["label"], line["slot"]): line.get("weight") for line in made.records}
    after = {(c, k): weights.get(key) for c, entries in enumerate(chosen) for k, (key, _) in enumerate(entries)}
    if others := sum(weighed[place] != weight for place, weight in after.items() if place in weighed):
        changed.append(f"the weights of {others} of {counted(len(after), 'image')}")
    if licence and cell(licence) not in read_text(out / "README.md"):
        changed.append("the licence on its card")
    if changed:
        raise DapError(
            f"{out} holds another import. What changed: {'; '.join(changed)}. Choose a new folder with --out, or remove this one."
        )
    made.check_whole()
    return made


def _check_all(folder: Path, chosen: list[list[Entry]]) -> DistilledSet:
    """The set in a folder, if all images that were written are there.

    Raises:
        DapError: some are not, because something removed or changed them meanwhile.
    """
    made, wanted = DistilledSet.open(folder), sum(map(len, chosen))
    if len(made) < wanted:
        raise DapError(
            f"{folder} has {len(made)} of the {wanted} images that were imported; something removed or changed the others "
            "meanwhile. Remove the folder, and import again."
        )
    return made


def _pick(reading: Reading, source: str, ipc: int | None, pick: str, seed: int) -> list[list[Entry]]:
    """The images to take: for each class a list in slot order."""
    counts = {name: len(entries) for name, entries in zip(reading.names, reading.images, strict=True)}
    low, high = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[low] < (ipc or 1):
        raise DapError(f"Class {low!r} of {source} has {counted(counts[low], 'image')}, not the {ipc or 1} asked for.")
    if ipc is None and counts[low] != counts[high]:
        raise DapError(
            f"The classes of {source} differ in size: {low!r} has {counted(counts[low], 'image')}, {high!r} "
            f"{counts[high]}. A set has the same number for each; give --ipc {counts[low]} or less."
        )
    if pick == "string" and not reading.named:
        raise DapError(f"The images of {source} have no file names to sort as text; use --pick natural or random.")
    taken = []
    for name, entries in zip(reading.names, reading.images, strict=True):
        ordered = sorted(entries, key=lambda entry: Path(entry[0]).name) if pick == "string" else list(entries)
        if reading.named and pick != "string":
            ordered = sorted(entries, key=lambda entry: natural_order(Path(entry[0])))
        if pick == "random" and ipc is not None:
            generator = torch.Generator().manual_seed(seed_of(seed, name, "pick"))
            rows = torch.randperm(len(ordered), generator=generator)[:ipc].sort().values.tolist()
            ordered = [ordered[row] for row in rows]
        taken.append(ordered[:ipc])
    return taken


def _weights_of(chosen: list[list[Entry]], reading: Reading) -> dict[str, float]:
    """The weights of the chosen images. Where they are a part of their class, they are divided by their mean, so that the mean
    in the class is 1."""
    weights, found = reading.beside.weights, dict[str, float]()
    for entries, whole in zip(chosen, reading.images, strict=True):
        mine = {key: weights[key] for key, _ in entries if key in weights}
        part = 0 < len(mine) == len(entries) < (reading.whole or len(whole))
        mean = sum(mine.values()) / len(mine) if part else 1.0
        found |= {key: weight / mean for key, weight in mine.items()}
    return found


def _store(
    made: DistilledSet,
    chosen: list[list[Entry]],
    weights: Mapping[str, float],
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, Any]:
    """Write the images into the set. Returns how many images kept their bytes, and the sizes of the images."""
    kept, sizes, done, total = 0, Counter[str](), 0, sum(map(len, chosen))
    for label, entries in enumerate(chosen):
        for slot, (key, read) in enumerate(entries):
            try:
                png, same = as_png(data := read())
            except BrokenImage as error:
                raise DapError(f"{key} cannot be decoded: {error.reason}; mend or remove it.") from error
            more = {"weight": weights[key]} if key in weights else {}
            made.store(label, slot, png, source=key, source_sha256=sha256(data), **more)
            width, height = struct.unpack(">II", png[16:24])
            sizes[f"{width}x{height}"] += 1
            kept, done = kept + same, done + 1
            if progress is not None:
                progress(done, total, made.class_names[label])
    return {"kept_to_the_byte": kept, "stored_anew": total - kept, "sizes": dict(sizes.most_common(5))}
