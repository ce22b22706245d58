"""Write a distilled set in the layouts that other tools read. `export` is the function to call; each layout has a
writer.

The images of a set of this library keep their bytes. Nothing in an export depends on the clock, the user or the
machine, so that the same set always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dap.base.errors import DapError
from dap.base.files import building, check_beside, check_there, dump, in_use, sha256_of, write_atomically
from dap.base.parsing import counted
from dap.base.registry import suggest
from dap.data.real.finding.outputs import check_outside_made
from dap.data.real.sizes import noun
from dap.data.sets.beside import KEPT
from dap.data.sets.cards import (
    card,
    cell,
    clips_told,
    code,
    commands_of,
    deeper,
    judged_told,
    last_part,
    places_in,
    read_card,
    size_category,
    without_places,
    without_use,
)
from dap.data.sets.contents import sha256
from dap.data.sets.differences import differences
from dap.data.sets.distilled import DistilledSet
from dap.data.sets.folders import exported
from dap.data.sets.layouts.base import Job, Progress, Written
from dap.data.sets.layouts.fiftyone import write_fiftyone
from dap.data.sets.layouts.plain import write_ddranking, write_imagefolder, write_pt
from dap.data.sets.layouts.shards import write_parquet, write_webdataset
from dap.data.sets.notes import there


@dataclass(frozen=True)
class Asked:
    """What an export was asked for, checked as far as no image is read.

    Attributes:
        out: the folder.
        size: images in each file; None for layouts without shards.
        logits: the soft labels that go with the images, float32.
        identity: what must be the same for an export into the same folder.
    """

    out: Path
    size: int | None
    logits: np.ndarray | None
    identity: dict[str, Any]

    def check(self) -> None:
        """Raise `DapError` if the folder holds something other than this export."""
        out, identity = self.out, self.identity
        if not in_use(out):
            return
        before = exported(out)
        if not before:
            raise DapError(f"{out} is not empty and holds no export; choose a new folder with --out.")
        if changed := differences({key: before.get(key) for key in identity}, identity):
            raise DapError(
                f"{out} holds another export. What changed: {'; '.join(changed)}. Choose a new folder with --out."
            )


def asked(
    made: DistilledSet, out: str | Path, layout: str, shard_size: int | None = None, logits: np.ndarray | None = None
) -> Asked:
    """Check the arguments of `export`, whose errors are those of this function, and the folder."""
    out = Path(out)
    if layout not in LAYOUTS:
        raise DapError(f"Unknown layout {layout!r}. {suggest(layout, LAYOUTS)}")
    if made.frames is not None and layout == "ddranking":
        raise DapError("DD-Ranking scores images and no clips; take --layout imagefolder, parquet, webdataset or pt.")
    _, size = LAYOUTS[layout]
    if shard_size is not None and (size is None or shard_size < 1):
        sharded = " and ".join(name for name, (_, usual) in LAYOUTS.items() if usual)
        raise DapError(f"A shard size of at least 1 is for {sharded}; layout {layout!r} was given {shard_size}.")
    own = (made.path / "classes.json").is_file()
    check_beside(out, made.path / "images" if own else made.path, "would be taken for a class of the set")
    check_outside_made(out, made_by(made), made.class_names)
    size = shard_size or size
    identity = {"layout": layout, "set": fingerprint(made), "shard_size": size}
    if logits is not None:
        wanted = (len(made.records), len(made.class_names))
        if logits.shape != wanted or not np.isfinite(logits).all():
            raise DapError(
                f"Soft labels are finite numbers {wanted} for this set, not {logits.shape}; make them of this set."
            )
        logits = np.ascontiguousarray(logits, np.float32)
        identity["logits"] = sha256(logits.tobytes())
    found = Asked(out, size, logits, identity)
    found.check()
    return found


def export(
    made: DistilledSet | str | Path,
    out: str | Path,
    layout: str = "imagefolder",
    *,
    shard_size: int | None = None,
    logits: np.ndarray | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a set in another layout. Where all images have a weight, the weights go with them. Soft labels go with them only if
    they are given; that the set has some is said in the notes.

    Args:
        made: the set, or its folder. It must be whole.
        out: a new or empty folder, or an earlier export of the same set in the same layout, which is then written
            again.
        layout: one of `LAYOUTS`.
        shard_size: images per file, for parquet and webdataset.
        logits: soft labels (n, classes) before the softmax, in the order of `made.records`, which go with the images.
        progress: called with (done, all, class name) after every image.

    Returns:
        The contents of `export.json`, among them `layout`, `set` (a hash of the classes and images of the set),
        `class_names` in label order, `files` with their sha256, `notes`, and, for class folders, the `folders` in label
        order.

    Raises:
        DapError: the layout is unknown, the set is not whole, the layout cannot hold the set, the soft labels are not those of
            its images, or the folder holds other files.
        OSError: the folder cannot be written; nothing is left behind.
    """
    made = made if isinstance(made, DistilledSet) else DistilledSet.open(made)
    ask = asked(
        made, out, layout, shard_size, logits
    )  # before the images are decoded; once more when no other export can run
    out, write = ask.out, LAYOUTS[layout][0]
    made.check_whole()
    with building(out, "export.json", ask.check) as folder:
        written = write(Job(made, folder, ask.size or 0, progress, ask.logits))
        check_there(folder, written.files)
        if layout != "parquet":
            _manifest(made, folder, written)
        write_atomically(folder / "README.md", _card(made, layout, written).encode())
        files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file() and f.name != ".lock")
        said = {
            **ask.identity,
            "class_names": list(made.class_names),
            "ipc": made.ipc,
            **written.extra,
            **({"recipe": recipe} if (recipe := without_places(made_by(made))) else {}),
            "notes": [*written.notes, *([] if ask.logits is not None else left_behind(made))],
            "files": {name: sha256_of(folder / name) for name in files},
            "version": version("diffusion-as-priors"),
        }
        write_atomically(folder / "export.json", dump(said))
    check_there(out, {**dict.fromkeys(files), "export.json": None})
    return said


def left_behind(made: DistilledSet) -> list[str]:
    """A sentence that an export without soft labels leaves those of the set behind; [] for a set that has none."""
    if not there(made.path, KEPT):
        return []
    return [f"The soft labels in {KEPT} of the set are not in the export; --labels SET/{KEPT} adds them."]


def made_by(made: DistilledSet) -> dict[str, Any]:
    """The recipe by which the images of a set were made, though the set may be an import of that one; {} where nobody knows."""
    return dict(made.recipe or (made.noted("import.json") or {}).get("recipe") or {})


def fingerprint(made: DistilledSet) -> str:
    """The sha256 of the class names of a set in label order together with the label, slot and sha256 of each image."""
    lines = [made.class_names, *([r["label"], r["slot"], r["sha256"]] for r in made.records)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


LAYOUTS: dict[str, tuple[Callable[[Job], Written], int | None]] = {
    "imagefolder": (write_imagefolder, None),
    "parquet": (write_parquet, 5000),
    "webdataset": (write_webdataset, 1000),
    "ddranking": (write_ddranking, None),
    "pt": (write_pt, None),
    "fiftyone": (write_fiftyone, None),
}
"""The layouts: for each its writer, and the default number of images per file where the layout has shards, else
None."""


def _manifest(made: DistilledSet, folder: Path, written: Written) -> None:
    """Write the manifest of the set with the paths of the export. The file is not called metadata.jsonl, because
    datasets drops the labels where a file of that name exists."""
    lines = []
    for record in made.records:
        line = {key: value for key, value in record.items() if key != "path"}
        path = written.path_of(record) if written.path_of else None
        lines.append(json.dumps({"path": path, **line} if path else line) + "\n")
    write_atomically(folder / "manifest.jsonl", "".join(lines).encode())


def _card(made: DistilledSet, layout: str, written: Written) -> str:
    front, own = read_card(made.path)
    front = {key: value for key, value in front.items() if key not in ("configs", "dataset_info")}  # of other files
    recipe = made_by(made)
    places = [*places_in(recipe), *places_in((made.noted("import.json") or {}).get("source")), *places_in(front)]
    for place in sorted(places, key=len, reverse=True):
        own = own.replace(cell(place), cell(last_part(place))).replace(place, last_part(place))
    own, kind = without_use(own).replace(clips_told(made.frames), ""), noun(made.frames)
    front = without_places(front)
    usual: dict[str, Any] = {
        "task_categories": ["image-classification" if made.frames is None else "video-classification"],
        "size_categories": [size_category(len(made.records))],
        "tags": ["dataset-distillation"],
    }
    names, folders = map(cell, made.class_names), written.extra.get("folders")
    columns = [names, *([map(code, folders)] if folders else [])]
    rows = "".join(f"| {label} | {' | '.join(cells)} |\n" for label, cells in enumerate(zip(*columns, strict=True)))
    head = "| label | class |" + " folder |" * bool(folders) + "\n|---|---|" + "---|" * bool(folders)
    title = own.splitlines()[0].lstrip("# ") if own.startswith("# ") else "Distilled set"
    recipe = yaml.safe_dump(without_places(recipe), sort_keys=False, allow_unicode=True) if recipe else ""
    body = f"""# {title}

{counted(len(made.records), kind)} of {counted(len(made.class_names), "class")}, {made.ipc} a class, exported as {code(layout)} by
diffusion-as-priors {version("diffusion-as-priors")}. `export.json` lists every file with its sha256.
All {kind}s belong to one split, train.

## Reading it

{written.how}{clips_told(made.frames)}

{head}
{rows}
## Where it comes from

"""
    body += f"The recipe in full:\n\n<pre>\n{html.escape(recipe.strip())}\n</pre>\n\n" if recipe else ""
    body += commands_of(made) + judged_told(made)
    body += (
        deeper(deeper(own)) if own else "The set has no card of its own; its licence is unknown: ask whoever made it."
    )
    if "license" not in front:
        terms = {"license": "other", "license_name": "see-below"} if own else {"license": "unknown"}
        usual |= terms
    return card({**usual, **front, **written.front}, body)
