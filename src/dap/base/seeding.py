"""Random numbers with one generator for each image.

An image then depends on its own seed alone. The batch it is made in, the order of the work and a resume change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: object) -> int:
    """A seed of 63 bits: the hash of the parts, as in `seed_of(run_seed, class_name, slot)`. Versions do not change it."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def image_seeds(run_seed: int, class_names: Sequence[str], labels: Sequence[int], slots: Sequence[int]) -> list[int]:
    """The seed of each image: a hash of (run seed, class name, slot)."""
    return [seed_of(run_seed, class_names[label], slot) for label, slot in zip(labels, slots, strict=True)]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each seed. They serve other devices too, so that an image does not depend on the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def normal(shape: Sequence[int], gens: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normal noise (B, *shape) on the device and in the dtype of `like`; generator k draws row k."""
    rows = [torch.randn(*shape, generator=g) for g in gens]
    return torch.stack(rows).to(like)
