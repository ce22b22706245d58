"""`dap caption`: captions of real images for methods that need captions, by a captioning or chat model of transformers."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dap.backbones import device_of
from dap.backbones.hub import explained
from dap.base.alone import alone
from dap.base.errors import DapError
from dap.base.files import append, check_file, check_writable, drop_torn_line
from dap.base.parsing import shown
from dap.base.seeding import seed_of
from dap.base.watch import Watcher
from dap.data.real.captions import finder, lines_of
from dap.data.real.finding.outputs import check_outside_source
from dap.data.real.sources import Source, open_source
from dap.imagenet import spoken
from dap.recipe import Recipe
from dap.verbs.options import Machine

MODEL = "Salesforce/blip-image-captioning-base"
"""A small captioner (BSD-3-Clause, 1 GB). VLCP's authors use llava-hf/llava-1.5-7b-hf."""

SIZE = 384
"""Side in px of the images that the captioner is given. The model's own processor scales the images further."""

ASK = "Describe the {} in this picture in one or two sentences: its shape, pose, colours, and what stands around it."
"""The question to a chat model if the user gives no other. {} stands for the class."""


Say = Callable[[Tensor, str | None], list[str]]
"""A function of images (n, 3, h, w) in [0, 1] and of the question, or None. It returns one caption for each image."""


class Captioner:
    """A model that writes a caption for an image.

    Args:
        model: folder or hub id of anything that transformers' `AutoModelForImageTextToText` opens.
        device: "auto", "cpu", "cuda", …
        offline: never ask the network.

    Attributes:
        ask: the question to a chat model if the user gives no other. None for a model that takes no question.

    Raises:
        DapError: the model cannot be loaded.
    """

    def __init__(self, model: str = MODEL, *, device: str = "auto", offline: bool = False) -> None:
        self.device = device_of(device)  # before the import, which takes seconds
        from transformers import AutoModelForImageTextToText, AutoProcessor

        # Many of these weights are stored in half precision. A CPU is slow at half precision, or cannot compute it.
        dtype = torch.float32 if self.device.type == "cpu" else "auto"
        with explained("captioner", model):
            # Without the False, transformers would ask on the terminal whether to run code of the model's folder.
            options = {"local_files_only": offline or Path(model).is_dir(), "trust_remote_code": False}
            self._processor: Any = AutoProcessor.from_pretrained(model, **options)
            with alone():
                network: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype, **options)
        self._network = network.to(self.device).eval()
        self._chats = getattr(self._processor, "chat_template", None) is not None
        self.ask = ASK if self._chats else None

    @torch.no_grad()
    def __call__(self, images: Tensor, ask: str | None = None, tokens: int = 100) -> list[str]:
        """Write a caption for each image. Decoding is greedy.

        Args:
            images: (n, 3, h, w) in [0, 1].
            ask: for a chat model the question, which must be given. For another model the beginning of every caption.
            tokens: the largest number of tokens that are generated for a caption.
        """
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        given: dict[str, Any] = {"images": [Image.fromarray(image) for image in pixels], "return_tensors": "pt"}
        if self._chats:
            content = [{"type": "image"}, {"type": "text", "text": ask}]
            ask = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        if ask:
            given["text"] = [ask] * len(images)
        inputs = self._processor(**given).to(self.device, self._network.dtype)
        made = self._network.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=tokens)
        if self._chats:  # a chat model repeats the question before its answer
            made = made[:, inputs["input_ids"].shape[1] :]
        return [" ".join(text.split()) for text in self._processor.batch_decode(made, skip_special_tokens=True)]


def caption(
    data: str | Path | Source,
    out: str | Path,
    *,
    model: str = MODEL,
    say: Say | None = None,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float = 0.01,
    split: Any = None,
    ask: str | None = None,
    per_class: int | None = None,
    batch: int = 16,
    machine: Machine = Machine(),
    watcher: Watcher = Watcher(),
) -> int:
    """Write a caption for every real image, for methods that need captions.

    Captions that are in the file already stay. So an interrupted call goes on where it stopped when it is made again.

    Args:
        data: the real images: "fashion-mnist", a folder, or an opened source.
        out: a file of JSON lines, such as captions.jsonl.
        model: folder or hub id of an image-to-text model of transformers. Every line of the file names it.
        say: a function that takes images (n, 3, h, w) in [0, 1] and the question, and returns n captions. If it is
            given, no model is loaded.
        max_bad_fraction: the largest fraction of the images that may be broken.
        classes: the classes to use, or the name of a subset of ImageNet. Default: all classes. Only for data that are
            given by name or folder.
        split: where the training images lie, as `data.split` of a recipe: "train=FOLDER".
        ask: the question to a chat model, or the words with which each caption of another model begins. {} stands for
            the class. Default: `ASK` for a chat model, and nothing for another model.
        per_class: the largest number of images of each class that get a caption. Default: all images.
        batch: how many images go through the model together.
        machine: the device, and whether the network may be asked.
        watcher: is told how many captions are done.

    Returns:
        The number of captions that were added.

    Raises:
        DapError: the data or the model cannot be opened. `write_captions` says what else raises.
    """
    how = {"classes": classes, "max_bad_fraction": max_bad_fraction, "split": split}
    source = opened(data, Path(out), watcher, **how)
    check_writable(Path(out).parent, "Give another file with --out.")  # before a model is fetched or loaded
    if say is None:
        say = Captioner(model, device=machine.device, offline=machine.offline)
        ask = ask or say.ask
    options: dict[str, Any] = {"ask": ask, "per_class": per_class, "batch": batch, "tell": watcher.work}
    return write_captions(source, Path(out), say, model, **options)


def opened(
    data: str | Path | Source,
    out: Path,
    watcher: Watcher,
    *,
    classes: Sequence[str] | None = None,
    max_bad_fraction: float = 0.01,
    split: Any = None,
) -> Source:
    """The real images that `caption` captions, after a look at the file of captions."""
    _check_out(out)
    chosen = Recipe.parse({"data": {"split": split}}).data.split
    if isinstance(data, Source):
        source = data
    else:
        how: dict[str, Any] = {"size": SIZE, "classes": classes, "max_bad_fraction": max_bad_fraction}
        source = open_source(data, "train", chosen=None if chosen is None else chosen.given(), **how)
        watcher.note(source.told("train"))
    check_outside_source(out.parent, source)
    return source


def _check_out(out: Path) -> None:
    """Check, before a model is loaded, that captions can be added to a file.

    Raises:
        DapError: it is no regular file, or one of something else than captions, whose last line would be taken for a torn one.
    """
    check_file(out)
    if out.is_file() and out.stat().st_size:
        with out.open("rb") as file:
            begins = file.read(100).removeprefix(codecs.BOM_UTF8).lstrip()
        if not begins.startswith(b"{"):
            raise DapError(f"{shown(out)} is no file of captions; give another file with --out.")


def write_captions(
    source: Source,
    out: Path,
    say: Say,
    model: str,
    *,
    ask: str | None = None,
    per_class: int | None = None,
    batch: int = 16,
    tell: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> int:
    """Append captions to a file of JSON lines, for the images of a source that have no caption there yet.

    A killed run goes on where it stopped. The draw of `per_class` images depends only on the class's name and on its
    number of images. A larger `per_class` takes all images that a smaller one takes, and more.

    Args:
        source: the images.
        out: the file. `data.real.captions.read_captions` says what a line holds.
        say: a `Captioner`, or another function of images (n, 3, h, w) in [0, 1] and of the question.
        model: the name of the model; every line holds it.
        ask: the question to the model. {} stands for the class's name.
        per_class: the largest number of images of each class that get a caption. Default: all images.
        batch: how many images go through the model together.
        tell: is called with the word "captions", the number of images done and the number of all images to do.

    Returns:
        The number of captions that were added.

    Raises:
        DapError: the file has captions of another model or to another question, or too many images are broken.
        OSError: the file cannot be read or written; the message names the path.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    drop_torn_line(out)
    wanted = left(source, out, model, ask, per_class)
    total, done, made = sum(len(indices) for _, indices in wanted), 0, 0
    append(out, "")  # before any work: the file can be written, and it is there even if nothing is added
    for label, indices in wanted:
        question = ask and ask.replace("{}", spoken(source.class_names[label]))
        for start in range(0, len(indices), batch):
            kept, images = source.readable(label, indices[start : start + batch])
            if kept:
                lines = []
                for key, text in zip(source.keys(label, kept), say(images, question), strict=True):
                    said = {"path": key, "caption": text, "model": model, **({"ask": ask} if ask else {})}
                    lines.append(json.dumps(said, ensure_ascii=False) + "\n")
                append(out, "".join(lines))
            made, done = made + len(kept), done + len(indices[start : start + batch])
            tell("captions", done, total)
    return made


def left(source: Source, out: Path, model: str, ask: str | None, per_class: int | None) -> list[tuple[int, list[int]]]:
    """The images that have no caption in the file yet: for each label their indices.

    Raises:
        DapError: the file has captions of another model or to another question.
    """
    find, there = finder(source), set()
    for line in lines_of(out):
        there.add(find(line.path))
        before = (line.model, line.ask) if line.model is not None else (model, ask)  # by hand: no model
        if before != (model, ask):
            raise DapError(
                f"{out} has captions by {before[0]}{f' asked {before[1]!r}' if before[1] else ''}; choose another file for "
                f"those by {model}{f' asked {ask!r}' if ask else ''}."
            )
    return list(_wanted(source, per_class, there))


def _wanted(source: Source, per_class: int | None, there: set[Any]) -> Iterator[tuple[int, list[int]]]:
    for label, name in enumerate(source.class_names):
        generator = torch.Generator().manual_seed(seed_of(0, name, "captions"))
        drawn = torch.randperm(source.count(label), generator=generator)[:per_class].tolist()
        keys = source.keys(label, drawn)
        yield label, [index for index, key in zip(drawn, keys, strict=True) if key not in there]
