"""Backbones by name: the embedded starters, diffusers folders, hub ids, pipelines in memory and a user's own files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from dap import starter
from dap.backbones.base import Backbone
from dap.backbones.cards import Found, shape_of
from dap.backbones.converting.checkpoints import opened, tensors_of
from dap.backbones.converting.single import Said, open_single
from dap.backbones.honoured import check_pipeline
from dap.backbones.hub import open_pipeline
from dap.backbones.known import KINDS
from dap.backbones.placing import Offload, offload_on, place, settle
from dap.backbones.schedules import steps_of
from dap.backbones.strange import refuse_ending, refuse_folder, refuse_tensors, without_backbone
from dap.base.devices.precision import precise
from dap.base.errors import DapError, first_line
from dap.base.files import expanded
from dap.base.parsing import brief
from dap.base.registry import build, resolve

STARTERS = {"starter": "PIPELINE", "starter-unet": "UNET_PIPELINE"}
"""The names of the shipped backbones, and what `dap.starter` calls their folders."""

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""How names of files of weights end."""

FLAT = 1e-6
"""The smallest standard deviation of the pixels, in [0, 1], of an image of more than one colour."""


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | torch.dtype = "float32",
    device: str | torch.device = "auto",
    offline: bool = False,
    template: str | None = None,
    negative_prompt: str | None = None,
    offload: str = "none",
) -> Backbone:
    """Load a backbone: an embedded starter, a local diffusers folder, a hub id, or a user's own.

    Args:
        path: "starter", "starter-unet", a folder with a `model_index.json`, an id such as `facebook/DiT-XL-2-256`, a Stable
            Diffusion 1, 2 or XL in one file (.safetensors, .ckpt), or `file.py:Name` or `package.module:Name`: a `Backbone`
            subclass, or a function without arguments that returns a backbone.
        revision: branch, tag or commit of a hub id.
        dtype: the number format of the weights and activations, by its name or as torch has it. Features and distances are
            float32 in every case.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
        offline: never ask the network; read only the local cache.
        template: the prompt of a text-conditioned backbone, with {} for the class name. Default: the card's.
        negative_prompt: the text that the unconditional half of a text-conditioned backbone is given. Default: the
            card's.
        offload: which parts leave the GPU while others work: "none", each network ("model"), or each layer ("sequential",
            which is slow). This is diffusers' own. Text encoders wait outside the GPU in every case.

    Raises:
        DapError: there is nothing at the path, or no pipeline, or a pipeline of a kind that has no backbone. Or prompts
            were given for a backbone that takes labels.
    """
    if not isinstance(path, (str, Path)):
        raise DapError(f"A backbone is loaded by its name, folder, file or hub id, not by {brief(path)}.")
    path, device, kind = str(path), str(device), str(dtype).removeprefix("torch.")
    if ":" in path and not expanded(path).is_dir():
        given = {"revision": revision, "template": template, "negative_prompt": negative_prompt}
        return own(build(resolve(path, {}, "backbone"), path), path, dtype=kind, device=device, **given)
    where = device_of(device)
    how = offload_on(offload, where, kind)
    prompts = {k: v for k, v in (("template", template), ("negative_prompt", negative_prompt)) if v is not None}
    if (file := expanded(path)).is_file():
        if revision is not None:
            raise DapError(f"A revision is of a hub id; {path} is a file on this machine.")
        if (single := _single(file, kind, offline)) is not None:
            return _settled(single[0], where, how, name=single[1], **prompts)
    pipe, folder = open_pipeline(source_of(path), revision=revision, dtype=kind, offline=offline)
    return _settled(pipe, where, how, path=str(folder), name=path, **prompts)


def _single(file: Path, dtype: str, offline: bool) -> tuple[Any, str] | None:
    """The pipeline in one file and its name, as `open_single` gives them, or None for a checkpoint that is to be converted.

    Raises:
        DapError: the file is of a format that is not read, or holds something else than a model.
    """
    refuse_ending(file)
    if not file.name.endswith(WEIGHTS):
        return None
    found = opened(file)
    single = open_single(file, found, Said(), dtype=dtype, offline=offline)
    if single is None:
        refuse_tensors(file, tensors_of(file, found))
    return single


def _settled(pipe: Any, where: torch.device, how: Offload, **said: Any) -> Backbone:
    """The backbone of a pipeline that `load` has opened, with its parts where they should lie, and tried."""
    made = from_pipeline(place(pipe, where) if how == "none" else pipe, **said)
    settle(made, pipe, where, how)
    return tried(made)


@torch.no_grad()
def tried(backbone: Backbone) -> Backbone:
    """The backbone, after one prediction and one decoded image of noise, so that weights that do not fit are said at once.

    Raises:
        DapError: the parts do not fit each other, a prediction is not finite or is decided by x_t alone, or the autoencoder gives
            a constant image.
    """
    card = backbone.card
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    try:
        eps = backbone.predict(x, steps_of(backbone.schedule) // 2, backbone.null(1)).eps
        images = backbone.decode(x)
    except torch.OutOfMemoryError as error:
        raise DapError(
            f"{card.name} does not fit into the memory of {backbone.device}; use --dtype bfloat16, or --offload model."
        ) from error
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        reason = first_line(error)
        if re.search(r"cuda|cudnn|cublas|same device|kernel image", reason, re.IGNORECASE):
            raise DapError(f"{card.name} does not work on {backbone.device}: {reason.rstrip('.')}.") from error
        raise DapError(
            f"The parts of {card.name} do not fit each other, or a config.json says something else than its weights were "
            f"trained with: {reason.rstrip('.')}. Fetch or save the folder anew."
        ) from error
    if eps.shape != x.shape or images.shape != (1, *shape_of(card)):
        raise DapError(
            f"{card.name} predicts {tuple(eps.shape[1:])} for latents {tuple(x.shape[1:])} and decodes them to "
            f"{tuple(images.shape[1:])}, not to {shape_of(card)}; its parts were not trained together."
        )
    if not torch.isfinite(eps).all():
        raise DapError(
            f"{card.name} predicts noise that is not finite; use --dtype float32, or fetch the weights anew."
        )
    # A network that gives one number for everything predicts one noise, or, where it predicts v or x_0, a multiple of x_t.
    centred, noise = (one - one.mean() for one in (precise(x), precise(eps)))
    rest = noise - (noise * centred).sum() / centred.square().sum() * centred
    if rest.std() < FLAT * max(1.0, float(noise.std())):
        raise DapError(
            f"The denoiser of {card.name} gives one number for every image: its weights are zero, or it was never trained. Fetch "
            "them anew."
        )
    if not torch.isfinite(images).all() or images.std() < FLAT:
        raise DapError(
            f"The autoencoder of {card.name} gives an image of one colour for noise: its weights are zero or damaged. Fetch "
            "them anew."
        )
    return backbone


def own(made: Any, path: str, *, dtype: str = "float32", device: str = "auto", **given: str | None) -> Backbone:
    """Check a user's own backbone.

    Such a backbone is made without arguments, so it chooses its dtype, device and prompts itself.

    Args:
        made: the object at the path.
        path: `file.py:Name`, for the message.
        dtype, device, given: the choices that `load` was given.

    Raises:
        DapError: the object is no backbone, or `load` was given a choice that the backbone does not follow.
    """
    if not isinstance(made, Backbone):
        raise DapError(f"{path!r} is not a backbone but a {type(made).__name__}; subclass dap.Backbone.")
    # A resolved recipe repeats the prompts of the card. This is not a choice of the user.
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
    """The device behind "auto", "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        DapError: there is no device of this name, or this machine has none.
    """
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d{1,2})?|mps(:0)?", name):  # others, such as meta, compute nothing here
        raise DapError(f"There is no device {name[:40]!r}; use --device auto, cpu, cuda or cuda:1.")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DapError(f"Device {name!r} was asked for but this machine has no Apple GPU; use --device cpu.")
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
    """A backbone around the modules of a diffusers pipeline. The modules are shared and not copied.

    Args:
        pipe: a pipeline of a kind in `known.KINDS`, such as a `DiTPipeline`.
        path: the folder of the pipeline, which may hold `classes.json` and `card.yaml`. Default: the folder that the
            pipeline was loaded from.
        name: the name of the weights in manifests and reports, and the key into cards.yaml. Default: the hub id or
            folder that the pipeline was loaded from.
        class_names: the names of a label-conditioned backbone's classes, in label order. Default: the names in
            classes.json, else in model_index.json, else numbers.
        prompts: a `template` and a `negative_prompt` that replace those of the card.

    Raises:
        DapError: the pipeline is of a kind without a backbone, its schedule is not supported, or it takes no prompts.
    """
    kind = next((of.__name__ for of in type(pipe).__mro__ if of.__name__ in KINDS), None)
    if kind is None:
        raise without_backbone(type(pipe).__name__)
    known: str | None = path or getattr(pipe, "name_or_path", None)
    folder = Path(known) if known and Path(known).is_dir() else None
    check_pipeline(pipe, KINDS[kind], folder)
    name = name or (folder.name if folder else known or type(pipe).__name__)
    return KINDS[kind].backbone().from_pipeline(pipe, Found(name, folder, class_names, prompts))


def source_of(path: str) -> str:
    """The folder or hub id behind "starter", "starter-unet", a folder or a hub id.

    Raises:
        DapError: the path is none of these.
    """
    if path in STARTERS:
        return str(getattr(starter, STARTERS[path]))
    folder = expanded(path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            refuse_folder(folder)
        return str(folder)
    if folder.is_file():
        raise DapError(
            f"{path} is a file, not a folder; 'dap convert {path} --out FOLDER' turns a checkpoint of a class-conditional "
            "model into one. A Stable Diffusion in one file is opened as it is."
        )
    if path.endswith(WEIGHTS):
        raise DapError(f"There is no file {path}.")
    if path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise DapError(
            f"There is no backbone at {path!r}: no such folder. Use 'starter', 'starter-unet', a folder, or a hub id owner/name."
        )
    return path
