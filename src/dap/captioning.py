"""Captions of real images by a captioning model of transformers, as JSON lines that `data.captions` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dap.data.sources import Source
from dap.errors import DapError
from dap.files import drop_torn_line, read_lines

TOGETHER = 16
"""Images that are captioned together."""


def caption(
    source: Source,
    out: str | Path,
    model: str,
    *,
    per_class: int | None = None,
    prompt: str | None = None,
    device: str = "cpu",
    offline: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write {"path": ..., "caption": ...} for the images of a source; lines that are there already are kept.

    Args:
        source: the real images.
        out: the file, to which lines are appended as they are made.
        model: hub id or folder of an image-to-text model, such as BLIP.
        per_class: at most so many images a class, a draw that grows with the number; default: all.
        prompt: words that the captions begin with, for models that take some.
        device: where the model runs.
        offline: never ask the network.
        progress: told (done, all, class name).

    Raises:
        DapError: the model cannot be loaded.
    """
    out = Path(out)
    captioner = _Captioner(model, prompt, device, offline)
    out.parent.mkdir(parents=True, exist_ok=True)
    drop_torn_line(out)
    known = {line.get("path") for line in read_lines(out)}
    wanted = []
    for label in range(len(source.class_names)):
        chosen = range(source.count(label))
        if per_class is not None and per_class < len(chosen):
            chosen = source.good(label, per_class, 0)
        wanted += [(label, index) for index in chosen]
    done = 0
    for label, name in enumerate(source.class_names):
        indices = [index for of, index in wanted if of == label]
        todo = [i for i, key in zip(indices, source.keys(label, indices), strict=True) if key not in known]
        done += len(indices) - len(todo)
        for start in range(0, len(todo), TOGETHER):
            kept, images = source.readable(label, todo[start : start + TOGETHER])
            texts = captioner(images) if kept else []
            lines = zip(source.keys(label, kept), texts, strict=True)
            with out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"path": k, "caption": t}, ensure_ascii=False) + "\n" for k, t in lines)
            done += len(todo[start : start + TOGETHER])
            if progress is not None:
                progress(done, len(wanted), name)
    return out


class _Captioner:
    def __init__(self, model: str, prompt: str | None, device: str, offline: bool) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self.processor: Any = AutoProcessor.from_pretrained(model, local_files_only=offline)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(model, local_files_only=offline)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DapError(
                f"The captioning model {model!r} could not be loaded ({reason}). Give the hub id or folder of an image-to-text "
                "model, such as --model Salesforce/blip-image-captioning-base."
            ) from error
        self.model.eval().requires_grad_(False).to(device)
        self.prompt = prompt

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> list[str]:
        pictures = [(image.permute(1, 2, 0) * 255).round().byte().numpy() for image in images]
        text = {} if self.prompt is None else {"text": [self.prompt] * len(pictures)}
        given = self.processor(images=pictures, return_tensors="pt", **text).to(self.model.device)
        made = self.model.generate(**given, max_new_tokens=40, do_sample=False)
        return [text.strip() for text in self.processor.batch_decode(made, skip_special_tokens=True)]
