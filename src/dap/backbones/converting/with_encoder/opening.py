"""Encoders of transformers by folder or hub id: T5 of a PixArt with its tokenizer, and DINOv2 of a REG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dap.backbones.configurations.leftovers import own
from dap.backbones.honoured import check_text
from dap.backbones.hub import DTYPES, check_weights, check_whole, explained
from dap.base.alone import alone
from dap.base.documents import read_json
from dap.base.errors import DapError
from dap.base.files import expanded
from dap.base.parsing import brief, shown

READ = ("*.json", "*.model", "*.safetensors", "*.bin")
"""The files of an encoder and of its tokenizer."""

EXAMPLES = {"t5": "PixArt-alpha/PixArt-XL-2-1024-MS", "dinov2": "facebook/dinov2-base"}
"""By the kind of an encoder a hub id that has one."""


def folder_of(source: str, parts: Sequence[str], *, offline: bool) -> Path:
    """The folder of an encoder, or of a pipeline that has one.

    Args:
        source: the folder or hub id.
        parts: the folders inside a pipeline's that are wanted. Of a hub id these are fetched, and what lies outside all folders.
        offline: read only the local cache.

    Raises:
        DapError: there is nothing at the source.
    """
    from huggingface_hub import is_offline_mode, snapshot_download

    folder = expanded(source)
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "~", "/")):
        raise DapError(
            f"There is no encoder at {source!r}: no such folder. Give --encoder a folder or a hub id owner/name."
        )
    wanted = [pattern for name in READ for pattern in (name, *(f"{part}/{name}" for part in parts))]
    local = offline or is_offline_mode()
    with explained("encoder", source):
        return Path(snapshot_download(source, allow_patterns=wanted, local_files_only=local))


def open_encoder(folder: Path, kind: str, *, dtype: str) -> Any:
    """The encoder in a folder, by transformers.

    Args:
        folder: the folder of the encoder itself.
        kind: "t5" or "dinov2", the `model_type` that its config.json says.
        dtype: the number format of the weights in memory.

    Raises:
        DapError: the folder holds no such encoder, or its weights are not whole.
    """
    from transformers import Dinov2Model, T5EncoderModel

    file = folder / "config.json"
    if not file.is_file():
        raise DapError(f"{shown(folder)} has no config.json, so it holds no encoder; give --encoder {EXAMPLES[kind]}.")
    said = read_json(file, dict[str, Any])
    if (named := said.get("model_type")) != kind:
        raise DapError(f"{shown(file)} is of a {brief(named)}, not of a {kind}; give --encoder {EXAMPLES[kind]}.")
    check_text(said, file)
    check_weights(folder)
    build: Any = {"t5": T5EncoderModel, "dinov2": Dinov2Model}[kind]
    with explained("encoder", str(folder)), alone():
        made, told = build.from_pretrained(
            str(folder), dtype=DTYPES[dtype], local_files_only=True, output_loading_info=True
        )
    if absent := sorted(told["missing_keys"]):
        raise DapError(f"The weights of the encoder in {shown(folder)} lack {absent[0]}; fetch the folder anew.")
    if left := own(made, sorted(told["unexpected_keys"])):
        raise DapError(
            f"The weights of the encoder in {shown(folder)} hold {shown(left[0])}, for which its config.json leaves no place; "
            "fetch the folder anew."
        )
    check_whole(made, "encoder", folder)
    for weight in made.parameters():  # see `hub.open_pipeline`
        weight.data = weight.data.clone()
    return made.eval()


def open_t5_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, by transformers.

    Raises:
        DapError: the folder holds none, or a package that reads it is missing.
    """
    from transformers import T5Tokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise DapError(f"{shown(folder)} has no tokenizer.json and no spiece.model; give --tokenizer {EXAMPLES['t5']}.")
    if (file := folder / "tokenizer_config.json").is_file():
        check_text(read_json(file, dict[str, Any]), file)
    with explained("tokenizer", str(folder)):
        return T5Tokenizer.from_pretrained(str(folder), local_files_only=True)
