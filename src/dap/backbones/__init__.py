"""Backbones: frozen diffusion weights behind one interface."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from dap.backbones.base import Backbone, Card, ClassifierFree, Prediction
from dap.backbones.hub import open_pipeline
from dap.backbones.mixture import Mixture
from dap.backbones.schedules import Flow, Schedule, VariancePreserving
from dap.base.errors import DapError
from dap.base.files import read_json
from dap.base.registry import build, resolve, suggest

__all__ = [
    "Backbone",
    "Card",
    "ClassifierFree",
    "Flow",
    "Mixture",
    "Prediction",
    "Schedule",
    "VariancePreserving",
    "from_pipeline",
    "load",
    "own",
]


def load(
    path: str,
    *,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    offline: bool = False,
    template: str | None = None,
    negative_prompt: str | None = None,
) -> Backbone:
    """Weights from "starter", "starter-unet", a local diffusers folder or a hub id, or a backbone of your own.

    Args:
        path: "starter", "starter-unet", a folder with a `model_index.json`, an id such as `facebook/DiT-XL-2-256`, or
            `file.py:Name`, `package.module:Name`: a `Backbone` subclass or a function without arguments that returns one.
        revision: branch, tag or commit of a hub id.
        dtype: of the weights and activations; features and distances are float32 whatever it is.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
        offline: never ask the network, only the local cache.
        template: of a text-conditioned backbone's prompts, {} for the class name; default: the card's.
        negative_prompt: what its unconditional half is given; default: the card's.

    Raises:
        DapError: nothing there, not a pipeline, a pipeline of a kind that has no backbone, or a prompt for one that
            takes labels.
    """
    if ":" in path and not Path(path).expanduser().is_dir():
        given = {"revision": revision, "template": template, "negative_prompt": negative_prompt}
        return own(build(resolve(path, {}, "backbone"), path), path, dtype=dtype, device=device, **given)
    where = device_of(device)
    pipe, folder = open_pipeline(source_of(path), revision=revision, dtype=dtype, offline=offline)
    prompts = {k: v for k, v in (("template", template), ("negative_prompt", negative_prompt)) if v is not None}
    return from_pipeline(pipe.to(where), path=str(folder), name=path, **prompts)


def own(made: Any, path: str, *, dtype: str = "float32", device: str = "auto", **given: str | None) -> Backbone:
    """A user's own backbone, which chooses its type, device and prompts itself.

    Args:
        made: what the path gave.
        path: `file.py:Name`, for the message.
        dtype, device, given: what `load` was asked for.

    Raises:
        DapError: not a backbone, or it was asked for something that it does not choose.
    """
    if not isinstance(made, Backbone):
        raise DapError(f"{path!r} is not a backbone but a {type(made).__name__}; subclass dap.Backbone.")
    # A resolved recipe repeats the card's own prompts; they are no choice.
    refused = [name for name, value in given.items() if value not in (None, getattr(made.card, name, None))]
    if dtype != "float32":
        refused.append("dtype")
    where = device_of(device)
    if device != "auto" and (where.type != made.device.type or where.index not in (None, made.device.index)):
        refused.append(f"device (it is on {made.device})")
    if refused:
        raise DapError(f"{path} is made without arguments and chooses this itself: leave out {', '.join(refused)}.")
    return made


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


def from_pipeline(
    pipe: Any,
    *,
    path: str | None = None,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    **prompts: str,
) -> Backbone:
    """A backbone around the modules of a diffusers pipeline, shared and not copied.

    Args:
        pipe: a `DiTPipeline`, `StableDiffusionPipeline` or `StableDiffusion3Pipeline`.
        path: its folder, for `classes.json` and `card.yaml`; default: where it was loaded from.
        name: what to call it; also the key into cards.yaml; default: the hub id or folder it was loaded from.
        class_names: of one that takes labels, in label order; default: classes.json, then model_index.json, then numbers.
        prompts: template and negative_prompt in place of the card's.

    Raises:
        DapError: the pipeline is of another kind, its schedule is not supported, or it takes no prompts.
    """
    from diffusers import DiTPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline

    from dap.backbones.dit import DiT
    from dap.backbones.mmdit import MMDiT
    from dap.backbones.unet import UNet

    known: str | None = path or getattr(pipe, "name_or_path", None)
    folder = Path(known) if known and Path(known).is_dir() else None
    name = name or (folder.name if folder else known or type(pipe).__name__)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1) if hasattr(pipe, "vae") else 1
    if isinstance(pipe, DiTPipeline):
        if prompts:
            raise DapError(f"{name} is conditioned on labels, not on prompts: leave out {' and '.join(prompts)}.")
        config = pipe.transformer.config
        # The paper's middle blocks, scaled to the depth: block 8 of 28.
        shape = {"size": config.sample_size * factor, "layer": str(round(config.num_layers * 8 / 28))}
        card = _card("dit", name, folder, shape)
        if card.frequency_shift is None and (config.num_layers, config.num_embeds_ada_norm) == (28, 1000):
            logging.getLogger(__name__).warning(
                "%s looks like DiT-XL/2 but is not known by name. If its weights come from the original code, put "
                "'frequency_shift: 0' into card.yaml beside them; for weights trained in diffusers put 1.",
                name,
            )
        return DiT(
            pipe.transformer,
            pipe.vae,
            schedule=VariancePreserving.from_config(pipe.scheduler.config),
            class_names=_class_names(pipe, folder) if class_names is None else class_names,
            card=card,
        )
    if class_names is not None:
        raise DapError(f"{name} takes prompts made from the data's class names: it has no class names of its own.")
    if isinstance(pipe, StableDiffusionPipeline):
        side = pipe.unet.config.sample_size
        shape = {"size": (side if isinstance(side, int) else side[0]) * factor, "layer": "mid"}
        schedule = VariancePreserving.from_config(pipe.scheduler.config)
        return UNet(pipe, schedule=schedule, card=_card("unet", name, folder, shape, prompts))
    if isinstance(pipe, StableDiffusion3Pipeline):
        config = pipe.transformer.config
        shape = {"size": config.sample_size * factor, "layer": str(config.num_layers // 2)}
        return MMDiT(pipe, card=_card("mmdit", name, folder, shape, prompts))
    raise DapError(
        f"A {type(pipe).__name__} has no backbone yet; DiTPipeline, StableDiffusionPipeline and StableDiffusion3Pipeline "
        "have. Your own is a subclass of dap.Backbone, given as file.py:Name."
    )


def source_of(path: str) -> str:
    """The folder or hub id behind "starter", "starter-unet", a folder or a hub id.

    Raises:
        DapError: none of these.
    """
    from dap.starter import PIPELINE, UNET_PIPELINE

    embedded = {"starter": PIPELINE, "starter-unet": UNET_PIPELINE}
    if path in embedded:
        return str(embedded[path])
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise DapError(f"{folder} has no model_index.json, so it is not a diffusers pipeline folder.")
        return str(folder)
    if folder.is_file():
        raise DapError(
            f"{path} is a file, not a folder; 'dap convert {path} --out FOLDER' turns a DiT checkpoint into one."
        )
    if path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise DapError(
            f"There is no backbone at {path!r}: no such folder. Use 'starter', 'starter-unet', a folder, or a hub id owner/name."
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
    # Names beyond the last label stay: they are left over from before a fine-tuning, which is for the user to mend.
    return [by_label.get(label, str(label)) for label in range(max(n, 1 + max(by_label, default=0)))]


def _card(
    kind: str, name: str, folder: Path | None, shape: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> Card:
    """The defaults of the kind, then what the weights' shape says, cards.yaml, the folder's card.yaml and what was given."""
    cards = yaml.safe_load((files(__name__) / "cards.yaml").read_text(encoding="utf-8"))
    values: dict[str, Any] = {**cards[kind], "name": name, **shape, **_known(cards, name, folder)}
    if folder and (folder / "card.yaml").is_file():
        mine = yaml.safe_load((folder / "card.yaml").read_text(encoding="utf-8"))
        if not isinstance(mine, dict):
            raise DapError(f"{folder / 'card.yaml'} should hold a mapping such as 'licence: MIT'.")
        for key in mine:
            if key not in Card.__dataclass_fields__:
                raise DapError(
                    f"Unknown field {key!r} in {folder / 'card.yaml'}. {suggest(key, Card.__dataclass_fields__)}"
                )
        values |= mine
    values |= {"layer": str(values["layer"]), **(given or {})}
    return Card(**values)


def _known(cards: Mapping[str, Mapping[str, Any]], name: str, folder: Path | None) -> Mapping[str, Any]:
    """What is known of weights by their hub id: given, or that of the hub cache they lie in, or a copy's folder name."""
    ids = [name]
    if folder:
        folder = folder.resolve()
        ids += [
            part.removeprefix("models--").replace("--", "/") for part in folder.parts if part.startswith("models--")
        ]
        ids += [key for key in cards if "/" in key and key.endswith(f"/{folder.name}")]
    return next((cards[key] for key in ids if "/" in key and key in cards), {})
