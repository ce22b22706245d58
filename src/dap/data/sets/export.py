"""Write a distilled set in the layouts that other tools read. `export` is the function to call; each layout has a
writer.

The images of a set of this library keep their bytes. Nothing in an export depends on the clock, the user or the
machine, so that the same set always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dap.base.errors import DapError
from dap.base.files import building, check_beside, check_there, dump, in_use, replacing, sha256_of, write_atomically
from dap.base.registry import suggest
from dap.data.real.decode import as_png, pixels, read_file
from dap.data.sets import ddranking
from dap.data.sets.cards import card, cell, code, deeper, read_card, size_category
from dap.data.sets.contents import Within, sha256
from dap.data.sets.differences import differences
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.folders import exported, folders_of
from dap.data.sets.notes import there

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Job:
    """The task that a writer of a layout gets.

    Attributes:
        made: the set, already checked to be whole.
        folder: an empty folder to write into. When the writer is done, this folder replaces the user's folder.
        shard_size: images per file, for layouts that have shards; 0 for other layouts.
        progress: called with (done, all, class name) after every image.
    """

    made: DistilledSet
    folder: Path
    shard_size: int
    progress: Progress | None = None

    def images(self, by_slot: bool = False) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The manifest line and the PNG of every image, in the order of label and slot. With `by_slot`, the order is
        that of slot and label."""
        records, within = self.made.records, Within(self.made.path)
        if by_slot:
            records.sort(key=lambda record: (record["slot"], record["label"]))
        own = there(self.made.path, "classes.json")
        for done, record in enumerate(records, 1):
            # The links of a folder that others made may lead where they want; those of a set may not.
            data = within.read(record["path"]) if own else read_file(self.made.path / record["path"])
            if sha256(data) != record["sha256"]:
                raise DapError(f"{record['path']} has changed while the set was exported; export it again.")
            yield record, as_png(data)[0]
            if self.progress is not None:
                self.progress(done, len(records), record["class_name"])


@dataclass
class Written:
    """The texts and fields that a writer returns about the files that it wrote.

    Attributes:
        how: Markdown for the card, which says how to read the files.
        front: further fields for the front matter of the card, which the hub reads.
        extra: further fields for export.json.
        notes: sentences for the user.
        files: the names of the files that hold the images, to check at the end that all are there.
    """

    how: str
    front: dict[str, Any]
    extra: dict[str, Any]
    notes: list[str]
    files: list[str]


def export(
    made: DistilledSet,
    out: str | Path,
    layout: str = "imagefolder",
    *,
    shard_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a set in another layout.

    Args:
        made: the set, which must be whole.
        out: a new or empty folder, or an earlier export of the same set in the same layout, which is then written
            again.
        layout: one of `LAYOUTS`.
        shard_size: images per file, for parquet and webdataset.
        progress: called with (done, all, class name) after every image.

    Returns:
        The contents of `export.json`, among them `layout`, `set` (a hash of the classes and images of the set),
        `class_names` in label order, `files` with their sha256, `notes`, and, for class folders, the `folders` in label
        order.

    Raises:
        DapError: the layout is unknown, the set is not whole, the layout cannot hold the set, or the folder holds other
            files.
        OSError: the folder cannot be written; nothing is left behind.
    """
    out = Path(out)
    if layout not in LAYOUTS:
        raise DapError(f"Unknown layout {layout!r}. {suggest(layout, LAYOUTS)}")
    write, size = LAYOUTS[layout]
    if shard_size is not None and (size is None or shard_size < 1):
        sharded = " and ".join(name for name, (_, usual) in LAYOUTS.items() if usual)
        raise DapError(f"A shard size of at least 1 is for {sharded}; layout {layout!r} was given {shard_size}.")
    own = (made.path / "classes.json").is_file()
    check_beside(out, made.path / "images" if own else made.path, "would be taken for a class of the set")
    size = shard_size or size
    identity = {"layout": layout, "set": fingerprint(made), "shard_size": size}

    def check() -> None:
        if not in_use(out):
            return
        before = exported(out)
        if not before:
            raise DapError(f"{out} is not empty and holds no export; choose a new folder with --out.")
        if changed := differences({key: before.get(key) for key in identity}, identity):
            raise DapError(
                f"{out} holds another export. What changed: {'; '.join(changed)}. Choose a new folder with --out."
            )

    check()  # before the images are decoded, and once more when no other export can run
    made.check_whole()
    with building(out, "export.json", check) as folder:
        written = write(Job(made, folder, size or 0, progress))
        check_there(folder, written.files)
        if layout != "parquet":
            _manifest(made, folder, written)
        write_atomically(folder / "README.md", _card(made, layout, written).encode())
        files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file() and f.name != ".lock")
        said = {
            **identity,
            "class_names": list(made.class_names),
            "ipc": made.ipc,
            **written.extra,
            "notes": written.notes,
            "files": {name: sha256_of(folder / name) for name in files},
            "version": version("diffusion-as-priors"),
        }
        write_atomically(folder / "export.json", dump(said))
    check_there(out, {**dict.fromkeys(files), "export.json": None})
    return said


def fingerprint(made: DistilledSet) -> str:
    """The sha256 of the class names of a set in label order together with the label, slot and sha256 of each image."""
    lines = [made.class_names, *([r["label"], r["slot"], r["sha256"]] for r in made.records)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _imagefolder(job: Job) -> Written:
    """Write `<class>/<slot>.png`. Readers number the folders in sorted order, so that their labels may differ from the
    set's."""
    folders = folders_of(job.made.class_names)
    files = _write_folders(job, folders)
    notes = []
    if sorted(folders) != folders:
        notes.append(
            "Readers of class folders (torchvision, datasets) number them in sorted order, which is not this set's label "
            "order; README.md has the table. For the same labels use --layout ddranking, parquet, webdataset or pt."
        )
    how = f"""`torchvision.datasets.ImageFolder(folder)` and `datasets.load_dataset(folder)` read it.
{notes[0] if notes else "They number the folders in sorted order, which is this set's label order."}
The latter needs this file: `load_dataset("imagefolder", data_dir=folder)` would take a class called "test" for a split."""
    return Written(how, _split("*/*.png"), {"folders": folders}, notes, files)


def _ddranking(job: Job) -> Written:
    """Write `00000/<slot>.png`, as DD-Ranking and RDED read it. The name of a folder is its label. The YAML files of
    DD-Ranking are written too."""
    folders = [f"{label:05d}" for label in range(len(job.made.class_names))]
    scored = ddranking.scored_as(job.made.class_names)
    files = _write_folders(job, folders)
    check_there(job.folder, files)
    side = min(pixels(job.folder / folders[0] / "00000.png").shape[:2])
    for score, values in ddranking.configs(scored, job.made.ipc, side).items():
        text = ddranking.HEADER + yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False)  # no YAML aliases
        write_atomically(job.folder / f"lrs_{score}.yaml", text.encode())
    note = f"DD-Ranking scores this set as {scored}." if scored else ddranking.NOT_SCORED
    how = f"""The folder's name is the label, so `torchvision.datasets.ImageFolder(folder)` gives this set's labels exactly.
{note} Put your paths into `lrs_soft.yaml` or `lrs_hard.yaml`, and then:

    from ddranking.config import Config
    from ddranking.metrics import LabelRobustScoreSoft

    LabelRobustScoreSoft(Config.from_file("lrs_soft.yaml")).compute_metrics(image_path="this folder")"""
    return Written(how, _split("*/*.png"), {"folders": folders, "scored_as": scored}, [note], files)


def _pt(job: Job) -> Written:
    """Write `images.pt`, a dictionary of `images` (n, 3, h, w) uint8, `labels` (n,) int64 and `class_names`. Where all images
    have a weight there are `weights` (n,) float32 too."""
    whole: np.ndarray | None = None
    n = len(job.made.records)
    labels = torch.tensor([record["label"] for record in job.made.records])
    for row, (record, png) in enumerate(job.images()):
        values = pixels(png).transpose(2, 0, 1)
        if whole is None:
            whole = np.empty((n, *values.shape), np.uint8)
        if values.shape != whole.shape[1:]:
            raise DapError(f"{record['path']} has another size than the first image; one tensor cannot hold both.")
        whole[row] = values
    assert whole is not None
    with replacing(job.folder / "images.pt") as file:
        held = {"images": torch.from_numpy(whole), "labels": labels, "class_names": list(job.made.class_names)}
        if weighed(job.made.records):
            held["weights"] = torch.tensor([record["weight"] for record in job.made.records])
        torch.save(held, file)
    how = """`torch.load("images.pt", weights_only=True)` gives a dictionary: `images`, bytes (n, 3, h, w) from 0 to 255 and not
normalised, `labels` (n,) int64, and `class_names` in label order."""
    if weighed(job.made.records):
        how += "\n`weights` (n,) says how much of its class each image stands for; the mean in a class is 1."
    return Written(how, {}, {}, [], ["images.pt"])


def _parquet(job: Job) -> Written:
    from dap.data.sets.shards import write_parquet

    return Written(
        *write_parquet(
            job.made.class_names,
            job.images(),
            len(job.made.records),
            job.folder,
            job.shard_size,
            weighed(job.made.records),
        )
    )


def _webdataset(job: Job) -> Written:
    from dap.data.sets.shards import write_webdataset

    return Written(*write_webdataset(job.images(by_slot=True), job.folder, job.shard_size))


LAYOUTS: dict[str, tuple[Callable[[Job], Written], int | None]] = {
    "imagefolder": (_imagefolder, None),
    "parquet": (_parquet, 5000),
    "webdataset": (_webdataset, 1000),
    "ddranking": (_ddranking, None),
    "pt": (_pt, None),
}
"""The layouts: for each its writer, and the default number of images per file where the layout has shards, else
None."""


def _write_folders(job: Job, folders: list[str]) -> list[str]:
    files = []
    for record, png in job.images():
        files.append(f"{folders[record['label']]}/{record['slot']:05d}.png")
        write_atomically(job.folder / files[-1], png)
    return files


def weighed(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all images of a set have a weight."""
    return all(record.get("weight") is not None for record in records)


def _split(pattern: str) -> dict[str, Any]:
    """Front matter that tells the hub that all files are the train split. Without it, a class called "test" could be
    taken for a split."""
    return {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": pattern}]}]}


def _manifest(made: DistilledSet, folder: Path, written: Written) -> None:
    """Write the manifest of the set with the paths of the export. The file is not called metadata.jsonl, because
    datasets drops the labels where a file of that name exists."""
    folders = written.extra.get("folders")
    lines = []
    for record in made.records:
        line = {key: value for key, value in record.items() if key != "path"}
        if folders:
            line = {"path": f"{folders[record['label']]}/{record['slot']:05d}.png", **line}
        lines.append(json.dumps(line) + "\n")
    write_atomically(folder / "manifest.jsonl", "".join(lines).encode())


def _card(made: DistilledSet, layout: str, written: Written) -> str:
    front, own = read_card(made.path)
    usual: dict[str, Any] = {
        "task_categories": ["image-classification"],
        "size_categories": [size_category(len(made.records))],
        "tags": ["dataset-distillation"],
    }
    names, folders = map(cell, made.class_names), written.extra.get("folders")
    columns = [names, *([map(code, folders)] if folders else [])]
    rows = "".join(f"| {label} | {' | '.join(cells)} |\n" for label, cells in enumerate(zip(*columns, strict=True)))
    head = "| label | class |" + " folder |" * bool(folders) + "\n|---|---|" + "---|" * bool(folders)
    title = own.splitlines()[0].lstrip("# ") if own.startswith("# ") else "Distilled set"
    recipe = yaml.safe_dump(made.recipe, sort_keys=False, allow_unicode=True) if made.recipe else ""
    body = f"""# {title}

{len(made.records)} images of {len(made.class_names)} classes, {made.ipc} a class, exported as {code(layout)} by
diffusion-as-priors {version("diffusion-as-priors")}. `export.json` lists every file with its sha256.
All images belong to one split, train.

## Reading it

{written.how}

{head}
{rows}
## Where it comes from

"""
    body += f"The recipe in full:\n\n<pre>\n{html.escape(recipe.strip())}\n</pre>\n\n" if recipe else ""
    body += (
        deeper(deeper(own)) if own else "The set has no card of its own; its licence is unknown: ask whoever made it."
    )
    if "license" not in front:
        terms = {"license": "other", "license_name": "see-below"} if own else {"license": "unknown"}
        usual |= terms
    return card({**usual, **front, **written.front}, body)
