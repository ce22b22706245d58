"""The DINOv2 of a REG (Wu et al. 2025), whose class token the network denoises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dap.backbones.converting.with_encoder.opening import EXAMPLES, folder_of, open_encoder
from dap.backbones.kinds.reg import PATCH
from dap.base.errors import DapError


def class_encoder(path: Path, source: str | None, numbers: int, size: int, *, dtype: str, offline: bool) -> Any:
    """The encoder of a checkpoint's class tokens, which reads images as the authors' training showed them.

    Args:
        path: the checkpoint, for messages.
        source: the folder or hub id of the DINOv2.
        numbers: how many numbers the class token of the checkpoint has.
        size: the side of its images in px.
        dtype: the number format of the weights.
        offline: read only the local cache.

    Raises:
        DapError: no encoder is named, there is none, or it makes another class token.
    """
    if source is None:
        raise DapError(
            f"{path.name} is a REG, which denoises the class token of a DINOv2; give --encoder a folder or hub id, such as "
            f"{EXAMPLES['dinov2']}."
        )
    if size % PATCH:
        raise DapError(f"{path.name} makes images of {size} px, which have no whole patches of {PATCH} px.")
    encoder = open_encoder(folder_of(source, (), offline=offline), "dinov2", dtype=dtype)
    if encoder.config.hidden_size != numbers:
        raise DapError(
            f"{path.name} denoises a class token of {numbers} numbers, and that of {source} has {encoder.config.hidden_size}; "
            f"give --encoder the DINOv2 that it was trained with (768 numbers: {EXAMPLES['dinov2']})."
        )
    grid, patch = size // PATCH, encoder.config.patch_size
    inner, table = encoder.embeddings, encoder.embeddings.position_embeddings
    inner.position_embeddings = nn.Parameter(resampled(table.detach(), grid), requires_grad=False)
    encoder.config.image_size = grid * patch
    inner.patch_embeddings.image_size, inner.patch_embeddings.num_patches = (grid * patch,) * 2, grid**2
    return encoder


def resampled(table: Tensor, grid: int) -> Tensor:
    """A table of positions (1, 1 + n², width) for grid² patches, (1, 1 + grid², width).

    The authors of REPA and REG resample it once by antialiased bicubic interpolation (timm's `resample_abs_pos_embed`), which is
    another table than DINOv2 itself would interpolate for each image.
    """
    first, places = table[:, :1], table[:, 1:]
    side = round(places.shape[1] ** 0.5)
    if side == grid:
        return table.clone()
    square = places.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    square = F.interpolate(square, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat([first, square.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
