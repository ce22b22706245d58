"""Backbones: frozen diffusion weights behind one interface."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from dap.backbones.base import Backbone, Card, ClassifierFree, Prediction
from dap.backbones.mixture import Mixture
from dap.errors import DapError
from dap.files import read_json
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
    where = device_of(device)
    source = _source(path)
    logging.disable_progress_bar()
    try:
        folder = source
        if not Path(source).is_dir():
            folder = str(DiffusionPipeline.download(source, revision=revision, local_files_only=offline))
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=DTYPES[dtype], local_files_only=True)
    except Exception as error:  # the hub library and diffusers raise a dozen kinds for a folder or id that is no good
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DapError(
            f"The backbone {path!r} could not be loaded: {reason} "
            "Give a local diffusers folder, a hub id that this machine can reach, or 'starter'."
        ) from error
    finally:
        logging.enable_progress_bar()
    return from_pipeline(pipe.to(where), path=folder, name=path)


def device_of(name: str) -> torch.device:
    """The device behind "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        DapError: no such device on this machine.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise DapError(f"There is no device {name!r}; use auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DapError(f"Device {name!r} was asked for but this machine has no such CUDA device; use --device cpu.")
    return device


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
    known = path or getattr(pipe, "name_or_path", None)
    folder = Path(known) if known and Path(known).is_dir() else None
    name = name or (folder.name if folder else type(pipe).__name__)
    scheduler = pipe.scheduler.config
    if scheduler.get("beta_schedule", "linear") != "linear":
        raise DapError(f"The schedule {scheduler['beta_schedule']!r} of {name} is not supported; DiT's is linear.")
    betas = (scheduler["beta_start"], scheduler["beta_end"], scheduler["num_train_timesteps"])
    return DiT(
        pipe.transformer,
        pipe.vae,
        betas=betas,
        class_names=_class_names(pipe, folder),
        card=_card(name, folder, pipe),
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


def _class_names(pipe: Any, folder: Path | None) -> list[str]:
    n = pipe.transformer.config.num_embeds_ada_norm
    if folder and (folder / "classes.json").is_file():
        names = read_json(folder / "classes.json")
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise DapError(f"{folder / 'classes.json'} should be a list of class names in label order.")
        return names
    # The pipeline's own name -> label table has lost every name that two labels share; the index file has them all.
    index = read_json(folder / "model_index.json") if folder and (folder / "model_index.json").is_file() else {}
    by_label = {int(label): str(name) for label, name in (index.get("id2label") or {}).items()}
    if not by_label:
        for name, label in (getattr(pipe, "labels", None) or {}).items():
            by_label[label] = f"{by_label[label]}, {name}" if label in by_label else name
    # A saved pipeline forgets its labels; numbers keep it usable with class folders named 0, 1, …
    return [by_label.get(label, str(label)) for label in range(n)]


def _card(name: str, folder: Path | None, pipe: Any) -> Card:
    cards = yaml.safe_load((files(__name__) / "cards.yaml").read_text())
    config, factor = pipe.transformer.config, 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    # The paper's middle blocks, scaled to the depth: block 8 of 28.
    values = {**cards["dit"], "name": name, "size": config.sample_size * factor}
    values |= {"layer": str(round(config.num_layers * 8 / 28))} | cards.get(name, {})
    if folder and (folder / "card.yaml").is_file():
        own = yaml.safe_load((folder / "card.yaml").read_text(encoding="utf-8"))
        if not isinstance(own, dict):
            raise DapError(f"{folder / 'card.yaml'} should hold a mapping such as 'licence: MIT'.")
        for key in own:
            if key not in Card.__dataclass_fields__:
                raise DapError(
                    f"Unknown field {key!r} in {folder / 'card.yaml'}. {suggest(key, Card.__dataclass_fields__)}"
                )
        values |= own
    return Card(**values | {"layer": str(values["layer"])})
