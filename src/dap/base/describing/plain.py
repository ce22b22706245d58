"""Values that hold no others, such as numbers, texts, tensors and arrays, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dap.base.describing.code import name_of_code
from dap.base.describing.hashes import hash_of_long

LONGEST = 2000
"""How many characters of a value are kept. Of a longer one the record has a hash."""


class Unknown(Exception):
    """A value cannot be described. The text, if there is any, says which function of the user's holds it."""


HOLDS = object()
"""What `plain` gives for a value that may hold others."""


def plain(value: Any) -> Any:
    """The description of a value that holds no others; `HOLDS` for all that may hold some."""
    value = _of_python(value)
    kind = type(value)
    if kind is int and value.bit_length() > LONGEST:  # Python refuses to write so many digits
        return {"number": short(hex(value))}
    if value is None or kind in (bool, int, str):
        return short(value) if kind is str else value
    if kind is float:
        return value if math.isfinite(value) else {"number": str(value)}
    if kind in (complex, range, slice) or isinstance(value, (Path, torch.dtype)):
        return {"class": name_of_code(kind), "value": str(value)}
    if isinstance(value, torch.device):  # it decides no more than a rounding
        return {"class": name_of_code(kind)}
    if kind in (bytes, bytearray):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Tensor):
        return _tensor(value)
    if kind is np.ndarray and value.dtype.kind in "biufcSU":
        return _array(value.tobytes(), str(value.dtype), value.shape)
    return HOLDS


def _of_python(value: Any) -> Any:
    """A number or a text of numpy as one of Python, if Python has such a one."""
    return value.item() if isinstance(value, np.generic) and value.dtype.kind in "biufcSU" else value


def _tensor(value: Tensor) -> dict[str, Any]:
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise Unknown
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return _array(flat.view(torch.uint8).numpy().tobytes(), str(value.dtype), value.shape)


def _array(data: bytes, kind: str, shape: Any) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "dtype": kind, "shape": list(shape)}


def short(value: Any) -> Any:
    """A description, or its hash where it is long, since people read these records."""
    text = json.dumps(value, sort_keys=True)
    return value if len(text) <= LONGEST else hash_of_long(value)
