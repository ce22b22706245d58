"""Fashion-MNIST as tensors, for the scripts that trained the starters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dap import starter
from dap.data.real.idx import read_idx


def training_images(split: str) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST as the starter was trained on it: images (n, 1, 32, 32), uint8, zero-padded from 28 px, and labels
    (n,)."""
    stem = {"train": "train", "test": "t10k"}[split]
    images = torch.from_numpy(read_idx(starter.DATA / f"{stem}-images-idx3-ubyte.gz"))
    labels = torch.from_numpy(read_idx(starter.DATA / f"{stem}-labels-idx1-ubyte.gz")).long()
    return F.pad(images[:, None], (2, 2, 2, 2)), labels
