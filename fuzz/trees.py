"""Folders described by text: one entry a line, `KIND PATH`. So folders are damaged and shrunk like any other input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

from fuzz.pictures import picture

WORDS = (
    "train", "test", "val", "valid", "validation", "dev", "Training", "Testing", "images", "cat", "dog", "unknown", "0", "1",
    "a.png", "b.jpg", "labels.csv", "metadata.jsonl", "metadata.csv", "classes.json", "train.csv", "data", ".hidden",
    "train-00000.parquet", "train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz", "é", "n01440764", "model_index.json",
    "a\r", "e\u0301", "CAT", "cat~2", "a" * 200, "0.png", "1.png", "2.png", "README.md", "export.json", "manifest.jsonl",
)  # fmt: skip
LINKS = ("/dev/zero", "/dev/null", "..", ".", "nowhere", "/etc/passwd")
PICTURE = picture()
CONTENTS: dict[str, bytes] = {
    "image": PICTURE,
    "empty": b"",
    "noise": bytes(range(256)),
    "table": b"file_name,label\na.png,cat\n",
    "bytes-table": b"file_name,label\na.png,cat\n\xff",
    "wide-table": b"file_name,label\na.png,cat\nb.jpg,1,2\n",
    "nul-table": b"file_name,label\na.png,cat\n\0",
    "captions": json.dumps({"file_name": "a.png", "text": "a cat"}).encode() + b"\n",
    "lines": json.dumps({"file_name": "a.png", "label": "cat"}).encode() + b"\n",
    "half-lines": json.dumps({"file_name": "a.png", "label": 1}).encode() + b"\n{}\n[\n\xff",
    "names": b'["cat", "dog"]',
    "object": b"{}",
    "deep": b"[" * 2000,
}
KINDS = (*CONTENTS, "folder", "pipe", "link", "up")
USUAL = ("image",) * 8


def plant(folder: Path, described: bytes) -> None:
    """Make the entries below a folder. An entry that the file system refuses is passed over."""
    for line in described.split(b"\n"):
        kind, _, name = line.partition(b" ")
        place = folder / os.fsdecode(name)
        if not name or ".." in place.parts or not place.is_relative_to(folder) or place == folder:
            continue
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(place):
                _make(place, kind.decode("ascii", "replace"), folder)
        except (OSError, ValueError):
            continue


def _make(place: Path, kind: str, folder: Path) -> None:
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "up":
        place.symlink_to(folder)
    elif kind == "link":
        place.symlink_to(LINKS[len(place.name) % len(LINKS)])
    elif kind in CONTENTS:
        place.write_bytes(CONTENTS[kind])


def described(random: Random) -> bytes:
    """A random folder."""
    lines = []
    for _ in range(random.randint(0, 12)):
        parts = random.choices(WORDS, k=random.randint(1, 4))
        if random.random() < 0.5:
            parts[-1] = f"{random.randrange(5)}.png"
        lines.append(f"{random.choice((*KINDS, *USUAL))} {'/'.join(parts)}")
    return "\n".join(lines).encode()
