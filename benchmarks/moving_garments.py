"""A toy of clips: garments of Fashion-MNIST that move to the left or to the right. It is synthetic, and made in seconds.

Command: `python -P benchmarks/moving_garments.py --out DIR`.

A class is a garment and a direction, such as "Bag left". A garment that leaves on one side comes back on the other, and it starts
anywhere. So no single frame says the direction, and who looks at single frames is right in half of the cases at best. Images of
the test split are in the clips of the test split alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dap.base.seeding import seed_of
from dap.data.real.clips.moving import encode_clip
from dap.starter import CLASS_NAMES
from dap.starter.images import training_images

DIRECTIONS = {"left": -1, "right": 1}


def moved(image: Tensor, direction: int, start: int, *, frames: int, size: int, speed: int) -> np.ndarray:
    """A clip (frames, size, size, 3), uint8, of a garment that moves `speed` pixels a frame.

    Args:
        image: the garment, (1, 32, 32) uint8.
        direction: −1 for the left, 1 for the right.
        start: by how many pixels the garment is moved in the first frame.
        frames, size, speed: of the clip.
    """
    side = size * 5 // 8
    small = interpolate(image[None].float(), (side, side), mode="area")[0, 0].round().byte()
    rest = size - side
    still = pad(small, (rest // 2, rest - rest // 2, rest // 2, rest - rest // 2))
    clip = torch.stack([still.roll(start + direction * speed * frame, dims=1) for frame in range(frames)])
    return clip[..., None].expand(-1, -1, -1, 3).numpy()


def write(
    out: Path, garments: list[str], counts: dict[str, int], *, frames: int, size: int, speed: int, seed: int
) -> None:
    """Write `out/SPLIT/GARMENT DIRECTION/NUMBER.png`, an animated PNG each, `counts[split]` in each class."""
    for split, count in counts.items():
        images, labels = training_images(split)
        for garment in garments:
            mine = images[labels == CLASS_NAMES.index(garment)]
            for name, direction in DIRECTIONS.items():
                generator = torch.Generator().manual_seed(seed_of(seed, f"{garment} {name}", split))
                folder = out / split / f"{garment} {name}"
                folder.mkdir(parents=True, exist_ok=True)
                rows = torch.randperm(len(mine), generator=generator)[:count]
                starts = torch.randint(size, (count,), generator=generator).tolist()
                for number, (row, start) in enumerate(zip(rows.tolist(), starts, strict=True)):
                    clip = moved(mine[row], direction, start, frames=frames, size=size, speed=speed)
                    (folder / f"{number:04d}.png").write_bytes(encode_clip(clip))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--garments", nargs="+", default=["Trouser", "Bag", "Ankle boot"], choices=CLASS_NAMES)
    parser.add_argument("--train", type=int, default=100, help="training clips of each class")
    parser.add_argument("--test", type=int, default=30, help="test clips of each class")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--speed", type=int, default=2, help="pixels a frame")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    how = {"frames": args.frames, "size": args.size, "speed": args.speed, "seed": args.seed}
    write(args.out, args.garments, {"train": args.train, "test": args.test}, **how)


if __name__ == "__main__":
    main()
