"""The IDX format of MNIST and its successors.

The header is big-endian: two zero bytes, a type byte, the number of dimensions, then a 32-bit size for each dimension.
The values follow in C order. Files may be gzipped. The format is described on Yann LeCun's MNIST page.
"""

from __future__ import annotations

import gzip
import math
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

_PIECE = 16 * 2**20
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


LARGEST = 16 * 2**30
"""How many bytes of values a file may hold: 16 GiB."""


def read_idx(path: str | Path) -> np.ndarray:
    """The array stored in an IDX file, gzipped or not. No more is unpacked than the header promises.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the file is no regular file or not IDX, it holds fewer or more values than its header promises, or the
            header promises more than `LARGEST` bytes.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file; put the IDX file in its place")
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return _values(file, path)
        file.seek(0)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _values(unpacked, path)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error


def _values(file: BinaryIO | gzip.GzipFile, path: Path) -> np.ndarray:
    """The array of an opened file."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _DTYPES:
        raise ValueError(f"{path} is not an IDX file (its first bytes are {head.hex(' ')})")
    dtype, rank = np.dtype(_DTYPES[head[2]]), head[3]
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(f"{path} is cut off inside its header")
    shape = struct.unpack(f">{rank}I", sizes)
    expected = math.prod(shape) * dtype.itemsize
    # The other sides count even where one is zero: numpy refuses an empty array of enormous sides.
    if math.prod(max(1, side) for side in shape) * dtype.itemsize > LARGEST or rank > 8:
        raise ValueError(
            f"{path} has a header that promises {expected:,} bytes of values, shape {shape[:8]}; it is damaged"
        )
    held = bytearray()
    # Read in pieces, because a damaged header may promise gigabytes of a small file.
    while len(held) < expected and (piece := file.read(min(_PIECE, expected - len(held)))):
        held += piece
    if len(held) < expected:
        raise ValueError(f"{path} should hold {expected} bytes of values for shape {shape}, but holds {len(held)}")
    if file.read(1):
        raise ValueError(f"{path} should hold {expected} bytes of values for shape {shape}, but holds more")
    return np.frombuffer(held, dtype).reshape(shape).astype(dtype.newbyteorder("="))
