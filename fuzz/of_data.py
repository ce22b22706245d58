"""Readers of real images, of captions, and of sets that others made."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dap.data.real.captions import read_captions
from dap.data.real.clips.frames import decode_frames
from dap.data.real.clips.moving import decode_clip
from dap.data.real.decode import BrokenImage, as_png, decode
from dap.data.real.sizes import size_of
from dap.data.real.sources import open_source
from dap.data.sets.readers import Ask, detect, read_parquet, read_webdataset
from dap.data.sets.tensors import read_tensors
from dap.verbs.caption import (  # pyright: ignore[reportPrivateUsage]
    _check_out,
    write_captions,
)
from fuzz import forms
from fuzz.pictures import clip, picture, pictures
from fuzz.target import Target
from fuzz.trees import plant


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as IDX."""
    return (
        bytes([0, 0, 8, array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.astype(np.uint8).tobytes()
    )


PICTURE = picture()
LINES = b'{"file_name": "0.png", "label": "cat"}\n{"file_name": "1.png", "label": "dog"}\n'


def targets(folder: Path) -> list[Target]:
    """The readers of data."""
    found: list[Target] = []

    def add(name: str, kind: Any, file: str, seeds: Any, read: Callable[[Any], Any], **more: Any) -> None:
        place = folder / name.replace(" ", "-").replace("/", "-")
        place.mkdir(parents=True)
        found.append(Target(name, kind, place, file, tuple(seeds), read, **more))

    def seen(path: Path, split: str = "train", frames: int | None = None) -> Any:
        source = open_source(path, split, size=8, frames=frames)
        return [source.tensors(), source.fingerprint(sized=False)]

    def drawn(reading: Any) -> Any:
        found = []
        for key, read in [entry for entries in reading.images for entry in entries]:
            try:
                found.append(as_png(read()))
            except BrokenImage as error:  # bytes have no name; `dap import` says the key
                found.append((key, error.reason))
        return found

    numbers, labels = idx(np.arange(4 * 64).reshape(4, 8, 8) % 256), idx(np.array([0, 1, 0, 1]))
    for name, file, packed in (("IDX images", "train-images-idx3-ubyte", False), ("IDX labels", "train-labels-idx1-ubyte", False),
                               ("IDX gzip", "train-images-idx3-ubyte.gz", True)):  # fmt: skip
        one = labels if "labels" in file else numbers
        seeds = [gzip.compress(one, mtime=0), one, gzip.compress(one * 50, mtime=0)] if packed else [one]
        shape = [4] if "labels" in file else [4, 8, 8]
        add(name, "binary", file, seeds, lambda path: seen(path.parent), forms=forms.idx(shape))
        place = found[-1].folder
        (place / "classes.json").write_bytes(b'["a", "b"]')
        if "labels" in file:
            (place / "train-images-idx3-ubyte").write_bytes(numbers)
        else:
            (place / "train-labels-idx1-ubyte").write_bytes(labels)
    add("classes.json beside IDX", "json", "classes.json", [b'["a", "b"]'], lambda path: seen(path.parent))
    (found[-1].folder / "train-images-idx3-ubyte").write_bytes(numbers)
    (found[-1].folder / "train-labels-idx1-ubyte").write_bytes(labels)
    # Few bytes can stand for as many pixels as an image may have, and these take seconds.
    add("image", "binary", "a.png", pictures(), lambda path: decode(path, 8), allowed=(BrokenImage,), seconds=20,
        forms=forms.pngs())  # fmt: skip
    add("image size", "binary", "a.png", pictures(), size_of, forms=forms.pngs())
    add("image to PNG", "binary", "a.png", pictures(), as_png, allowed=(BrokenImage,), seconds=20, forms=forms.pngs())
    moving = tuple(clip(kind) for kind in ("PNG", "GIF", "WEBP", "mp4", "matroska", "avi"))
    add("clip", "binary", "a.mp4", moving, lambda path: decode_clip(path, 3, 8), allowed=(BrokenImage,), seconds=20)
    add("frame of a folder", "binary", "2.png", pictures(), lambda path: decode_frames(path.parent, 3, 8),
        allowed=(BrokenImage,), seconds=20, forms=forms.pngs())  # fmt: skip
    for number in (1, 3):
        (found[-1].folder / f"{number}.png").write_bytes(PICTURE)
    table, rows = io.BytesIO(), [{"image": {"bytes": PICTURE, "path": "a.png"}, "label": i % 2} for i in range(4)]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), table)
    add("parquet data", "binary", "train-00000-of-00001.parquet", [table.getvalue()], lambda path: seen(path.parent),
        forms=forms.parquets(PICTURE))  # fmt: skip
    add("parquet set", "binary", "train-00000-of-00001.parquet", [table.getvalue()],
        lambda path: drawn(read_parquet(path.parent, Ask(None))), forms=forms.parquets(PICTURE))  # fmt: skip
    films = io.BytesIO()
    rows = [{"video": {"bytes": moving[i], "path": None}, "label": i % 2} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), films)
    add("parquet clips", "binary", "train-00000-of-00001.parquet", [films.getvalue()],
        lambda path: seen(path.parent, frames=3), seconds=20, forms=forms.parquets(moving[1]))  # fmt: skip
    beside = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist([{"image": {"bytes": None, "path": f"{i}.png"}, "label": i % 2} for i in range(2)]), beside
    )
    add("parquet data, images beside", "binary", "train-00000-of-00001.parquet", [beside.getvalue()],
        lambda path: seen(path.parent), forms=forms.parquets(PICTURE))  # fmt: skip
    for number in range(2):
        (found[-1].folder / f"{number}.png").write_bytes(PICTURE)
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as archive:
        for number in range(4):
            for suffix, data in (
                ("png", PICTURE),
                ("cls", b"%d" % (number % 2)),
                ("json", b'{"class_name": "c%d"}' % (number % 2)),
            ):
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    add(
        "webdataset",
        "binary",
        "set-000000.tar",
        [shard.getvalue()],
        lambda path: drawn(read_webdataset(path.parent, Ask(None))),
        forms=forms.tars(
            {
                "png": [PICTURE, b"x"],
                "cls": [b"0", b"1", b"x", b"9" * 30],
                "json": [b'{"class_name": "a"}', b"{"],
                "txt": [b"a"],
            }
        ),
    )
    tensors = {
        "images": torch.arange(4 * 192).reshape(4, 3, 8, 8).remainder(256).to(torch.uint8),
        "labels": torch.tensor([0, 1, 0, 1]),
    }
    plain, safe, zipped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(tensors, plain)
    torch.save({**tensors, "labels": [0, 1, 0, 1], "class_names": ["a", "b"]}, zipped)
    from safetensors.torch import save

    safe.write(save(tensors))
    add(
        "tensors .pt",
        "binary",
        "x.pt",
        [plain.getvalue(), zipped.getvalue()],
        lambda path: drawn(read_tensors(path, Ask("2"))),
        forms=forms.torch_files([tensors, {**tensors, "labels": [0, 1, 0, 1], "class_names": ["a", "b"]}]),
    )
    add(
        "tensors .safetensors",
        "binary",
        "x.safetensors",
        [safe.getvalue()],
        lambda path: drawn(read_tensors(path, Ask("2"))),
        forms=forms.safetensors((safe.getvalue(),)),
    )
    colours = folder / "colours"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (colours / split / name).mkdir(parents=True)
            for number in range(2):
                (colours / split / name / f"{number}.png").write_bytes(PICTURE)
    source = open_source(colours, "train", size=8)
    lines = b"".join(
        json.dumps({"path": f"{c}/{i}.png", "caption": f"a {c}"}).encode() + b"\n"
        for c in ("cat", "dog")
        for i in (0, 1)
    )
    add("captions", "lines", "captions.jsonl", [lines, lines.replace(b"path", b"file_name").replace(b"caption", b"text")],
        lambda path: read_captions(path, source))  # fmt: skip

    def captioned(path: Path) -> Any:
        _check_out(path)
        return write_captions(source, path, lambda images, ask: ["a cat"] * len(images), "m", ask="what is it?")

    more = [json.dumps({**json.loads(line), "model": "m", "ask": "what is it?"}) for line in lines.splitlines()[:2]]
    add("resume: captions", "lines", "captions.jsonl", ["\n".join(more).encode()], captioned)
    rows = [["file_name", "label"], ["0.png", "cat"], ["1.png", "dog"]]
    for name, file, seed in (("labels.csv", "labels.csv", b"file_name,label\n0.png,cat\n1.png,dog\n"),
                             ("metadata.jsonl", "metadata.jsonl", LINES)):  # fmt: skip
        add(f"table {name}", "lines" if file.endswith("l") else "binary", file, [seed], lambda path: seen(path.parent),
            forms=None if file.endswith("l") else forms.csvs(rows))  # fmt: skip
        for number in range(2):
            (found[-1].folder / f"{number}.png").write_bytes(PICTURE)
    add("list train.txt", "binary", "train.txt", [b"cat/a 0.png\ndog/b 1.png\n"], lambda path: seen(path.parent))
    for name in ("cat/a 0.png", "dog/b 1.png"):
        (found[-1].folder / name).parent.mkdir()
        (found[-1].folder / name).write_bytes(PICTURE)
    add("folder tree", "tree", "", [], lambda place: seen(place), make=plant)
    add("folder tree, test", "tree", "", [], lambda place: seen(place, "test"), make=plant)
    add("import: which layout", "tree", "", [], detect, make=plant)
    return found
