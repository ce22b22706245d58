"""Writers of distilled sets as folders of PNG files and as one file of tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import yaml

from dap.base.errors import DapError
from dap.base.files import check_there, replacing, write_atomically
from dap.data.real.clips.pictures import whole as picture
from dap.data.real.decode import pixels
from dap.data.sets.folders import folders_of
from dap.data.sets.layouts import ddranking
from dap.data.sets.layouts.base import HOW_SOFT, Job, Written, one_split, weighed


def write_imagefolder(job: Job) -> Written:
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
    how = f"""In this folder:

```python
import os

import datasets
import timm.data
from torchvision.datasets import ImageFolder

folder = os.path.abspath(".")
train = ImageFolder(folder)
rows = datasets.load_dataset(folder, split="train")
train = timm.data.create_dataset("", root=folder, split="train")
```

{notes[0] if notes else "They number the folders in sorted order, which is this set's label order."}
The latter needs this file: `load_dataset("imagefolder", data_dir=folder)` would take a class called "test" for a split."""
    soft = job.write_soft()
    how += f"\n{HOW_SOFT}" if soft else ""
    return Written(how, one_split("*/*.png"), {"folders": folders}, notes, [*files, *soft], _path_in(folders))


def write_ddranking(job: Job) -> Written:
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
    how = f"""The folder's name is the label, so this gives this set's labels exactly:

```python
from torchvision.datasets import ImageFolder

train = ImageFolder(".")
```

{note} Put your paths into `lrs_soft.yaml` or `lrs_hard.yaml`, and then:

    from ddranking.config import Config
    from ddranking.metrics import LabelRobustScoreSoft

    LabelRobustScoreSoft(Config.from_file("lrs_soft.yaml")).compute_metrics(image_path="this folder")"""
    soft = job.write_soft()
    how += f"\n\n{HOW_SOFT}" if soft else ""
    extra = {"folders": folders, "scored_as": scored}
    return Written(how, one_split("*/*.png"), extra, [note], [*files, *soft], _path_in(folders))


def write_pt(job: Job) -> Written:
    """Write `images.pt`, a dictionary of `images` (n, 3, h, w) uint8, of clips (n, 3, frames, h, w), `labels` (n,) int64 and
    `class_names`. Where all images have a weight there are `weights` (n,) float32 too."""
    whole: np.ndarray | None = None
    n = len(job.made.records)
    labels = torch.tensor([record["label"] for record in job.made.records])
    for row, (record, png) in enumerate(job.images()):
        values = picture(png, job.made.frames).numpy()
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
        if job.logits is not None:
            held["logits"] = torch.from_numpy(job.logits)
        torch.save(held, file)
    how = """```python
import torch

held = torch.load("images.pt", weights_only=True)
train = torch.utils.data.TensorDataset(held["images"].float() / 255, held["labels"])
```

It is a dictionary: `images`, bytes (n, 3, h, w) from 0 to 255 and not
normalised, `labels` (n,) int64, and `class_names` in label order."""
    if weighed(job.made.records):
        how += "\n`weights` (n,) says how much of its class each image stands for; the mean in a class is 1."
    if job.logits is not None:
        how += "\n`logits` (n, classes) are soft labels before the softmax."
    return Written(how, {}, {}, [], ["images.pt"])


def _path_in(folders: Sequence[str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda record: f"{folders[record['label']]}/{record['slot']:05d}.png"


def _write_folders(job: Job, folders: Sequence[str]) -> list[str]:
    files, path_of = [], _path_in(folders)
    for record, png in job.images():
        files.append(path_of(record))
        write_atomically(job.folder / files[-1], png)
    return files
