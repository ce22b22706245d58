"""Draws docs/front.svg, the picture at the top of the README: images of three sets of ten per class, and accuracies.

    dap compare --methods random,vanilla,auto --ipc 10 --networks convnet3 --protocol quick-hard --out runs/front
    python benchmarks/front.py --sets runs/front      # takes the images of seed 0 from these sets
    python benchmarks/front.py                        # keeps the images, and draws the bars anew from docs/rivals.csv

The same ledger and the same images give the same text. The images are slots 0 to 3 of four classes: nobody chose among slots.
A bar is the mean over all sets of the method that the ledger has at ten images per class by `quick-hard` on ConvNet-3, last
epoch. The thin line at its end is the 95 % interval of the mean; where there is one set, the bar is hollow and has no such line.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

import picture
import rivals

FILE = rivals.DOCS / "front.svg"

SETS = {"random": "real, at random", "vanilla": "vanilla samples", "auto": "dap’s default (auto)"}
"""The methods whose images are shown, and what stands above them."""
BARS = {
    "random": "real images, drawn at random",
    "vanilla": "samples of the diffusion model (vanilla)",
    "dap-slots": "samples with guidance (dap-slots)",
    "herding": "real images, chosen (herding)",
    "auto": "dap’s default (auto)",
    "dm": "optimised pixels (dm)",
}
"""The methods that have a bar, and what is written beside it."""
CLASSES = ("Dress", "Bag", "Sandal", "Pullover")
SLOTS = 4
SIDE, TILE, LEFT, GAP = 32, 42, 66, 18
"""Side of an image in pixels and as it is shown, the room for the names of classes, and the room between two sets."""
BAR, ROW, NAMES = 225.0, 21, 262
"""The length of 100 %, the height of a row, and the room for the names of bars."""
ALL = 90.1
"""Accuracy in per cent of a ConvNet-3 on all 60,000 real images, 2 epochs of the protocol `reference`, one training: the first
table of docs/results.md."""

STYLE = (
    picture.STYLE
    + """
  .strong { fill: var(--text); }
  .bar { stroke-width: 1.2; } .bar.rival { fill: var(--rival); stroke: var(--rival); }
  .bar.ours { fill: var(--ours); stroke: var(--ours); } .bar.auto { fill: var(--auto); stroke: var(--auto); }
  .bar.one { fill: var(--surface); } .whisker { stroke: var(--text); stroke-width: 1.6; }
  .halo { stroke: var(--surface); stroke-width: 4; }
"""
)

Sprites = dict[str, str]
"""The images of each set as one PNG in base64: a row a class, a column a slot."""


def sprites(folder: Path) -> Sprites:
    """The images of the sets of seed 0 in a folder of `dap compare`."""
    found: Sprites = {}
    for method in SETS:
        sheet = Image.new("RGB", (SLOTS * SIDE, len(CLASSES) * SIDE))
        for row, name in enumerate(CLASSES):
            for slot in range(SLOTS):
                file = folder / f"method={method}" / "seed0" / "images" / name / f"{slot:05d}.png"
                with Image.open(file) as image:
                    sheet.paste(image.convert("RGB").resize((SIDE, SIDE)), (slot * SIDE, row * SIDE))
        written = io.BytesIO()
        sheet.convert("L").save(written, "PNG", optimize=True)  # Fashion-MNIST is grey
        found[method] = base64.b64encode(written.getvalue()).decode()
    return found


def kept(svg: str) -> Sprites:
    """The images that a picture of ours has."""
    return dict(re.findall(r'<image id="images-([\w-]+)"[^>]* href="data:image/png;base64,([\w+/=]+)"', svg))


def drawn(images: Sprites, lines: Sequence[rivals.Line]) -> str:
    """The picture as the text of an SVG file."""
    points = dict(bars(lines))
    wide = LEFT + len(SETS) * (SLOTS * TILE + GAP)
    title = "Ten images per class: three training sets, and how well networks classify real images after training on such sets"
    top = 54 + len(CLASSES) * TILE
    height = top + 58 + ROW * (len(points) + 1) + 36
    told = [f"{BARS[method]}: {picture._value(point)}." for method, point in points.items()]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" width="{wide}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(' '.join(told))}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="surface" width="{wide}" height="{height}"/>',
        picture._text(12, 24, "Fashion-MNIST: the first four of ten images per class", "head"),
        *_sheets(images),
        picture._text(
            12, top + 34, "Accuracy on the real test images, %, after training on 10 images per class", "head"
        ),
        *_bars(points, top + 50),
        picture._text(
            12,
            height - 26,
            "ConvNet-3, protocol quick-hard, last epoch. Thin line: 95 % interval of the mean over sets.",
        ),
        picture._text(
            12, height - 11, "Hollow bar: one set or one training, so no interval is known. ±: half of the interval."
        ),
        "</svg>",
        "",
    ]
    return "\n".join(parts)


def bars(lines: Sequence[rivals.Line]) -> Iterator[tuple[str, picture.Point]]:
    """The methods that were measured, from the lowest to the highest mean, with the mean over their sets."""
    judged = [o for o in lines if o["protocol"].removesuffix("+looks=1") == "quick-hard" and o["network"] == "convnet3"]
    judged = [o for o in judged if o["backbone"] in ("", "starter") and not o["drawn_from"] and not o["variant"]]
    judged = [o for o in judged if o["ipc"] == "10" and o["method"] in BARS]
    found = {method: next(rivals._points(of)) for (method,), of in rivals._grouped(judged, "method").items()}
    yield from sorted(found.items(), key=lambda one: (one[1].mean, one[0]))


def _sheets(images: Sprites) -> Iterator[str]:
    for row, name in enumerate(CLASSES):
        yield picture._text(12, 54 + row * TILE + TILE / 2 + 4, name)
    for column, (method, words) in enumerate(SETS.items()):
        x = LEFT + column * (SLOTS * TILE + GAP)
        css = {"auto": "auto", "vanilla": "strong", "random": "strong"}[method]
        yield picture._text(x, 44, words, css)
        size = f'width="{SLOTS * TILE}" height="{len(CLASSES) * TILE}"'
        yield f'<image id="images-{method}" x="{x}" y="52" {size} href="data:image/png;base64,{images[method]}"/>'


def _bars(points: dict[str, picture.Point], top: float) -> Iterator[str]:
    for row, (method, point) in enumerate(points.items()):
        y, css = top + row * ROW, {"auto": "auto", "dap-slots": "ours"}.get(method, "rival")
        yield picture._text(NAMES - 8, y + 13, BARS[method], css if css == "auto" else "strong", "end")
        one = " one" if point.half is None else ""
        long = BAR * point.mean / 100
        said = escape(f"{method}: {picture._value(point)}")
        place = f'x="{NAMES}" y="{y + 2:.1f}" width="{long:.1f}" height="{ROW - 7}"'
        yield f'<rect class="bar {css}{one}" {place}><title>{said}</title></rect>'
        if point.half is not None:
            low, high = (NAMES + BAR * (point.mean + sign * point.half) / 100 for sign in (-1, 1))
            for css in ("halo", "whisker"):
                yield f'<path class="{css}" d="M{low:.1f} {y + 9:.1f}H{high:.1f}"/>'
        sets = "one set" if point.half is None else f"± {point.half:.1f}, {point.sets} sets"
        yield picture._text(NAMES + BAR + 8, y + 13, f"{point.mean:.1f} ({sets})", "strong")
    y = top + len(points) * ROW
    yield picture._text(NAMES - 8, y + 13, "all 60,000 (2 epochs of reference)", "strong", "end")
    yield f'<rect class="bar rival one" x="{NAMES}" y="{y + 2:.1f}" width="{BAR * ALL / 100:.1f}" height="{ROW - 7}"/>'
    yield picture._text(NAMES + BAR + 8, y + 13, f"{ALL} (one training)", "strong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, metavar="DIR", help="a folder of dap compare with sets of seed 0")
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    args = parser.parse_args()
    images = sprites(args.sets) if args.sets else kept(FILE.read_text(encoding="utf-8"))
    args.out.write_text(drawn(images, rivals.ledger(rivals.DOCS / "rivals.csv")), encoding="utf-8")
    print(f"{args.out} is written")


if __name__ == "__main__":
    main()
