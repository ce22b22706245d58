"""The IDX format of MNIST and its successors.

The header is big-endian: two zero bytes, a type byte, the number of dimensions, then a 32-bit size for each dimension.
The values follow in C order. Files may be gzipped. The format is described on Yann LeCun's MNIST page.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """The array stored in an IDX file, gzipped or not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not IDX, or holds fewer values than its header promises.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES:
        raise ValueError(f"{path} is not an IDX file (its first bytes are {raw[:4].hex(' ')})")
    dtype, rank = np.dtype(_DTYPES[raw[2]]), raw[3]
    start = 4 + 4 * rank
    if len(raw) < start:
        raise ValueError(f"{path} is cut off inside its header")
    shape = struct.unpack(f">{rank}I", raw[4:start])
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) - start != expected:
        raise ValueError(
            f"{path} should hold {expected} bytes of values for shape {shape}, but holds {len(raw) - start}"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
