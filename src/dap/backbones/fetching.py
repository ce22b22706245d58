"""The files of a pipeline behind a hub id: which are fetched, and which of them are weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dap import networks
from dap.backbones.honoured import parts_of, place_of
from dap.backbones.known import KINDS
from dap.backbones.strange import without_backbone
from dap.base.documents import read_json
from dap.base.errors import DapError
from dap.base.parsing import brief

UNUSED = ("safety_checker", "feature_extractor")
"""Parts of Stable Diffusion's folders that look at finished images. They have a gigabyte, and no backbone calls them."""

WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:-\d+-of-\d+)?(?:\.(?P<variant>[a-z]\w*))?(?:-\d+-of-\d+)?\.(?P<suffix>safetensors|bin)"
)

OWN = ["*.json", "*.safetensors", "*.yaml", "*.md", "LICENSE*"]
"""Files of a pipeline of `dap.networks`, whose folders `dap convert` writes."""


def index_of(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of a pipeline's folder. A pipeline of `dap.pipelines` counts as the one of diffusers that it is.

    Raises:
        DapError: it is missing or no JSON object, or it names a part that lies outside the folder.
    """
    index = read_json(folder / "model_index.json", dict[str, Any])
    for part, said in index.items():
        if isinstance(said, list) and not re.fullmatch(r"\w+", part):
            raise DapError(f"{folder / 'model_index.json'} names a part {part!r}, which is no name of a folder in it.")
    if (plain := str(index.get("_class_name")).removeprefix("DAP")) in KINDS:
        index["_class_name"] = plain
    return index


def check_class(index: Mapping[str, Any]) -> None:
    """Refuse a pipeline without a backbone before its weights are fetched or read.

    Raises:
        DapError: the class in its `model_index.json` is none of `KINDS` and no subclass of one.
    """
    import diffusers

    name = str(index.get("_class_name"))
    of = networks.find(name) or getattr(diffusers, name, None)
    if not any(one.__name__ in KINDS for one in getattr(of, "__mro__", ())):
        raise without_backbone(brief(name)[1:-1])


def fetch(source: str, revision: str | None, offline: bool) -> Path:
    """The snapshot folder of a hub id, without the parts that nobody calls."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download, is_offline_mode, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    options: dict[str, Any] = {"revision": revision, "local_files_only": offline or is_offline_mode()}
    with suppress(LocalEntryNotFoundError, HfHubHTTPError):  # diffusers' own way below says what is wrong
        index = index_of(Path(hf_hub_download(source, "model_index.json", **options)).parent)
        check_class(index)
        if networks.find(str(index.get("_class_name"))) is not None:  # diffusers knows no such pipeline, nor its files
            return Path(snapshot_download(source, allow_patterns=OWN, **options))
    options |= dict.fromkeys(UNUSED)
    folder = Path(DiffusionPipeline.download(source, **options))
    if not options["local_files_only"] and not all(weights_of(folder, index_of(folder)).values()):
        with suppress(ValueError):  # there are no such files either; a later check names what is missing
            folder = Path(DiffusionPipeline.download(source, variant="fp16", **options))
    return folder


def weights_of(folder: Path, index: Mapping[str, Any]) -> dict[str, list[tuple[str | None, str]]]:
    """For each network of a pipeline, the (variant, suffix) pairs of its weight files. The plain variant is None."""
    parts = {name: place_of(folder, name) for name in parts_of(index) if name not in UNUSED}
    parts = {name: part for name, part in parts.items() if (part / "config.json").is_file() and name != "scheduler"}
    found = {name: map(WEIGHTS.fullmatch, os.listdir(part)) for name, part in parts.items()}
    return {name: [(m["variant"], m["suffix"]) for m in matches if m] for name, matches in found.items()}


def number_format(part: Path, variant: str | None) -> torch.dtype:
    """The number format of the weights of a variant in the folder of a part; float32 where there are no safetensors."""
    from safetensors import safe_open

    formats = {"F16": torch.float16, "BF16": torch.bfloat16}
    for name in sorted(os.listdir(part)):
        found = WEIGHTS.fullmatch(name)
        if found is None or (found["variant"], found["suffix"]) != (variant, "safetensors"):
            continue
        with safe_open(str(part / name), framework="pt") as opened:
            first = next(iter(opened.keys()))
            return formats.get(opened.get_slice(first).get_dtype(), torch.float32)
    return torch.float32
