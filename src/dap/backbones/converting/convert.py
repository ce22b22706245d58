"""`dap convert`: write a pipeline, or weights as their authors publish them, as a diffusers folder of safetensors."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dap import __version__
from dap.backbones.base import Card
from dap.backbones.converting import flows, labelled
from dap.backbones.converting.checkpoints import DIT, folded, opened, tensors_of, told
from dap.backbones.converting.dit import config_of, transformer
from dap.backbones.converting.flows import family_of
from dap.backbones.converting.parts import class_names
from dap.backbones.converting.pixels import open_pixels
from dap.backbones.converting.single import Said, open_single
from dap.backbones.converting.with_encoder.pixart import open_pixart
from dap.backbones.hub import DTYPES, open_autoencoder, open_pipeline
from dap.backbones.opening import from_pipeline, source_of, tried
from dap.backbones.strange import refuse_tensors, unknown
from dap.base.alone import locked
from dap.base.disk import writing
from dap.base.documents import read_bytes, read_json, read_names
from dap.base.errors import DapError
from dap.base.files import check_output, dump, expanded, write_atomically
from dap.base.registry import suggest

log = logging.getLogger(__name__)

RECORD = "conversion.json"
"""A file that marks a folder as made by a conversion. The next conversion may replace such a folder."""

KEPT = ("classes.json", "card.yaml", "README.md", "LICENSE", "LICENSE.md")


@dataclass(frozen=True)
class Ready:
    """A pipeline that is to be written.

    Attributes:
        pipe: the pipeline.
        files: further files of its folder, by name.
        out: the folder.
    """

    pipe: Any
    files: Mapping[str, bytes]
    out: Path


def convert(source: str | Path, out: str | Path, **how: Any) -> Path:
    """Write a pipeline as a diffusers folder of safetensors, with its class names and its card.

    The written pipeline behaves as its source does.

    Args:
        source, out, how: as for `read`.

    Returns:
        The folder.

    Raises:
        DapError: `read` raises it, or the disk refuses the files.
    """
    ready = read(source, out, **how)
    _write(ready.pipe, ready.files, ready.out)
    return ready.out


def read(
    source: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    vae: str | None = None,
    heads: int | None = None,
    classes: str | Path | None = None,
    dtype: str = "float32",
    offline: bool = False,
    tokenizer: str | None = None,
    prediction: str | None = None,
    size: int | None = None,
    family: str | None = None,
    flow_path: str | None = None,
    encoder: str | None = None,
) -> Ready:
    """Read what `convert` writes. Nothing is written.

    Args:
        source: a diffusers folder or hub id of a kind that has a backbone, or a checkpoint file of the original DiT code
            (facebookresearch/DiT). The file may hold the weights themselves, or hold them under "ema", "model" or
            "state_dict", with the prefixes of DDP, of torch.compile and of Lightning. The factors of MinimaxDiffusion's
            fine-tuning are folded into the weights. Or a checkpoint of SiT, REPA, REG or LightningDiT, which are flows, or of a
            Latte with labels, which makes clips. Or a Stable Diffusion in one file, .safetensors or .ckpt, or a transformer of
            PixArt. Pickles are opened by the weights-only path.
        out: the folder. It is written as a whole or not at all. It replaces a folder that an earlier conversion wrote.
        revision: branch, tag or commit of a hub id.
        vae: for a checkpoint file, the folder or hub id of its `AutoencoderKL`, such as stabilityai/sd-vae-ft-ema; for a flow
            also a file as latent diffusion's code saves it, such as VA-VAE's. A Stable Diffusion in one file has its own, and
            this one takes its place.
        heads: the number of attention heads, for a checkpoint file of a width that DiT-S, B, L and XL do not have.
        classes: a file with a JSON list of class names in label order. Default: the names of the source. For a
            checkpoint file with 1000 labels the default is ImageNet's names, and for other checkpoint files numbers.
        dtype: the number format of the written weights.
        offline: never ask the network, only the local cache.
        tokenizer: for a Stable Diffusion in one file, the folder or hub id of its tokenizer. Default: a folder `tokenizer`
            beside the file, else CLIP's from the hub or its cache.
        prediction: for such a file, "epsilon" or "v_prediction". Default: what the U-Net shows at the last timestep.
        size: for such a file, the side of its images in px. Default: 512, or 768 for a Stable Diffusion 2 that predicts a
            velocity.
        family: for a checkpoint whose tensors, name and arguments do not tell it: "dit", "sit", "repa" or "lightningdit".
        flow_path: for a flow, "linear", "gvp" or "vp". Default: what the trainer's arguments in the file say, else "linear".
        encoder: for a PixArt, the folder or hub id of its T5, or of a pipeline that has this T5 with its tokenizer. For a REG,
            that of its DINOv2.

    Returns:
        The pipeline, and the files beside it.

    Raises:
        DapError: there is nothing at the source, the weights are of another kind, something that the weights need is
            missing, or `out` holds something else.
    """
    if dtype not in DTYPES:
        raise DapError(f"Unknown dtype {dtype!r}. {suggest(dtype, DTYPES)}")
    path, out = expanded(source), expanded(out).resolve()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file()):
        raise DapError(f"{out} is not empty and not from an earlier dap convert; give --out a new folder.")
    check_output(out)
    if path.resolve() == out:
        raise DapError(f"{source} is also the --out; give --out another folder.")
    given = read_names(expanded(classes)) if classes else None
    record = {"source": path.name if path.exists() else str(source), "revision": revision, "dtype": dtype}
    kept: dict[str, bytes] = {}
    if path.exists() and revision is not None:
        raise DapError(f"--revision is for hub ids; {source} is on this machine.")
    said = Said(tokenizer, vae, prediction, size, heads, encoder)
    if path.is_file():
        pipe, card, names = _from_file(path, said, given, dtype, offline, family, flow_path)
    else:
        _check_said(said, source)
        if vae is not None or heads is not None:
            raise DapError(
                f"--vae and --heads are for a checkpoint file of the original DiT code, which {source} is not."
            )
        if family is not None or flow_path is not None:
            raise DapError(
                f"--family and --path are for a checkpoint file of DiT, SiT or a descendant, not for {source}."
            )
        pipe, folder = open_pipeline(source_of(str(source)), revision=revision, dtype=dtype, offline=offline)
        backbone = tried(from_pipeline(pipe, path=str(folder), name=str(source), class_names=given))
        card, names = backbone.card, backbone.class_names
        kept = {name: read_bytes(folder / name) for name in KEPT if (folder / name).is_file()}
        record["commit"] = folder.name if folder.parent.name == "snapshots" else None
    fields = card.written()
    if path.exists():  # a local folder has its name from its place, also the new one
        del fields["name"]
    files = {"card.yaml": yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).encode()}
    listed = {"classes.json": dump(list(names))} if names else {}
    files |= {**listed, **kept, **(listed if given else {}), RECORD: dump({**record, "dap": __version__})}
    return Ready(pipe, files, out)


def _write(pipe: Any, files: Mapping[str, bytes], out: Path) -> None:
    """Write the new folder beside `out`, and then move it to `out`. If this fails, the old folder stays."""
    aside = out.with_name(f".{out.name}.partial")
    with locked(aside):
        made, old = aside / "new", aside / "old"
        shutil.rmtree(made, ignore_errors=True)  # of a killed run
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a run that was killed when `out` was in its place already
        try:
            with writing(out, made):
                pipe.save_pretrained(made, safe_serialization=True)
                for config in (
                    *made.glob("*.json"),
                    *made.glob("*/config.json"),
                ):  # these files name a path of this machine
                    values = read_json(config, dict[str, Any])
                    values.pop("_name_or_path", None)
                    write_atomically(config, dump(values))
                for name, data in files.items():
                    write_atomically(made / name, data)
            if out.exists():
                os.replace(out, old)
            os.replace(made, out)
        finally:
            if old.exists() and not out.exists():
                os.replace(old, out)
            shutil.rmtree(aside, ignore_errors=True)


def _check_said(said: Said, source: str | Path) -> None:
    """Refuse what is said of a Stable Diffusion in one file, of a PixArt or of a REG, where there is none."""
    if said.encoder is not None:
        raise DapError(f"--encoder is for a checkpoint file of PixArt or REG, which {source} is not.")
    if said != Said(vae=said.vae, heads=said.heads):
        raise DapError(
            f"--tokenizer, --prediction and --size are for a Stable Diffusion in one file, which {source} is not."
        )


def _from_file(
    path: Path,
    said: Said,
    names: list[str] | None,
    dtype: str,
    offline: bool,
    family: str | None,
    flow_path: str | None,
) -> tuple[Any, Card, Sequence[str]]:
    """The pipeline in a file, its card and its class names. The file is opened once, and is of the first kind that it fits."""
    found = opened(path)
    pixart = open_pixart(path, found, said, dtype=dtype, offline=offline)
    single = (pixart, path.name) if pixart else open_single(path, found, said, dtype=dtype, offline=offline)
    if single is not None:
        if family is not None or flow_path is not None:
            raise DapError(f"--family and --path are for a DiT, a SiT or a descendant, which {path} is not.")
        if pixart is None:
            _check_said(Said(encoder=said.encoder), path)
        pipe, name = single
        backbone = tried(from_pipeline(pipe, name=name, class_names=names))
        return pipe, backbone.card, backbone.class_names
    _check_said(replace(said, encoder=None), path)
    pixels = open_pixels(path, found, names, dtype=dtype, vae=said.vae, offline=offline)
    if pixels is None:
        return _from_checkpoint(path, found, said, names, dtype, offline, family, flow_path)
    _check_said(Said(encoder=said.encoder), path)
    if said.heads is not None:
        raise DapError(f"--heads is for a checkpoint of the original DiT code; {path} is known by its tensors.")
    return pixels


def _from_checkpoint(
    path: Path,
    found: Mapping[str, Any],
    given: Said,
    names: list[str] | None,
    dtype: str,
    offline: bool,
    family: str | None,
    flow_path: str | None,
) -> tuple[Any, Card, Sequence[str]]:
    """The pipeline of a checkpoint of the original code, its card and its class names."""
    from diffusers import DDIMScheduler, DiTPipeline

    vae, heads = given.vae, given.heads
    said, state = told(path, found), tensors_of(path, found)
    refuse_tensors(path, state)
    if labelled.family(state) is None and not any(name.startswith(DIT) for name in state):
        raise unknown(path, state)
    if vae is None:
        raise DapError(
            f"{path.name} holds no autoencoder; give --vae a folder or hub id, such as stabilityai/sd-vae-ft-ema."
        )
    if flows.TOKEN not in state:
        _check_said(Said(encoder=given.encoder), path)
    if labelled.family(state) is not None:
        coder = open_autoencoder(vae, dtype=dtype, offline=offline)
        pipe = labelled.pipeline(state, path, coder, DTYPES[dtype], heads)
        names = class_names(path, pipe.denoiser.config.num_classes, names or labelled.film_names(pipe))
        name = labelled.published(path, pipe.denoiser.config) or path.name
        backbone = tried(from_pipeline(pipe, name=name, class_names=names))
        return pipe, backbone.card, backbone.class_names
    if (of := family_of(path, state, said, family)) != "dit":
        names = _names(path, flows.config_of(path, of, state, heads)["num_classes"], names)
        how = {"flow_path": flow_path, "heads": heads, "dtype": DTYPES[dtype], "offline": offline}
        named = {"vae": vae, "encoder": given.encoder, "labels": dict(enumerate(names))}
        pipe = flows.pipeline(path, of, state, said.arguments, **named, **how)
        known = flows.published(path, len(names))
        card = from_pipeline(pipe, name=known or path.name, class_names=names).card
        return pipe, card if known else replace(card, **flows.CARDS[of]), names
    if flow_path is not None:
        raise DapError(f"--path is for flows; {path.name} is a DiT, which has betas.")
    state = folded(state, path)
    config = config_of(state, path, heads)
    labels = config["num_embeds_ada_norm"]
    names = _names(path, labels, names)
    autoencoder = open_autoencoder(vae, dtype=dtype, offline=offline)
    if autoencoder.config.latent_channels != config["in_channels"]:
        raise DapError(
            f"{path.name} works on {config['in_channels']} latent channels, the autoencoder {vae} has "
            f"{autoencoder.config.latent_channels}; give --vae the one it was trained with."
        )
    scheduler: Any = DDIMScheduler
    scheduler = scheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    pipe = DiTPipeline(transformer(state, config, path, DTYPES[dtype]), autoencoder, scheduler)
    name, published = path.name, re.fullmatch(r"DiT-XL-2-(256|512)x\1\.pt", path.name)
    if published and labels == 1000 and config["sample_size"] * 8 == int(published[1]):
        name = (
            f"facebook/DiT-XL-2-{published[1]}"  # these are the same weights, so their licence and best layer are known
        )
    card = from_pipeline(pipe, name=name, class_names=names).card
    return pipe, replace(card, frequency_shift=0), names


def _names(path: Path, labels: int, names: list[str] | None) -> list[str]:
    """The names of a checkpoint's classes: those that the user gives, else ImageNet's for 1000 labels, else numbers.

    Raises:
        DapError: the user gives another number of names.
    """
    if names is not None and len(names) == labels + 1:
        raise DapError(
            f"{path.name} has a table of {labels + 1} labels, as many as --classes has names. A DiT keeps one more, the null "
            "label of classifier-free guidance: this one was trained without it (class_dropout_prob=0) and cannot be guided."
        )
    if names is None and labels != 1000:
        log.warning(
            "%s has a table of %d labels; the last one is taken for the null label. If it was trained with "
            "class_dropout_prob=0 it has none: give --classes FILE with its %d names to find out.",
            path.name,
            labels + 1,
            labels,
        )
    return class_names(path, labels, names)
