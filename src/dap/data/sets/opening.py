"""Opens a file of tensors of a stranger: no code in it is run, and it takes no more memory than its size promises."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dap.base.documents import check_fetched
from dap.base.errors import DapError
from dap.base.parsing import shown

LARGEST_PICKLE = 64 * 2**20
"""How many bytes the list of the contents of a .pt file may have."""
LARGEST_REPEATED = 2**30
"""How many bytes a tensor may take that repeats the values which the file holds once."""


def open_tensors(file: Path) -> Any:
    """The contents of a .pt, .pth or .safetensors file: tensors, arrays of numpy and plain values.

    Raises:
        DapError: the file is damaged, claims more than it holds, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_fetched(file)
    try:
        if file.suffix.lower() == ".safetensors":
            return load_file(file)
        records = _check_archive(file)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_arrays()):
            warnings.simplefilter("ignore")
            held = torch.load(file, map_location="cpu", weights_only=True)
        _check_storages(held, records, file)
        return held
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise DapError(
            f"{shown(file)} holds more than tensors and plain values{f' ({named[1]})' if named else ''}, and unpickling that "
            "could run any code, so it is not opened; where you trust it, load it yourself and save its images and labels alone."
        ) from error
    except DapError:
        raise
    except MemoryError as error:
        raise DapError(f"{shown(file)} claims more values than memory holds; it is damaged.") from error
    except (SafetensorError, Exception) as error:  # a damaged file can raise nearly anything inside torch
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DapError(f"{shown(file)} cannot be read as tensors: {first}") from error


def _check_archive(file: Path) -> dict[str, int]:
    """The sizes of the records of a .pt file, by name; {} for a file of torch before 1.6, which is no archive.

    Raises:
        DapError: the archive is packed or claims more than the file holds.
    """
    with file.open("rb") as opened:
        if opened.read(4) != b"PK\3\4":
            return {}
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DapError(f"{shown(file)} cannot be read as tensors: {error}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DapError(
            f"{shown(file)} is packed, as torch.save never does, so it is not opened; save it with torch.save."
        )
    if sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise DapError(f"{shown(file)} claims to hold more bytes than it has; it is damaged.")
    if any(entry.filename.endswith("data.pkl") and entry.file_size > LARGEST_PICKLE for entry in entries):
        raise DapError(
            f"{shown(file)} has a list of contents above {LARGEST_PICKLE:,} bytes; save images and labels alone."
        )
    return {entry.filename.partition("/")[2]: entry.file_size for entry in entries}


def _arrays() -> list[Any]:
    """What torch must know to read arrays of numpy, under the names of numpy 1 and 2."""
    rebuild, scalar = np._core.multiarray._reconstruct, np._core.multiarray.scalar  # type: ignore[attr-defined]
    known: list[Any] = [np.ndarray, np.dtype, rebuild, scalar]
    known += [(rebuild, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar")]
    return [*known, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}, type(np.dtype("U1"))]


def _check_storages(held: Any, records: dict[str, int], file: Path) -> None:
    """Refuse tensors that claim more than their record holds, or that are no plain values in memory."""
    sizes = [size for name, size in records.items() if name.startswith("data/")]
    for tensor in _tensors(held):
        plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or getattr(tensor, "is_nested", False):
            kind = "meta" if tensor.device.type == "meta" else str(tensor.layout).removeprefix("torch.")
            kind = "quantised" if tensor.is_quantized else kind
            raise DapError(
                f"{shown(file)} holds a tensor that is {kind}; save plain tensors, as x.dequantize() or x.to_dense()."
            )
        claimed, needed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
        if records and claimed > max(sizes, default=0):
            raise DapError(f"{shown(file)} claims a tensor of {claimed:,} bytes, more than it holds; it is damaged.")
        if needed > max(claimed, LARGEST_REPEATED):
            raise DapError(
                f"{shown(file)} holds a tensor that repeats its values to {needed:,} bytes; save x.contiguous()."
            )


def _tensors(held: Any) -> list[Tensor]:
    """Every tensor in the contents of a file. Each list and dictionary is looked at once."""
    found: list[Tensor] = []
    seen: set[int] = set()
    pending = [held]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple, set)):
            pending += value
    return found
