"""Backbones: frozen diffusion weights behind one interface."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from dap.backbones.base import Backbone, Card, ClassifierFree, Prediction
from dap.backbones.mixture import Mixture
from dap.errors import DapError
from dap.registry import suggest

__all__ = ["Backbone", "Card", "ClassifierFree", "Mixture", "Prediction", "from_pipeline", "load"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    path: str,
    *,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    offline: bool = False,
) -> Backbone:
    """Weights from "starter", a local diffusers folder or a hub id.

    Args:
        path: "starter", a folder with a `model_index.json`, or an id such as `facebook/DiT-XL-2-256`.
        revision: branch, tag or commit of a hub id.
        dtype: of the weights and activations; features and distances are float32 whatever it is.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
        offline: never ask the network, only the local cache.

    Raises:
        DapError: nothing there, not a pipeline, or a pipeline of a kind that has no backbone.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    if dtype not in DTYPES:
        raise DapError(f"Unknown dtype {dtype!r}. {suggest(dtype, DTYPES)}")
    source = _source(path)
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise DapError(f"Device {device!r} was asked for but this machine has no CUDA device; use --device cpu.")
    logging.disable_progress_bar()
    try:
        pipe = DiffusionPipeline.from_pretrained(
            source, revision=revision, dtype=DTYPES[dtype], local_files_only=offline
        )
    except (OSError, ValueError) as error:
        raise DapError(
            f"The backbone {path!r} could not be loaded: {str(error).strip().splitlines()[0]} "
            "Give a local diffusers folder, a hub id that this machine can reach, or 'starter'."
        ) from error
    finally:
        logging.enable_progress_bar()
    return from_pipeline(pipe.to(where), path=source, name=path)


def from_pipeline(pipe: Any, *, path: str | None = None, name: str | None = None) -> Backbone:
    """A backbone around the modules of a diffusers pipeline, shared and not copied.

    Args:
        pipe: a `DiTPipeline`.
        path: its folder, for `classes.json` and `card.yaml`; default: where it was loaded from.
        name: what to call it; also the key into cards.yaml.

    Raises:
        DapError: the pipeline is of another kind, or its class names are unknown.
    """
    from diffusers import DiTPipeline

    from dap.backbones.dit import DiT

    if not isinstance(pipe, DiTPipeline):
        raise DapError(f"A {type(pipe).__name__} has no backbone yet; DiTPipeline has.")
    folder = Path(path or getattr(pipe, "name_or_path", None) or ".")
    scheduler = pipe.scheduler.config
    if scheduler.get("beta_schedule", "linear") != "linear":
        raise DapError(f"The schedule {scheduler['beta_schedule']!r} of {folder} is not supported; DiT's is linear.")
    betas = (scheduler["beta_start"], scheduler["beta_end"], scheduler["num_train_timesteps"])
    return DiT(
        pipe.transformer,
        pipe.vae,
        betas=betas,
        class_names=_class_names(pipe, folder),
        card=_card(name or folder.name, folder, pipe),
    )


def _source(path: str) -> str:
    from dap.starter import PIPELINE

    if path == "starter":
        return str(PIPELINE)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise DapError(f"{folder} has no model_index.json, so it is not a diffusers pipeline folder.")
        return str(folder)
    if path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise DapError(
            f"There is no backbone at {path!r}: no such folder. Use 'starter', a folder, or a hub id owner/name."
        )
    return path


def _class_names(pipe: Any, folder: Path) -> list[str]:
    file = folder / "classes.json"
    if file.is_file():
        return json.loads(file.read_text())
    by_name: dict[str, int] = getattr(pipe, "labels", None) or {}
    if by_name:
        names: dict[int, list[str]] = {}
        for name, label in by_name.items():
            names.setdefault(label, []).append(name)
        return [", ".join(names[label]) for label in sorted(names)]
    # A saved pipeline forgets its labels; numbers keep it usable with class folders named 0, 1, …
    return [str(i) for i in range(pipe.transformer.config.num_embeds_ada_norm)]


def _card(name: str, folder: Path, pipe: Any) -> Card:
    cards = yaml.safe_load((files(__name__) / "cards.yaml").read_text())
    config, factor = pipe.transformer.config, 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    # The paper's middle blocks, scaled to the depth: block 8 of 28.
    values = {**cards["dit"], "name": name, "size": config.sample_size * factor}
    values |= {"layer": str(round(config.num_layers * 8 / 28))} | cards.get(name, {})
    own = folder / "card.yaml"
    if own.is_file():
        values |= yaml.safe_load(own.read_text())
    known = Card.__dataclass_fields__
    for key in values:
        if key not in known:
            raise DapError(f"Unknown field {key!r} in {own}. {suggest(key, known)}")
    return Card(**values | {"layer": str(values["layer"])})
