"""Makes captions from a few statistics of an image, so that methods that need captions can run without a captioner.

    python benchmarks/simple_captions.py --data fashion-mnist --out captions.jsonl
    dap distill --method vlcp --captions captions.jsonl --backbone starter-unet --out runs/vlcp

A caption is the name of the class and two words, such as "dress dark tall". The words say how the image differs from
the median of its class: bright or dark, wide or tall (this is the shape of the part that is brighter than the border),
and plain or rough. The two words with the largest difference are taken. Such captions say little about an image. They
are for tests and demonstrations, and do not replace a captioner.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from dap.data.real.sources import Source, open_source
from dap.imagenet import spoken

WORDS = (("dark", "bright"), ("tall", "wide"), ("plain", "rough"))
"""For each column of `statistics`, the word for values below the median and the word for values above it."""


def statistics(images: Tensor) -> Tensor:
    """Statistics (n, 3) of images (n, 3, h, w) in [0, 1]: mean brightness, width minus height of the figure, and
    roughness."""
    grey = images.mean(1)
    figure = (grey > 0.1).float()
    extent = [figure.amax(side).sum(1) for side in (1, 2)]
    steps = grey.diff(dim=2).abs().sum((1, 2)) / figure.sum((1, 2)).clamp_min(1)
    return torch.stack([grey.mean((1, 2)), extent[0] - extent[1], steps], 1)


def captions(source: Source, label: int, most: int) -> list[tuple[str, str]]:
    """Pairs (key, caption) for at most `most` images of the class that can be decoded."""
    kept, images = source.readable(label, range(min(source.count(label), most)))
    found = statistics(images)
    off = found - found.median(0).values
    off = off / off.std(0, correction=0).clamp_min(1e-9)
    name, lines = spoken(source.class_names[label]).lower(), []
    for key, row in zip(source.keys(label, kept), off, strict=True):
        strongest = row.abs().argsort(descending=True, stable=True)[:2].sort().values.tolist()
        lines.append((key, " ".join([name, *(WORDS[i][int(row[i] > 0)] for i in strongest)])))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="fashion-mnist", help="real images, as in a recipe (%(default)s)")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="as in a recipe")
    parser.add_argument("--size", type=int, default=32, help="px that images are looked at in (%(default)s)")
    parser.add_argument("--per-class", type=int, default=2000, help="images of each class (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    args = parser.parse_args()
    source = open_source(args.data, "train", size=args.size, classes=args.classes)
    found = [pair for label in range(len(source.class_names)) for pair in captions(source, label, args.per_class)]
    lines = [json.dumps({"path": key, "caption": text}, ensure_ascii=False) for key, text in found]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} captions in {args.out}")


if __name__ == "__main__":
    main()
