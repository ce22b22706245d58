"""A contact sheet of a distilled set as one piece of HTML, for notebooks."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dap.base.errors import DapError
from dap.data.real.decode import pixels
from dap.data.sets.contents import file_of

SIDE, ROWS, COLUMNS = 48, 12, 12
"""The side of a small image in pixels, and the largest numbers of classes and of images per class on a sheet. With
these limits a sheet stays below half a megabyte."""


def contact_sheet(folder: Path, class_names: Sequence[str], records: Sequence[dict[str, Any]], caption: str) -> str:
    """Rows of small images, one for each class, with the class's name before them.

    The pictures are JPEG data URIs, so that the HTML needs no other file. An image that cannot be read is shown grey, because
    a display must not fail.

    Args:
        folder: the folder of the set.
        class_names: in label order.
        records: manifest lines, in (label, slot) order.
        caption: the first line of the sheet.
    """
    lines = [f"<p>{html.escape(caption)}</p>", "<table>"]
    for label, name in enumerate(class_names[:ROWS]):
        mine = [record for record in records if record["label"] == label]
        strip = "" if not mine else f'<img alt="" src="{_strip(folder, [line["path"] for line in mine[:COLUMNS]])}">'
        more = f"and {len(mine) - COLUMNS} more" if len(mine) > COLUMNS else ""
        cells = (html.escape(name), strip, more)
        lines.append("<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>")
    lines.append("</table>")
    if len(class_names) > ROWS:
        lines.append(f"<p>and {len(class_names) - ROWS} more classes</p>")
    return "<div>" + "".join(lines) + "</div>"


def _strip(folder: Path, files: Sequence[str]) -> str:
    """The images of these files of the folder, small and side by side, as a data URI."""
    strip = Image.new("RGB", ((SIDE + 2) * len(files) - 2, SIDE), "white")
    for k, file in enumerate(files):
        strip.paste(_small(folder, file), (k * (SIDE + 2), 0))
    out = io.BytesIO()
    strip.save(out, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _small(folder: Path, file: str) -> Image.Image:
    try:
        small = Image.fromarray(pixels(file_of(folder, file)))
        small.thumbnail((SIDE, SIDE))
    except DapError:
        return Image.new("RGB", (SIDE, SIDE), "grey")
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square
