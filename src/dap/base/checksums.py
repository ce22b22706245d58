"""Checksums of what a program keeps for later, so that damaged or exchanged files are not taken for what was kept.

A checksum finds accidents: a bad disk, a cut file, a file that was renamed to another one. It does not stop a person who
writes both a file and its checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest_of(value: Any) -> str:
    """The sha256, as 64 hex digits, of tensors, numbers, texts, and lists and mappings of these.

    Two values have the same checksum if they have the same structure, types, shapes and bytes. A mapping's order counts.
    """
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        if value.numel():
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for key, inner in value.items():
            _add(digest, key)
            _add(digest, inner)
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)} ".encode())
        for inner in value:
            _add(digest, inner)
    else:
        said = sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else repr(value)
        digest.update(f"{type(value).__name__} {said} ".encode("utf-8", "backslashreplace"))
