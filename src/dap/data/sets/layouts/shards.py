"""Writers of distilled sets as files of many images: parquet for Hugging Face datasets, and WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from dap.base.errors import DapError
from dap.base.files import replacing, write_atomically
from dap.data.real.parquet import check_pyarrow
from dap.data.sets.layouts.base import Job, Written, weighed

ROW_GROUP = 100
"""The number of images in a row group. A reader must hold a whole row group in memory."""


def write_parquet(job: Job) -> Written:
    """Write `data/train-00000-of-0000N.parquet` with the columns image, label, slot, seed and sha256; weight where all images
    have one; and logits where there are soft labels.

    A note in the schema tells `datasets` that the columns are an Image and a ClassLabel with its names.

    The file is written with pyarrow, which `datasets` itself uses, but without `datasets`. An export must have the same
    bytes on every machine, and the note and the row groups that `datasets` writes depend on its version.

    Raises:
        DapError: pyarrow is not installed.
    """
    check_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, n, folder, shard_size = job.made.class_names, len(job.made.records), job.folder, job.shard_size
    with_weights, with_logits = weighed(job.made.records), job.logits is not None
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(names), "_type": "ClassLabel"},
        "slot": {"dtype": "int64", "_type": "Value"},
        "seed": {"dtype": "int64", "_type": "Value"},
        "sha256": {"dtype": "string", "_type": "Value"},
    }
    if with_weights:
        features["weight"] = {"dtype": "float64", "_type": "Value"}
    if with_logits:
        features["logits"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}
    encoded = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [
            ("image", encoded),
            *((name, pa.int64()) for name in ("label", "slot", "seed")),
            ("sha256", pa.string()),
            *([("weight", pa.float64())] if with_weights else []),
            *([("logits", pa.list_(pa.float32()))] if with_logits else []),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    stream, shards, held, files = job.images(), -(-n // shard_size), 0, list[str]()
    (folder / "data").mkdir()
    for shard in range(shards):
        files.append(f"data/train-{shard:05d}-of-{shards:05d}.parquet")
        with replacing(folder / files[-1]) as file, pq.ParquetWriter(file, schema) as writer:
            for group in _chunks(islice(stream, shard_size), ROW_GROUP):
                held += sum(len(png) for _, png in group)
                writer.write_table(pa.Table.from_pylist([_row(*image, job, with_weights) for image in group], schema))
    named = {str(label): name for label, name in enumerate(names)}
    dtypes = {"image": "image", "label": {"class_label": {"names": named}}, "sha256": "string", "weight": "float64"}
    front = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
        "dataset_info": {
            "features": [
                {"name": name, "list": "float32"}
                if name == "logits"
                else {"name": name, "dtype": dtypes.get(name, "int64")}
                for name in features
            ],
            "splits": [{"name": "train", "num_bytes": held, "num_examples": n}],
        },
    }
    how = """In this folder:

```python
import os

import datasets

rows = datasets.load_dataset(os.path.abspath("."), split="train")
```

This, and `datasets.load_dataset("parquet", data_dir=folder)` too, gives the columns `image`,
`label` (a ClassLabel with this set's names and order), `slot`, `seed` and `sha256`. `image` holds the PNG itself."""
    if with_weights:
        how += "\n`weight` says how much of its class an image stands for; the mean in a class is 1."
    if with_logits:
        how += "\n`logits` are soft labels before the softmax, one number for each class."
    return Written(how, front, {}, [], files)


def write_webdataset(job: Job) -> Written:
    """Write `shard-000000.tar`, …. Each image has a .png, a .cls with its label and a .json with its manifest line; where there
    are soft labels, a .logits.npy too.

    The images come slot by slot, so that every shard has all classes.

    Times, owners, modes and the format of the tar are fixed, because an export must not depend on clock, user or machine. The
    `TarWriter` of webdataset takes all of these too, but version 1.0.2 does not pass `format` on to tarfile; its bytes then
    depend on the default of the Python version. The standard library does the same work without a further dependency.
    """
    files = []
    for number, shard in enumerate(_chunks(job.images(by_slot=True), job.shard_size)):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for record, png in shard:
                key = f"{record['slot']:05d}_{record['label']:05d}"
                said = {name: value for name, value in record.items() if name != "path"}
                parts = {"png": png, "cls": str(record["label"]).encode(), "json": json.dumps(said).encode()}
                if (logits := job.soft(record)) is not None:
                    parts["logits.npy"] = _npy(logits)
                for suffix, data in parts.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size, member.mtime, member.mode = len(data), 0, 0o644
                    archive.addfile(member, io.BytesIO(data))
        files.append(f"shard-{number:06d}.tar")
        write_atomically(job.folder / files[-1], out.getvalue())
    how = """```python
from glob import glob

import webdataset

train = webdataset.WebDataset(sorted(glob("*.tar")), shardshuffle=False).decode("rgb").to_tuple("png", "cls")
```

Images lie slot by slot, all
classes after one another, so a shard has every class. `json` holds the class name, seed and sha256."""
    if job.logits is not None:
        how += "\n`logits.npy` holds soft labels before the softmax."
    front = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "*.tar"}]}]}
    return Written(how, front, {}, [], files)


def _npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, values, allow_pickle=False)
    return out.getvalue()


def _row(record: dict[str, Any], png: bytes, job: Job, with_weights: bool) -> dict[str, Any]:
    name = f"{record['label']:05d}_{record['slot']:05d}.png"
    kept = {key: record.get(key) for key in ("label", "slot", "seed", "sha256", *(["weight"] if with_weights else []))}
    if (kept["seed"] or 0) >= 2**63:
        raise DapError(f"The seed of image {name} is too large for parquet; use another layout.")
    logits = job.soft(record)
    return {"image": {"bytes": png, "path": name}, **kept, **({} if logits is None else {"logits": logits.tolist()})}


def _chunks(images: Iterator[tuple[dict[str, Any], bytes]], size: int) -> Iterator[list[tuple[dict[str, Any], bytes]]]:
    while chunk := list(islice(images, size)):
        yield chunk
