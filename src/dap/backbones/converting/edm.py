"""Weights of EDM (NVlabs/edm) and EDM2 (NVlabs/edm2) as folders of an `EDMPipeline`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.backbones.converting.parts import filled
from dap.base.alone import alone
from dap.base.errors import DapError
from dap.networks import edm, edm2
from dap.networks.edm_pipeline import EDMPipeline

NAMES = {"edm": "NVlabs/edm", "edm2": "NVlabs/edm2"}
"""The keys into cards.yaml of the authors' weights."""

PUBLISHED = re.compile(r"edm-(cifar10-32x32|ffhq-64x64|afhqv2-64x64|imagenet-64x64)-|edm2-img(64|512)-")
"""How the names of the authors' files begin."""

LATENTS = {"latents_mean": [5.81, 3.25, 0.12, -2.15], "latents_std": [4.17, 4.62, 3.71, 3.28], "scaling_factor": 0.5}
"""How EDM2 standardises the latents of Stable Diffusion's autoencoder: to a standard deviation of 0.5."""

TRAINING = re.compile(r"(?:map_augment|logvar_fourier|logvar_linear)\.")
"""Tensors that only training needs: the embedding of augmentations, and the estimate of uncertainty."""

HEAD = 64
"""The width of a head in all published weights; no tensor shows it."""

SIDE = re.compile(r"enc\.(\d{1,5})x\1_conv\.weight")


def family(state: Mapping[str, Tensor]) -> str | None:
    """ "edm" or "edm2", if these are the tensors of one of them."""
    if not any(SIDE.fullmatch(name) for name in state):
        return None
    if {"map_layer0.weight", "map_layer1.weight"} <= state.keys():
        return "edm"
    return "edm2" if {"emb_fourier.freqs", "emb_noise.weight", "out_gain"} <= state.keys() else None


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the `model.` or `unet.` of the preconditioning, and without those that only training needs."""
    inner = {name: re.sub(r"^(?:model|unet)\.", "", name) for name in state}
    return {short: state[name] for name, short in inner.items() if not TRAINING.match(short)}


def _sizes(state: Mapping[str, Tensor], path: Path) -> tuple[list[int], dict[str, Any]]:
    """The sides of the levels from the largest, and the fields that both networks have but their unit of width."""
    sides = sorted(
        {int(found[1]) for name in state if (found := re.match(r"enc\.(\d{1,5})x\1_block0\.", name))}, reverse=True
    )
    if not sides or any(side != sides[0] >> level for level, side in enumerate(sides)):
        raise DapError(
            f"{path} is not a checkpoint of EDM: its levels have the sides {sides or 'none'}, which do not halve."
        )
    blocks = {name.split(".")[1] for name in state if name.startswith(f"enc.{sides[0]}x{sides[0]}_block")}
    attention = ("qkv.weight", "attn_qkv.weight")
    attended = [side for side in sides if any(f"enc.{side}x{side}_block0.{name}" in state for name in attention)]
    return sides, {"sample_size": sides[0], "num_blocks": len(blocks), "attn_resolutions": attended}


def _width(state: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in state or state[name].ndim < 2:
        raise DapError(f"{path} is not a checkpoint of EDM: it lacks {name}, or this tensor has another shape.")
    return state[name]


def config_of(state: Mapping[str, Tensor], kind: str, path: Path) -> dict[str, Any]:
    """The settings of the network, read from names and shapes.

    Args:
        state: the tensors, by the names of the network itself.
        kind: "edm" or "edm2".
        path: the file, for messages.

    Raises:
        DapError: the tensors are of another network.
    """
    sides, found = _sizes(state, path)
    first = _width(state, f"enc.{sides[0]}x{sides[0]}_conv.weight", path)
    block = "conv_res1.weight" if kind == "edm2" else "conv1.weight"
    widths = [len(_width(state, f"enc.{side}x{side}_block0.{block}", path)) for side in sides]
    label = state.get("emb_label.weight" if kind == "edm2" else "map_label.weight")
    found |= {"num_class_embeds": None if label is None else label.shape[1], "channels_per_head": HEAD}
    if kind == "edm2":
        unit = widths[0]
        return {
            **found,
            "in_channels": first.shape[1] - 1,
            "model_channels": unit,
            "channel_mult": [w // unit for w in widths],
        }
    if any("_aux_down." in name or "_aux_skip." in name for name in state):
        raise DapError(f"{path} has skips beside its encoder, which none of the published weights of EDM has.")
    song = "out_conv.weight" not in state
    embedding = _width(state, "map_layer0.weight", path)
    unit = len(first) if song else embedding.shape[1]
    taps = next((value.shape[-1] for name, value in state.items() if name.endswith("resample_filter")), 2)
    return {
        **found,
        "in_channels": first.shape[1],
        "style": "song" if song else "adm",
        "model_channels": unit,
        "channel_mult": [width // unit for width in widths],
        "channel_mult_emb": len(embedding) // unit,
        "channel_mult_noise": embedding.shape[1] // unit,
        "fourier": "map_noise.freqs" in state,
        "residual": any("_aux_residual." in name for name in state),
        "resample_filter": [1, 3, 3, 1] if taps == 4 else [1, 1],
    }


def pipeline(
    state: Mapping[str, Tensor], kind: str, path: Path, dtype: torch.dtype, vae: Any, sigma_data: float = 0.5
) -> EDMPipeline:
    """The pipeline of weights of EDM or EDM2, with the noise levels of the authors' samplers.

    Args:
        state: the tensors, as the authors name them.
        kind: "edm" or "edm2".
        path: the file, for messages.
        dtype: the number format that the weights get.
        vae: the autoencoder, for EDM2's models of latents; else None.
        sigma_data: the standard deviation of the data, which no tensor shows; 0.5 in all published weights.

    Raises:
        DapError: `config_of` raises, a tensor is missing, unknown or of a wrong shape, or the autoencoder is missing or too much.
    """
    from accelerate import init_empty_weights
    from diffusers import EDMEulerScheduler

    if "u" in state:
        raise DapError(
            f"{path} is a baseline of EDM's paper with the noise levels of iDDPM; give weights that EDM itself trained."
        )
    state = bare(state)
    config = {**config_of(state, kind, path), "sigma_data": sigma_data}
    if (config["in_channels"] == 3) != (vae is None):
        wanted = "leave out --vae" if vae is not None else "give --vae stabilityai/sd-vae-ft-mse, or a folder of it"
        raise DapError(f"{path.name} works on {config['in_channels']} channels: {wanted}.")
    with alone(), init_empty_weights(include_buffers=False):
        network: Any = (edm2.EDM2UNet2DModel if kind == "edm2" else edm.EDMUNet2DModel)(**config)
    filled(network, state, path, dtype, NAMES[kind])
    if vae is not None:
        vae.register_to_config(**LATENTS)
    noise: Any = EDMEulerScheduler
    return EDMPipeline(network, noise(sigma_data=network.config.sigma_data), vae)
