"""Makes a folder of small colour images with class names that no shipped backbone knows: emoji by category.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    python benchmarks/emoji.py emoji-datasource-*.tgz --out ~/emoji

The images are 64 px PNGs of two vendors. Noto's (google) are under the Apache License 2.0, Twemoji's (twitter) under CC-BY 4.0.
They are not a part of this repository. The folder has train/<category>/<vendor>-<code>.png and test/<category>/…. An emoji is in
one split with all its vendors, and a hash of its code says in which, so that no network is tested on another drawing of an
emoji that it was trained on. Variants by skin tone or gender are left out. The same packages give the same folder, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

CLASSES = (
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
TESTED = 0.25
"""The part of the emoji that is for testing."""


def split_of(code: str) -> str:
    """The split of an emoji, by the hash of its code points."""
    return "test" if int(hashlib.sha256(code.encode()).hexdigest()[:8], 16) / 16**8 < TESTED else "train"


def unpack(package: Path, out: Path) -> Counter[tuple[str, str]]:
    """Write the images of one vendor's package; returns the counts by split and class."""
    found = re.match(r"emoji-datasource-([a-z]+)-", package.name)
    if found is None:
        raise SystemExit(f"{package.name} is not named emoji-datasource-<vendor>-<version>.tgz, as npm pack names it")
    vendor, counts = found[1], Counter[tuple[str, str]]()
    with tarfile.open(package) as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(f"package/{name}")
            assert member is not None, name
            return member.read()

        wanted = {one["image"]: one for one in json.loads(read("emoji.json")) if one["category"] in CLASSES}
        for image, emoji in wanted.items():
            if not emoji[f"has_img_{vendor}"]:
                continue
            split, category = split_of(emoji["unified"]), emoji["category"]
            target = out / split / category / f"{vendor}-{image}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read(f"img/{vendor}/64/{image}"))
            counts[split, category] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, help="what npm pack has downloaded")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    counts = sum((unpack(package, args.out) for package in args.packages), Counter[tuple[str, str]]())
    for (split, category), count in sorted(counts.items()):
        print(f"{split:5}  {category:18} {count:5}")
    print(f"{counts.total()} images in {args.out}")


if __name__ == "__main__":
    main()
