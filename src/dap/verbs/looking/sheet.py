"""A contact sheet as one PNG: a row of small images for each class, with its name."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dap.base.errors import DapError
from dap.base.files import write_atomically
from dap.base.parsing import shown
from dap.data.real.names import drawn, some
from dap.verbs.looking.alike import SIDE, Seen

SCALE, COLUMNS, ROWS, NAME, GAP = 2, 12, 60, 150, 4
"""How many times an image is enlarged, how many images and classes are shown, the width of a name in px, and the gap in px."""


def write_sheet(part: Seen, out: Path) -> Path:
    """Write the first images of each class of a part; of more than `ROWS` classes, the first ones.

    Raises:
        DapError: there can be no such folder.
        OSError: the file cannot be written.
    """
    names = part.class_names[:ROWS]
    side = SIDE * SCALE
    sheet = Image.new("RGB", (NAME + COLUMNS * (side + GAP), len(names) * (side + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for label, name in enumerate(names):
        top = label * (side + GAP)
        pen.text((GAP, top + side // 2 - 8), drawn(name, label)[:22], "black", font)
        for column, place in enumerate((part.labels == label).nonzero()[:COLUMNS, 0].tolist()):
            image = Image.fromarray(part.pictures[place].permute(1, 2, 0).numpy())
            sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (NAME + column * (side + GAP), top))
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DapError(
            f"The contact sheet cannot be written to {out}: {error.strerror or error}; give another --out."
        ) from error
    write_atomically(out, data.getvalue())
    return out


def numbered(part: Seen) -> list[str]:
    """A sentence on the class names that the sheet shows as numbers, if there are any."""
    names = list(enumerate(part.class_names[:ROWS]))
    told = [f"{label} is {shown(name)}" for label, name in names if drawn(name, label) == f"class {label}"]
    said = (
        f"The contact sheet lacks the letters of some names and shows the numbers of these classes: {some(told, 12)}."
    )
    return [said] if told else []
