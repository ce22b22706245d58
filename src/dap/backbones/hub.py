"""Diffusers folders, on disk or behind a hub id: which files are read, and clear errors where files are missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import StringConstraints

from dap import networks
from dap.backbones.configurations import AUTOENCODERS
from dap.backbones.configurations.leftovers import refused
from dap.backbones.fetching import UNUSED, WEIGHTS, check_class, fetch, index_of, number_format, weights_of
from dap.backbones.honoured import check_fields, check_folder, parts_of, place_of
from dap.backbones.known import KINDS
from dap.base.alone import alone
from dap.base.documents import check_fetched, fitted, read_json
from dap.base.errors import DapError, first_line
from dap.base.fields import Name
from dap.base.files import expanded
from dap.base.parsing import brief, shown
from dap.base.registry import suggest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Label = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}$")]
"""A label as a key of a JSON object."""


class NotCached(DapError):
    """Something of a hub id is not on this machine, and the network was not asked or not reached.

    Args:
        text: the sentence for the user.
        hub: the hub id.
    """

    def __init__(self, text: str, hub: str) -> None:
        super().__init__(text)
        self.hub = hub

    def __reduce__(self) -> tuple[type[NotCached], tuple[str, str]]:
        return type(self), (self.args[0], self.hub)


def open_pipeline(source: str, *, revision: str | None, dtype: str, offline: bool) -> tuple[Any, Path]:
    """Open a diffusers pipeline. Pickles are opened by diffusers' weights-only path, which runs no code from them.

    Args:
        source: a folder with a `model_index.json`, or a hub id owner/name.
        revision: branch, tag or commit of a hub id; a folder has none.
        dtype: the number format of the weights in memory, whatever format the files hold.
        offline: read only the local cache.

    Returns:
        The pipeline and its folder.

    Raises:
        DapError: there is no such pipeline, a part has no weights or more of them than its configuration has a place for, or
            diffusers cannot load it. Or a revision was given for a folder.
    """
    import diffusers

    if dtype not in DTYPES:
        raise DapError(f"Unknown dtype {dtype!r}. {suggest(dtype, DTYPES)}")
    local = Path(source).is_dir()
    if local and revision is not None:
        raise DapError(f"A revision is of a hub id, and {source} is a folder on this machine; leave --revision out.")
    with explained("backbone", source, revision):
        folder = Path(source) if local else fetch(source, revision, offline)
        index = index_of(folder)
        check_folder(folder, index)
        _check_libraries(folder, index)
        check_class(index)
        _check_parts(folder, index)
        name = str(index["_class_name"])
        of: Any = networks.find(name) or getattr(diffusers, name)
        options = _which(folder, index)
        if UNUSED[0] in index:
            options |= {**dict.fromkeys(UNUSED), "requires_safety_checker": False}
        if index.get("id2label"):  # JSON has only strings as keys, and diffusers complains about them
            options["id2label"] = labels_of(folder, index)
        # A Stable Diffusion 3 can be saved without its third text encoder; diffusers then wants to be told so.
        options |= {part: None for part in ("text_encoder_3", "tokenizer_3") if index.get(part) == [None, None]}
        with alone(), refused(folder):
            pipe = of.from_pretrained(
                str(folder), dtype=DTYPES[dtype], local_files_only=True, trust_remote_code=False, **options
            )
    for part, network in pipe.components.items():
        check_whole(network, part, folder)
        for weight in getattr(network, "parameters", tuple)():
            # A file is mapped into memory, so its format decides the address of a weight, and a CPU's kernels round by
            # address. A copy makes the same weights give the same predictions, whatever file they came from.
            weight.data = weight.data.clone()
    return pipe, folder


def open_autoencoder(source: str, *, dtype: str, offline: bool, pipeline: str = "DiTPipeline") -> Any:
    """Open an autoencoder from its own folder or hub id, or from the folder or hub id of a pipeline. It is of the class that
    its config.json names.

    Args:
        source: the folder or hub id.
        dtype: the number format of the weights in memory.
        offline: read only the local cache.
        pipeline: the class of the pipeline that it becomes a part of, a key of `KINDS`.

    Raises:
        DapError: there is nothing at the source, the source holds no autoencoder, or one whose configuration is not followed.
    """
    import diffusers
    from huggingface_hub import is_offline_mode, snapshot_download

    folder = expanded(source)
    if folder.is_file() or source.endswith((".safetensors", ".ckpt", ".pt", ".pth")):
        raise DapError(
            f"The autoencoder {source} is a file; give the folder or hub id of an autoencoder of diffusers, such as "
            "stabilityai/sd-vae-ft-ema. Only a flow takes the file of an autoencoder."
        )
    if not folder.is_dir() and (source.count("/") != 1 or source.startswith((".", "~", "/"))):
        raise DapError(f"There is no autoencoder at {source!r}: no such folder. Give a folder or a hub id owner/name.")
    with explained("autoencoder", source):
        for suffix in ("safetensors", "bin"):
            files = ["config.json", f"diffusion_pytorch_model.{suffix}"]
            if not expanded(source).is_dir():
                wanted = [*files, *(f"vae/{file}" for file in files)]
                local = offline or is_offline_mode()
                folder = Path(snapshot_download(source, allow_patterns=wanted, local_files_only=local))
            inside = folder / "vae" if (folder / "vae").is_dir() else folder
            if (inside / files[1]).is_file():
                safe = suffix == "safetensors"
                said = read_json(inside / "config.json", dict[str, Any])
                of = str(said.get("_class_name", "AutoencoderKL"))
                if of not in AUTOENCODERS:
                    raise DapError(f"{shown(inside)} holds {brief(of)}; {' and '.join(AUTOENCODERS)} are supported.")
                check_fields(said, of, KINDS[pipeline], inside / "config.json")
                build: Any = getattr(diffusers, of)
                with alone(), refused(inside):
                    made = build.from_pretrained(str(inside), dtype=DTYPES[dtype], use_safetensors=safe)
                check_whole(made, "autoencoder", inside)
                return made
        raise DapError(
            f"{source} has no diffusion_pytorch_model.safetensors or .bin, so it is no autoencoder of diffusers."
        )


def check_whole(network: Any, part: str, folder: Path) -> None:
    """Raise `DapError` if a file of weights lacks a tensor of its network."""
    for name, tensor in getattr(network, "state_dict", dict)().items():
        if tensor.is_meta:  # diffusers leaves such a tensor if no file holds it
            raise DapError(f"The weights of the {part} in {folder} lack {name}; fetch or save the folder anew.")


def labels_of(folder: Path, index: Mapping[str, Any]) -> dict[int, str]:
    """The class names in a `model_index.json`, by label.

    Raises:
        DapError: they are no table of names by label.
    """
    found = fitted(index.get("id2label") or {}, dict[Label, Name], f"{folder / 'model_index.json'}, id2label")
    return {int(label): name for label, name in found.items()}


def _check_parts(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse a folder that lacks a part, in words that name it; diffusers' own are about Python.

    Raises:
        DapError: a part that the pipeline names is not in the folder, or a tokenizer lacks a file.
    """
    if str(index.get("_class_name")) not in KINDS:
        return
    for part, (_, of) in parts_of(index).items():
        if part in (*UNUSED, "image_encoder"):
            continue
        inside = place_of(folder, part)
        check_weights(inside)
        if not inside.is_dir() or not any(inside.iterdir()):
            raise DapError(f"{folder} has no {part}/, which its model_index.json names; copy that folder there.")
        files = {file.name for file in inside.iterdir()}
        if "CLIPTokenizer" in of and "tokenizer.json" not in files:
            for name in ("vocab.json", "merges.txt"):
                if name not in files:
                    raise DapError(
                        f"{folder / part} has no {name}, so its tokenizer cannot be read; copy that file there."
                    )


def check_weights(folder: Path) -> None:
    """Check that the files of weights in the folder of one network are the files themselves, and all of them.

    Raises:
        DapError: a file is a pointer of Git LFS, or weights in several parts lack a part or the index of the parts.
    """
    names = set(os.listdir(folder)) if folder.is_dir() else set[str]()
    for name in sorted(names):
        if WEIGHTS.fullmatch(name) or name.endswith(".index.json"):
            check_fetched(folder / name)
    for kind in ("safetensors", "bin"):
        parts = sorted(name for name in names if WEIGHTS.fullmatch(name) and "-of-" in name and name.endswith(kind))
        whole = [n for n in names if WEIGHTS.fullmatch(n) and "-of-" not in n and n.endswith(kind)]
        if not parts or whole:
            continue
        count = int(re.findall(r"-of-(\d+)", parts[0])[0])
        there = {int(re.findall(r"-(\d+)-of-", name)[0]) for name in parts}
        if absent := sorted(set(range(1, count + 1)) - there)[:5]:
            said = ", ".join(map(str, absent))
            raise DapError(
                f"{folder} has {len(parts)} of {count} parts of its weights, such as {parts[0]}, and lacks part {said}; fetch "
                "the missing files."
            )
        if not any(name.endswith(f"{kind}.index.json") or f".{kind}.index." in name for name in names):
            raise DapError(
                f"{folder} has its weights in {count} parts, such as {parts[0]}, and lacks the index that says which tensor is "
                f"in which part (a file ending in .{kind}.index.json); fetch this file too."
            )


@contextmanager
def explained(what: str, source: str, revision: str | None = None) -> Iterator[None]:
    """Load something without progress bars, and turn any failure into one sentence.

    Raises:
        DapError: loading failed. The sentence says why and what to do.
    """
    from diffusers.utils import logging
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers.utils import logging as text_logging

    logging.disable_progress_bar()
    if bars := text_logging.is_progress_bar_enabled():
        text_logging.disable_progress_bar()
    try:
        yield
    except DapError:
        raise
    except Exception as error:  # the hub library and diffusers raise a dozen kinds of errors
        at = f" at revision {revision!r}" if revision else ""
        if isinstance(error, LocalEntryNotFoundError):
            raise NotCached(
                f"The {what} {source!r}{at} is not in this machine's cache of hub models, and the network was not asked or "
                f"not reached: load it once online, fetch it with 'hf download {source}', or give a local folder.",
                source,
            ) from error
        reason = first_line(error)
        if Path(source).is_dir():
            reason = f"{reason.rstrip('. ')}. Fetch or save the folder anew."
        else:
            reason = f"{reason} Give a local folder or a hub id that this machine can reach."
        raise DapError(f"The {what} {source!r}{at} could not be loaded: {reason}") from error
    finally:
        logging.enable_progress_bar()
        if bars:  # if the environment turned it off, turning it on would only warn
            text_logging.enable_progress_bar()


def _check_libraries(folder: Path, index: Mapping[str, Any]) -> None:
    """Check that a pipeline's parts are classes of diffusers and transformers, by their own names.

    diffusers imports whatever library the index names, and `Auto` classes of transformers look for code in the folder.

    Raises:
        DapError: a part is of another library, or only code in the folder could make it.
    """
    said = f"{folder}/model_index.json names code of its own as its"
    why = "and dap runs no code of a backbone's folder. Take a folder whose parts are of diffusers and transformers."
    if not isinstance(index.get("_class_name"), str):
        raise DapError(f"{said} pipeline, {index.get('_class_name')!r}, {why}")
    for part, (library, name) in parts_of(index).items():
        known = library in ("diffusers", "transformers") or (part, library) == (UNUSED[0], "stable_diffusion")
        known |= networks.CLASSES.get(name) == library and networks.find(name) is not None  # which imports it
        looking = name.startswith("_") or (name.startswith("Auto") and not name.startswith("Autoencoder"))
        if not known or looking or not name.isidentifier():
            raise DapError(f"{said} {part}, {brief(index[part])}, {why}")


def to_download(source: str, revision: str | None, offline: bool) -> tuple[str, int | None] | None:
    """What opening a backbone would fetch from the hub: the name, and the bytes of all files there if the hub tells them.

    None for a folder, for what ships with this package, for code, and for what is in this machine's cache. Nothing is fetched.
    """
    if Path(source).exists() or source.count("/") != 1 or ":" in source:
        return None
    with suppress(DapError), explained("backbone", source, revision):
        folder = fetch(source, revision, offline=True)
        if all(weights_of(folder, index_of(folder)).values()):
            return None
    size = None
    if not offline:
        from huggingface_hub import HfApi

        with suppress(Exception):  # whatever the hub or the network says, the size is not known then
            files = HfApi().model_info(source, revision=revision, files_metadata=True, timeout=10).siblings or []
            safe = any(file.rfilename.endswith(".safetensors") for file in files)
            taken = [
                file for file in files if safe is False or not file.rfilename.endswith((".bin", ".ckpt", ".msgpack"))
            ]
            size = sum(file.size or 0 for file in taken) or None
    return source, size


def formats_of(folder: Path) -> dict[str, torch.dtype]:
    """The number format of each network of a pipeline, in the weight files that `open_pipeline` takes from its folder. float32
    for pickles."""
    index = index_of(folder)
    variant = _which(folder, index)["variant"]
    return {
        part: number_format(place_of(folder, part), variant if any(v == variant for v, _ in present) else None)
        for part, present in weights_of(folder, index).items()
    }


def _which(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make diffusers take the right weight files.

    These are the plain files if every part has them. Pickles are taken only if no part has safetensors.

    Raises:
        DapError: a network has no weights.
    """
    weights = weights_of(folder, index)
    for part, present in weights.items():
        if not present:
            raise DapError(
                f"{folder} has no weights of its {part}; {part}/ should hold a .safetensors or .bin file such as "
                "diffusion_pytorch_model.safetensors. Copy it there, or load the hub id once online."
            )
        if all(suffix == "bin" for _, suffix in present) and not any(
            WEIGHTS.fullmatch(name) and "-of-" not in name for name in os.listdir(place_of(folder, part))
        ):
            kinds = {suffix for others in weights.values() for _, suffix in others}
            if kinds != {"bin"} or part not in ("text_encoder", "text_encoder_2", "text_encoder_3"):
                raise DapError(
                    f"The weights of the {part} in {folder} are pickles in several parts (.bin, *-of-*.bin), which diffusers "
                    f"cannot read in a pipeline. Load the {part} alone in diffusers and save it with "
                    "save_pretrained(..., safe_serialization=True) over it."
                )
    by_part = [{variant for variant, _ in present} for present in weights.values()]
    others = sorted({v for variants in by_part if None not in variants for v in variants if v})
    safe = any(suffix == "safetensors" for present in weights.values() for _, suffix in present)
    return {
        "variant": "fp16" if "fp16" in others else next(iter(others), None),
        "use_safetensors": None if safe else False,
    }
