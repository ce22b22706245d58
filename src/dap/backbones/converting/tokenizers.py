"""The tokenizer of a Stable Diffusion in one file, which no such file holds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dap.backbones.hub import NotCached
from dap.base.errors import DapError, first_line
from dap.base.files import expanded

log = logging.getLogger(__name__)

SAME = (
    "openai/clip-vit-large-patch14",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1",
)
"""Hub ids that have the vocabulary of all Stable Diffusions. Each is looked for in the cache, and the first may be fetched."""

FILES = ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
"""The files of a tokenizer; either the third or the first two are needed."""


def tokenizer_for(path: Path, given: str | None, offline: bool, config: Any, *, open_clip: bool) -> Any:
    """The tokenizer of a text encoder.

    Args:
        path: the file of the weights. The tokenizer may be in a folder `tokenizer` beside it.
        given: the folder or hub id of the tokenizer, or of a pipeline that has it. Default: the folder beside the file, then the
            hub ids of `SAME`.
        offline: read only the local cache.
        config: the configuration of the text encoder.
        open_clip: whether it is OpenCLIP's, which fills prompts up with its token 0, "!". OpenAI's fills them up with the token
            that ends a text.

    Raises:
        DapError: there is none, or it has another number of tokens than the text encoder.
    """
    from transformers import CLIPTokenizer

    folder = _folder(path, given, offline)
    padding: dict[str, Any] = {"pad_token": "!"} if open_clip else {}
    try:
        own = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **padding)
    except Exception as error:  # transformers raises almost any error on files of another kind
        raise DapError(f"The tokenizer in {folder} cannot be read: {first_line(error)}. Fetch it anew.") from error
    known = 1 + max(own.get_vocab().values(), default=-1)
    if known != config.vocab_size:
        raise DapError(
            f"The tokenizer in {folder} has {known} tokens and the text encoder in {path} reads {config.vocab_size}; give dap "
            "convert --tokenizer, the folder of the tokenizer that this text encoder was trained with."
        )
    own.model_max_length = min(own.model_max_length, config.max_position_embeddings)
    return own


def _folder(path: Path, given: str | None, offline: bool) -> Path:
    """The folder with the files of the tokenizer.

    Raises:
        DapError: there is no such folder, and the hub was not asked or has none.
    """
    from huggingface_hub import is_offline_mode, snapshot_download

    if given is not None and expanded(given).exists():
        if (folder := _inside(expanded(given))) is None:
            raise DapError(f"{given} holds no tokenizer: no tokenizer.json, and no vocab.json with a merges.txt.")
        return folder
    if given is not None and (given.count("/") != 1 or given.startswith((".", "~", "/"))):
        raise DapError(f"There is no tokenizer at {given!r}: no such folder. Give a folder or a hub id owner/name.")
    if given is None and (folder := _inside(path.parent / "tokenizer")) is not None:
        return folder
    wanted = [*FILES, *(f"tokenizer/{name}" for name in FILES)]
    ways = [(name, True) for name in ([given] if given else SAME)]
    if not (offline or is_offline_mode()):
        ways.append((given or SAME[0], False))
    for name, local in ways:
        try:
            folder = _inside(Path(snapshot_download(name, allow_patterns=wanted, local_files_only=local)))
        except Exception as error:  # the hub library raises a dozen kinds of errors
            log.debug("no tokenizer from %s: %s", name, error)
            continue
        if folder is not None:
            return folder
    hub = given or SAME[0]
    raise NotCached(
        f"{path} holds no tokenizer, as no Stable Diffusion in one file does, and this machine's cache of hub models has none "
        f"for it. Fetch it once online with 'hf download {hub}' {'' if given else '--include *.json --include merges.txt '}or "
        "put the folder tokenizer/ of any Stable Diffusion beside the file.",
        hub,
    )


def _inside(folder: Path) -> Path | None:
    """The folder, or the folder `tokenizer` in it, whichever has the files of a tokenizer."""
    for place in (folder, folder / "tokenizer"):
        if (place / "tokenizer.json").is_file() or all((place / name).is_file() for name in FILES[:2]):
            return place
    return None
