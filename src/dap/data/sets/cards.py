"""Dataset cards. A card is a README.md that begins with fields in YAML (its front matter), which the hub reads."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter

from dap.base.documents import fitted, read_bytes, read_lines
from dap.base.errors import DapError
from dap.base.fields import Name, Share
from dap.base.files import inside
from dap.base.parsing import Damaged, counted, parse_yaml, shown
from dap.data.sets.folders import exported
from dap.data.sets.notes import Open, as_read, there
from dap.protocol_names import ordered

if TYPE_CHECKING:
    from dap.data.sets.distilled import DistilledSet

LARGEST = 2**22
"""How many bytes a card may have."""
FRONT = TypeAdapter(dict[str, Any])
"""The fields of a card's front matter. The hub says which there are; the card of an export keeps all of them."""


ON_THE_HUB = ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")
"""Licences that the hub knows by these names."""
IMAGES = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "images/*/*.png"}]}]}
"""Front matter by which `datasets.load_dataset` reads the folder of a set: its images, and none of the files beside them."""


USE = """## Training on it

```python
import os

import dap
import datasets
import torch
from torchvision.datasets import ImageFolder

folder = os.path.abspath(".")  # where this file lies
made = dap.DistilledSet.open(folder)  # a torch Dataset of images (3, h, w) in [0, 1] and labels in the order above
batches = torch.utils.data.DataLoader(made.samples(), batch_size=10, shuffle=True)  # with the weights of images that have one
rows = datasets.load_dataset(folder, split="train")  # here and below labels follow the sorted names of the folders
train = ImageFolder("images")
```"""
"""How to train on a set, for the card that lies in its folder."""

USE_CLIPS = """## Training on it

```python
import os

import dap
import torch

folder = os.path.abspath(".")  # where this file lies
made = dap.DistilledSet.open(folder)  # a torch Dataset of clips (3, frames, h, w) in [0, 1] and labels in the order above
batches = torch.utils.data.DataLoader(made.samples(), batch_size=10, shuffle=True)  # with the weights of clips that have one
```"""
"""The same for a set of clips. Readers of images would take the first frame of each."""


FILES = (
    r"; `recipe\.json` is what made it, `manifest\.jsonl` holds the seed\s+and sha256 of every \w+, `env\.json` the versions and "
    r"the hash of the weights\.|\. `import\.json` tells every choice of the import,\s+`manifest\.jsonl` where each image came "
    r"from and its sha256\."
)
"""What the cards of a set and of an import say of the files beside them, as a regular expression."""


def without_use(body: str) -> str:
    """The body of a card without how to train on the set, which an export says in its own way, and without the files that lie
    beside the card of a set alone."""
    return re.sub(FILES, ".", body.replace(USE, "").replace(USE_CLIPS, "")).strip()


def licence_fields(data: str, backbone: str | None = None, licence: str | None = None) -> dict[str, str]:
    """Front matter that names the licences from which that of a set follows.

    Args:
        data: the licence of the real images.
        backbone: the name of the backbone; None where there is none.
        licence: of the backbone's weights.
    """
    fields = {"licence_of_data": data}
    if backbone is not None:
        fields |= {"backbone": backbone, "licence_of_backbone": licence or "unknown"}
    given = [data, *([licence or "unknown"] if backbone is not None else [])]
    known = {next((one for one in ON_THE_HUB if _is_named(said, one)), None) for said in given}
    alike = known.pop() if len(known) == 1 else None
    return {**({"license": alike} if alike else {"license": "other", "license_name": "see-below"}), **fields}


def _is_named(said: str, licence: str) -> bool:
    """Whether a text begins with the name of a licence, as "MIT (Zalando SE, 2017)" does."""
    rest = said.lower().removeprefix(licence)
    return rest != said.lower() and not rest[:1].isalnum() and rest[:1] not in ("-", ".")


_PLACE = re.compile(r"(?:[A-Za-z]:|~[\w.-]*|\.{1,2})?[/\\].+|[^/\\]+[/\\][^/\\]+[/\\].+")
"""A path of the machine: one from its root, from a home or from the current folder, or of three parts and more. A name on the hub
has two."""
TEXTS = ("template", "negative_prompt", "classes", "license", "license_name", "license_link")
TEXTS += ("licence_of_data", "licence_of_backbone")
"""Fields whose texts are no paths, whatever they look like."""


def last_part(place: str) -> str:
    """The last part of a path of either kind of system, which holds no name of a user. A name after a colon stays with it."""
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]


def places_in(value: Any) -> Iterator[str]:
    """The paths of this machine in plain values such as a recipe."""
    if isinstance(value, str):
        if _PLACE.fullmatch(value) and "://" not in value:
            yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from () if name in TEXTS else places_in(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from places_in(one)


def without_places(value: Any) -> Any:
    """Plain values in which each path of this machine is its last part: an export tells nobody's name and no folder of theirs."""
    if isinstance(value, str):
        return last_part(value) if list(places_in(value)) else value
    if isinstance(value, Mapping):
        return {name: one if name in TEXTS else without_places(one) for name, one in value.items()}
    return [without_places(one) for one in value] if isinstance(value, (list, tuple)) else value


def commands_of(made: DistilledSet) -> str:
    """The commands that made a set, for its card; "" where they are not known."""
    if not there(made.path, "command.txt"):
        return ""
    try:
        text = read_bytes(inside(made.path, "command.txt"), LARGEST).decode("utf-8", errors="replace").strip()
    except DapError:
        return ""
    words = re.split(r"(\s+|=|,|'|\")", text)  # a path stands alone, after --flag= or in quotes
    said = "".join(without_places(word) for word in words)
    return f"Made by:\n\n<pre>\n{html.escape(said)}\n</pre>\n\n" if said else ""


class _Trial(Open, frozen=True):
    """A line of `trials.jsonl`, as far as a card tells it."""

    protocol: Name
    network: Name
    last: Share
    best: Share
    headline: Name | None = None
    tested_on: Name | None = None


def judged_told(made: DistilledSet) -> str:
    """A table of how a set was judged, for its card; "" where no training is recorded in its folder."""
    if not there(made.path, "trials.jsonl"):
        return ""
    try:
        read = read_lines(inside(made.path, "trials.jsonl"), as_read(_Trial))
    except DapError:
        return ""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    first: dict[tuple[str, ...], str] = {}
    for line in (one.value for one in read if one.value):
        epoch = "best" if line.get("headline") == "best" else "last"
        key = (ordered(line["protocol"]), line["network"], epoch, line.get("tested_on") or "test")
        training = (*key, *(str(line.get(name)) for name in ("seed", "judged", "tested")))
        if first.setdefault(training, line["protocol"]) != line["protocol"]:
            continue  # versions before this one trained it again where the fields of the protocol were given in another order
        groups.setdefault(key, []).append(100 * line[epoch])
    rows = ""
    for (protocol, network, epoch, on), found in groups.items():
        spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        cells = map(cell, (protocol, network, on, epoch, len(found), f"{statistics.mean(found):.1f}{spread}"))
        rows += f"| {' | '.join(cells)} |\n"
    head = "| protocol | network | images | epoch | trainings | accuracy in % |\n|---|---|---|---|---|---|\n"
    told = "Networks that were trained on this set alone and tested on real images; mean ± standard deviation over trainings:"
    return f"{told}\n\n{head}{rows}\n" if rows else ""


def size_category(n: int) -> str:
    """The hub's name for the size of a data set of n images, such as "1K<n<10K"."""
    return "n<1K" if n < 1000 else "1K<n<10K" if n < 10_000 else "10K<n<100K" if n < 100_000 else "100K<n<1M"


def cell(text: object) -> str:
    """Any text for one cell of a Markdown table: on one line, and escaped, so that no part of the text becomes a
    tag."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def code(text: object) -> str:
    """Any text as inline code of Markdown, on one line."""
    shown = " ".join(str(text).split())
    return f"<code>{html.escape(shown, quote=False).replace('|', '&#124;')}</code>"


def card(front: dict[str, Any], body: str) -> str:
    """The text of a card that has this front matter and this body."""
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the body of the README.md in a folder. The front matter is empty where it is no plain YAML. Both
    are empty where there is no README.md, where it leads out of the folder, and where it is larger than 4 MiB."""
    try:
        data = read_bytes(inside(folder, "README.md"), LARGEST)
    except DapError:
        return {}, ""  # a card is for people, and nothing is decided by it
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    head, closed, body = text.removeprefix("---\n").partition("\n---\n")
    if not (text.startswith("---\n") and closed):
        return {}, text.strip()
    try:
        front = fitted(parse_yaml(head, folder / "README.md"), FRONT, folder / "README.md")
    except Damaged:
        front = {}
    return front, body.strip()


def clips_told(frames: int | None) -> str:
    """A paragraph on how clips are stored, for a card; "" for images."""
    if frames is None:
        return ""
    return (
        f"\n\nThese are clips of {counted(frames, 'frame')}. Each PNG file is an animated PNG that keeps every pixel. "
        "`dap.DistilledSet.open` and `--layout pt` give all frames, (3, frames, h, w); most other readers give the first alone."
    )


def deeper(body: str) -> str:
    """The body of a card with every heading one level lower, so that the body can stand inside another card."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in body.splitlines())


def card_of_import(told: Mapping[str, Any], licence: str | None, source: Path) -> str:
    """The card of a set whose images others made.

    Args:
        told: what import.json says.
        licence: the licence of the images, if it was given.
        source: where the images come from; its own card is kept.
    """
    folder = source if source.is_dir() else source.parent
    front, theirs = read_card(folder) if source.is_dir() or exported(folder) else ({}, "")
    terms = licence or ("see the source's own card below" if theirs else "unknown; ask whoever made the images")
    mine: dict[str, Any] = {key: front[key] for key in ("license", "license_name", "license_link") if key in front}
    if licence:
        mine = {"license": "other", "license_name": licence}
    mine |= {
        **IMAGES,
        "task_categories": ["image-classification"],
        "size_categories": [size_category(len(told["classes"]) * told["ipc"])],
        "tags": ["dataset-distillation"],
    }
    body = f"""# Distilled set imported from {cell(shown(source.name))}

Made by others; imported by diffusion-as-priors {told["version"]}. `import.json` tells every choice of the import,
`manifest.jsonl` where each image came from and its sha256.

| | |
|---|---|
| classes, in label order | {", ".join(map(cell, told["classes"][:50]))} |
| source | {code(last_part(told["source"]))} |
| licence of the images | {cell(terms)} |
"""
    body += f"\n{USE}\n"
    if theirs := without_use(theirs):
        body += f"\n## The source's own card\n\n{deeper(deeper(theirs))}\n"
    return card(mine, body)
