"""A picture of what a backbone makes while it is trained: real images, their reconstructions, and samples of some classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dap.backbones.guided import ClassifierFree
from dap.backbones.modules import ModuleBackbone
from dap.base.files import write_atomically
from dap.data.real.names import drawn
from dap.data.real.stored.streams import as_bytes
from dap.pretraining.pictures import Pictures
from dap.sampling import Batch
from dap.sampling import images as sampled

FILE = "preview.png"
COLUMNS, MOST_CLASSES, STEPS = 8, 12, 20
NAMED = 132
"""The width in px of the column of names."""


@torch.no_grad()
def reconstructions(vae: Any, pictures: Pictures, device: torch.device) -> list[tuple[str, Tensor]]:
    """Two rows: some images, spread over the classes, and their reconstructions."""
    rows = torch.linspace(0, len(pictures) - 1, min(COLUMNS, len(pictures))).long()
    x = pictures.stills(pictures.take(rows, device))[:: pictures.frames or 1]  # of each clip its first frame
    again = vae.decode(vae.encode(x).latent_dist.mean).sample.float()
    return [("held out", (x + 1) / 2), ("reconstructed", (again.clamp(-1, 1) + 1) / 2)]


@torch.no_grad()
def samples(backbone: ModuleBackbone, class_names: Sequence[str]) -> list[tuple[str, Tensor]]:
    """A row of samples for each of some classes; of clips a row of frames of one sample. The noise is the same each time."""
    frames, columns = backbone.card.frames, COLUMNS if backbone.card.frames is None else 1
    labels = torch.linspace(0, len(class_names) - 1, min(MOST_CLASSES, len(class_names))).long().unique().tolist()
    batch = Batch.of(
        class_names, [label for label in labels for _ in range(columns)], [*range(columns)] * len(labels), 0
    )
    model = ClassifierFree(backbone, backbone.card.cfg, backbone.card.cfg_channels)
    made = sampled(model, None, batch, steps=STEPS, solver="dpm++2m")
    names = [drawn(str(class_names[label]), label) for label in labels]
    if frames is not None:
        shown = torch.linspace(0, frames - 1, min(COLUMNS, frames)).long()
        return [(name, clip[:, shown].transpose(0, 1)) for name, clip in zip(names, made, strict=True)]
    return list(zip(names, made.split(COLUMNS), strict=True))


def write_preview(folder: Path, rows: Sequence[tuple[str, Tensor]]) -> None:
    """Write rows of images (n, 3, side, side) in [0, 1], each with its name, as preview.png."""
    side = rows[0][1].shape[-1]
    times = max(1, 64 // side)
    side *= times
    page = Image.new("RGB", (NAMED + COLUMNS * (side + 2), len(rows) * (side + 2)), "white")
    draw = ImageDraw.Draw(page)
    for line, (name, images) in enumerate(rows):
        draw.text((4, line * (side + 2) + side // 2 - 6), name[:22], fill="black")
        for column, image in enumerate(images):
            pixels = as_bytes(image.cpu().clamp(0, 1)).permute(1, 2, 0).numpy()
            tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            page.paste(tile, (NAMED + column * (side + 2), line * (side + 2)))
    with io.BytesIO() as file:
        page.save(file, "PNG")
        write_atomically(folder / FILE, file.getvalue())
