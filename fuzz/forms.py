"""Binary files by hypothesis: whole ones whose contents are unusual, and nearly whole ones.

Flipped bits seldom come through a checksum or a length. These files have right ones, so what lies behind them is read.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from fuzz.strategies import Bytes, changed, documents, flat, leaves, texts

Draw = Callable[..., Any]

DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "BOOL": 1,
    "F8_E4M3": 1, "C64": 8, "F4": 1, "X": 1, "": 4,
}  # fmt: skip
KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.int8,
         torch.bool, torch.complex64)  # fmt: skip
SIDES = st.one_of(st.sampled_from((0, 1, 2, 3, 4, 8)), st.integers(0, 9))


def _shape_like(draw: Draw, shape: list[int]) -> list[int]:
    """The shape itself, or one with another side, one more, or one less."""
    shape = list(shape)
    match draw(st.integers(0, 5)):
        case 0:
            shape.insert(draw(st.integers(0, len(shape))), draw(SIDES))
        case 1 if shape:
            shape.pop(draw(st.integers(0, len(shape) - 1)))
        case 2 if shape:
            shape[draw(st.integers(0, len(shape) - 1))] = draw(SIDES)
    return shape


@st.composite
def safetensors(draw: Draw, seeds: tuple[bytes, ...]) -> bytes:
    """A safetensors file: tensors of the valid ones with other types, shapes, values, names and metadata, all of it whole; or
    with a header that lies."""
    seed = draw(st.sampled_from(seeds))
    length = int.from_bytes(seed[:8], "little")
    header: dict[str, Any] = json.loads(seed[8 : 8 + length])
    body = seed[8 + length :]
    if draw(st.booleans()):
        header = draw(changed([header]))
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body
    about, parts, at = header.pop("__metadata__", {}), [], 0
    names, odd = list(header), {}
    if names:  # most tensors stay as they are
        odd = {
            name: draw(st.integers(0, 6)) for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
        }
    found: dict[str, Any] = {}
    for name, said in header.items():
        start, end = said["data_offsets"]
        data, kind, shape = body[start:end], said["dtype"], said["shape"]
        match odd.get(name):
            case 0:
                continue
            case 1:
                name = draw(st.one_of(st.sampled_from(names), texts))
            case 2:
                kind = draw(st.sampled_from(list(DTYPES)))
            case 3:
                shape = _shape_like(draw, shape)
            case 4 | 5:
                data = draw(st.sampled_from((b"\0", b"\xff", b"\x7f\x80", b"\x01", b"\0\0\xc0\x7f"))) * (len(data) + 1)
        size = DTYPES.get(kind, 4)
        for side in shape:
            size *= side
        data = (data * (size // max(1, len(data)) + 1))[:size] if size < 2**20 else data
        parts.append(data)
        found[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    if draw(st.booleans()):
        said = draw(changed([_unfolded(about)]))
        said = said if isinstance(said, dict) else {"facts": said}
        about = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    text = json.dumps({"__metadata__": about, **found}).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def _unfolded(about: dict[str, str]) -> dict[str, Any]:
    """Metadata whose texts are JSON, with the values of these texts."""
    found: dict[str, Any] = {}
    for key, value in about.items():
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


@st.composite
def tensors(draw: Draw, like: torch.Tensor | None = None) -> Any:
    """A tensor, plain or of the other kinds that torch saves."""
    shape = _shape_like(draw, list(like.shape)) if like is not None else draw(st.lists(SIDES, max_size=4))
    kind = draw(st.sampled_from(KINDS))
    if like is not None and like.dtype in KINDS and draw(st.booleans()):
        kind = like.dtype
    value = draw(st.sampled_from((0, 1, 2, -1, 255, 300, float("nan"), float("inf"), 1e30)))
    try:
        made = torch.full(shape, value, dtype=kind)
    except (RuntimeError, OverflowError, ValueError):
        made = torch.zeros(shape, dtype=kind)
    try:
        return _of_kind(made, draw(st.integers(0, 12)))
    except (RuntimeError, TypeError):  # not every type has every kind
        return made


def _of_kind(made: torch.Tensor, number: int) -> Any:
    match number:
        case 0:
            return made.to("meta")
        case 1 if made.ndim:
            return made.to_sparse()
        case 2 if made.ndim and made.shape[-1]:
            return made[..., :1].expand(made.shape)
        case 3:
            return torch.quantize_per_tensor(made.nan_to_num(0, 0, 0), 0.1, 0, torch.quint8)
        case 4:
            return torch.nn.Parameter(made, requires_grad=made.is_floating_point())
        case 5:
            return made.numpy()
    return made


@st.composite
def torch_files(draw: Draw, valid: list[Any]) -> bytes:
    """A file of `torch.save`: one of the valid contents in which some values are other tensors or other plain values."""
    value = _edited(draw, draw(st.sampled_from(valid)), draw(st.integers(1, 3)))
    out = io.BytesIO()
    try:
        torch.save(value, out, _use_new_zipfile_serialization=draw(st.integers(0, 5)) > 0)
    except Exception:  # torch cannot save every mixture
        return b""
    return out.getvalue()


def _edited(draw: Draw, value: Any, changes: int) -> Any:
    """The contents with some changes inside. Nothing of the valid contents is changed itself."""
    if isinstance(value, dict) and value and draw(st.integers(0, 7)):
        found = dict(value)
        for _ in range(changes):
            key = draw(st.sampled_from(list(value)))
            match draw(st.integers(0, 6)):
                case 0:
                    found.pop(key, None)
                case 1:
                    found[draw(texts)] = found.get(key)
                case 2:
                    found[key] = draw(flat)
                case _:
                    found[key] = _edited(draw, found.get(key, value[key]), 1)
        return found
    if isinstance(value, list) and value and draw(st.integers(0, 7)):
        found = list(value)
        one = draw(st.integers(0, len(found) - 1))
        found[one] = _edited(draw, found[one], 1)
        return found
    if isinstance(value, torch.Tensor) and draw(st.integers(0, 7)):
        return draw(tensors(value))
    return draw(st.one_of(flat, tensors(), st.dictionaries(texts, tensors(), max_size=2)))


@st.composite
def npz(draw: Draw, valid: dict[str, np.ndarray]) -> bytes:
    """An archive of numpy in which some arrays have other shapes, types and values."""
    found: dict[str, Any] = dict(valid)
    for name in draw(st.lists(st.sampled_from(list(valid)), max_size=3)):
        match draw(st.integers(0, 4)):
            case 0:
                found.pop(name, None)
            case 1:
                found[name] = np.array([{"a": 1}, None], dtype=object)
            case 2:
                found[name] = np.array(draw(st.one_of(st.text(max_size=5), st.integers(-(2**40), 2**40), st.floats())))
            case _:
                shape = _shape_like(draw, list(valid[name].shape))
                kind = draw(
                    st.sampled_from(
                        ("<f4", "<f8", "<f2", "<i8", "<i4", "|u1", "|b1", "<c8", "<U3", "|S2", "<M8[s]", ">f4")
                    )
                )
                with np.errstate(all="ignore"):
                    value = draw(st.sampled_from((0, 1, -1, 10**6 + 1, float("nan"), 1e30)))
                    try:
                        found[name] = np.full(shape, value).astype(kind)
                    except (ValueError, OverflowError):
                        found[name] = np.zeros(shape, kind)
    out = io.BytesIO()
    draw(st.sampled_from((np.savez, np.savez_compressed)))(out, **found)
    return out.getvalue()


MEMBERS = ("00000", "00001", "a/b", "../x", "/etc/x", "é", "a.b", "", "a" * 120, "images/cat/0")


@st.composite
def tars(draw: Draw, files: dict[str, list[bytes]]) -> bytes:
    """A tar of members by suffix, some of them of other kinds or with other contents."""
    out = io.BytesIO()
    form = draw(st.sampled_from((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for _ in range(draw(st.integers(0, 8))):
            suffix = draw(st.sampled_from(list(files)))
            info = tarfile.TarInfo(f"{draw(st.sampled_from(MEMBERS))}.{suffix}")
            info.type = draw(
                st.sampled_from(
                    (tarfile.REGTYPE,) * 8 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
                )
            )
            info.linkname = "x" if info.issym() or info.islnk() else ""
            data = draw(st.one_of(st.sampled_from(files[suffix]), documents.map(lambda d: json.dumps(d).encode())))
            info.size = len(data) if info.isreg() else 0
            try:
                archive.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):
                continue
    return out.getvalue()


LABELS = (
    st.integers(0, 2), st.integers(-1, 2**62), st.sampled_from(("cat", "dog", "")), st.floats(), st.none(), st.booleans(),
    st.lists(st.integers(0, 1), max_size=2), st.binary(max_size=2),
)  # fmt: skip


def _images(image: bytes) -> tuple[Any, ...]:
    """What the cell of an image may hold."""
    inside = ({"bytes": image, "path": "a.png"}, {"bytes": None, "path": "0.png"}, {"path": "a.png"}, {"bytes": image})
    return (image, image[:40], b"", None, "a.png", "../x.png", *inside, 1, [image])


@st.composite
def parquets(draw: Draw, image: bytes) -> bytes:
    """A parquet file of rows with an image and a label in the forms that people use, and in others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    one = draw(pictures := st.sampled_from(_images(image)))
    labels = draw(st.sampled_from(LABELS))
    names = (
        st.sampled_from(("image", "image", "img", "x")),
        st.sampled_from(("label", "label", "labels", "fine_label", "text")),
    )
    cells = st.one_of(st.just(one), st.just(one), pictures), st.one_of(labels, labels, leaves)
    rows = [
        {draw(name): draw(cell) for name, cell in zip(names, cells, strict=True)}
        for _ in range(draw(st.integers(0, 5)))
    ]
    try:
        table = pa.Table.from_pylist(rows)
        names = {
            "info": {
                "features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
            }
        }
        if draw(st.booleans()):
            said = json.dumps(draw(changed([names]))).encode()
            table = table.replace_schema_metadata({"huggingface": said})
        out = io.BytesIO()
        pq.write_table(table, out, row_group_size=draw(st.integers(1, 5)))
    except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError):
        return b""
    return out.getvalue()


@st.composite
def idx(draw: Draw, shape: list[int]) -> bytes:
    """An IDX file whose header and length may say different things, perhaps packed."""
    sides = _shape_like(draw, shape)
    count = 1
    for side in sides:
        count *= side
    kind = draw(st.sampled_from((8, 8, 8, 8, 8, 8, 9, 11, 12, 13, 14, 0)))
    said = [draw(st.sampled_from((side, side, side, side, 0, 2**31, 2**32 - 1, side + 1))) for side in sides]
    values = bytes([draw(st.sampled_from((0, 1, 2, 255)))]) * draw(
        st.sampled_from((count, count, count, count + 1, 0, count // 2))
    )
    data = bytes([0, 0, kind, len(said)]) + b"".join(side.to_bytes(4, "big") for side in said) + values
    return gzip.compress(data, 1, mtime=0) if draw(st.booleans()) else data


CHUNKS = (
    b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"gAMA", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"pHYs", b"sRGB", b"bKGD",
)  # fmt: skip
HELD = (
    bytes(768), b"\xff\0\0" * 256, b"a\0\0" + zlib.compress(bytes(300)), b"MM\0*\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
)  # fmt: skip
"""What such a chunk may hold: palettes, a packed profile, an orientation, and an Exif that leads out of itself."""


@st.composite
def pngs(draw: Draw) -> bytes:
    """A PNG whose chunks have right checksums and whose contents are at limits."""
    wide, high = draw(st.tuples(*[st.sampled_from((8, 8, 1, 0, 3, 5000, 2**31 - 1))] * 2))
    bits, colour = draw(st.sampled_from((8, 8, 16, 1, 2, 4, 3))), draw(st.sampled_from((0, 2, 3, 4, 6, 5)))
    header = (
        wide.to_bytes(4, "big")
        + high.to_bytes(4, "big")
        + bytes([bits, colour, 0, 0, draw(st.sampled_from((0, 0, 1)))])
    )
    parts = [(b"IHDR", header)]
    extra = st.tuples(st.sampled_from(CHUNKS), st.one_of(st.binary(max_size=30), st.sampled_from(HELD)))
    parts += draw(st.lists(extra, max_size=3))
    rows = min(high, 64) * (1 + min(wide, 64) * 8)
    parts.append(
        (
            b"IDAT",
            zlib.compress(bytes([draw(st.integers(0, 5))]) * draw(st.sampled_from((rows, rows, 0, 10, rows * 40)))),
        )
    )
    parts += [*draw(st.lists(extra, max_size=1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in parts
    )


def csvs(rows: list[list[str]]) -> Bytes:
    """Tables of the cells of a valid one and of others, separated in several ways."""
    known = sorted({cell for row in rows for cell in row})
    cells = st.one_of(
        st.sampled_from(known), st.sampled_from(known), texts, st.integers(-1, 10**20).map(str), st.just('"')
    )
    lines = st.lists(st.lists(cells, min_size=1, max_size=3), max_size=6)
    return st.builds(
        lambda head, found, mark, end: end.join(mark.join(row) for row in [*head, *found]).encode(
            "utf-8", "surrogatepass"
        ),
        st.sampled_from(([rows[0]], [rows[0]], [])),
        lines,
        st.sampled_from((",", ",", ";", "\t", "|", " ")),
        st.sampled_from(("\n", "\r\n", "\r")),
    )
