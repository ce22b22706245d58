"""What the configuration files of a pipeline may say: each field is honoured or refused before anything runs.

These are the tables; `honoured` checks files and pipelines against them.

A field is honoured where a prediction of `dap` follows it as diffusers does: the networks are diffusers' own and follow every
field of theirs, and `dap` reads the noise levels from the scheduler. A field is indifferent where `dap` has its own way, such as
its solvers and its grids of timesteps. A field that is neither is refused, unless it has diffusers' default or is switched off.
So a field that a later version of diffusers brings is never ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dap.backbones.configurations.autoencoders import AUTOENCODERS
from dap.backbones.configurations.clips import CLIPS
from dap.backbones.configurations.denoisers import BY_KIND, DENOISERS
from dap.backbones.configurations.interpolants import INTERPOLANTS
from dap.backbones.configurations.labelled import LABELLED, QUANTISED
from dap.backbones.configurations.pixels import NOISE_LEVELS, PIXEL_BETAS, PIXELS
from dap.backbones.configurations.schedulers import (
    BETAS,
    BOTH,
    CONSISTENT,
    FLOW,
    FLOWS,
    OWN_WAY,
    PLAIN,
    SHIFTED,
    SHIFTING,
)
from dap.backbones.configurations.transformers import TRANSFORMERS
from dap.backbones.configurations.types import Off, Table, Whole

__all__ = [
    "AUTOENCODERS",
    "BETAS",
    "BOTH",
    "BY_KIND",
    "CONSISTENT",
    "FLOW",
    "FLOWS",
    "NETWORKS",
    "NOISE_LEVELS",
    "OWN_WAY",
    "PIXEL_BETAS",
    "PLAIN",
    "QUANTISED",
    "SHIFTED",
    "SHIFTING",
    "SWITCHED_OFF",
    "TEXT",
    "WAYS_OUT",
    "Off",
    "Table",
    "is_autoencoder",
    "newer",
]

NETWORKS: Mapping[str, Table] = {
    **DENOISERS,
    **TRANSFORMERS,
    **PIXELS,
    **INTERPOLANTS,
    **LABELLED,
    **AUTOENCODERS,
    **QUANTISED,
    **CLIPS,
}
"""By the class of a network of diffusers its fields. diffusers' own network follows each of them, unless a comment says other."""

WAYS_OUT: Mapping[str, str] = {
    "rescale_betas_zero_snr": "A schedule rescaled to zero terminal signal is not supported: its first x_t says nothing of eps.",
    "original_inference_steps": "dap's solver lcm knows consistency models of 50 steps, as all that are published.",
    "timestep_scaling": "dap's solver lcm knows consistency models of the scaling 10, as all that are published.",
    "clip_sample": "Latents reach beyond [-1, 1] and dap does not clip them; set it to false there.",
    "thresholding": "It is for pixels and dap does not threshold latents; set it to false there.",
    "use_flow_sigmas": "This kind of pipeline is not sampled on a flow; take the scheduler that the weights were trained with.",
    "use_dynamic_shifting": "It belongs to a flow; take the scheduler that the weights were trained with.",
    "timestep_type": "Continuous times belong to EDM, which is not supported.",
    "beta_schedule": "Take weights that were trained with linear or scaled_linear betas.",
    "prediction_type": "dap cannot read what such weights predict; take the scheduler_config.json that they were trained with.",
    "invert_sigmas": "dap counts a flow's time from the image to the noise; such weights cannot be sampled.",
    "sample_size": "Put the side of its square latents there, one number, such as 64 for 512 px and an autoencoder of factor 8.",
    "class_embed_type": "It takes a label or another input besides the prompt, which dap does not feed.",
    "num_class_embeds": "It takes a label or another input besides the prompt, which dap does not feed.",
    "addition_embed_type": "dap feeds sizes besides the prompt (text_time) to a StableDiffusionXLPipeline, and nothing else.",
    "encoder_hid_dim_type": "It takes an image besides the prompt, which dap does not feed.",
    "attention_type": "It takes boxes besides the prompt (GLIGEN), which dap does not feed.",
    "latents_mean": "diffusers' pipelines of this kind do not use it, so nobody can say what it should do here; set it to null.",
    "latents_std": "diffusers' pipelines of this kind do not use it, so nobody can say what it should do here; set it to null.",
    "shift_factor": "diffusers shifts no latents of this kind; take the autoencoder of these weights, or set it to null.",
    "decoder_inject_noise": "This decoder adds random noise of its own (LTX-Video 0.9.1 and later); take LTX-Video 0.9.0.",
    "timestep_conditioning": "dap tells this decoder no time, and LTX-Video 0.9.1 and later want one; take LTX-Video 0.9.0.",
    "patch_size_t": "dap samples transformers of clips whose tokens are one latent frame long, such as CogVideoX 1.0.",
    "ofs_embed_dim": "It belongs to a model that is told an image, which dap does not feed.",
    "norm_type": "diffusers' DiTPipeline is made for ada_norm_zero alone.",
}
"""What a refusal of a field says besides the value."""

SWITCHED_OFF: tuple[Any, ...] = (None, False, 0, "", [], {}, "default")


def is_autoencoder(of: str) -> bool:
    """Whether this is the name of an autoencoder's class in diffusers, one that is followed or another."""
    return of.startswith("Autoencoder") or of in ("AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", "VQModel")


def newer(of: str, values: Mapping[str, Any]) -> str:
    """The class that diffusers takes for the class that an older file names. The norm of such a file tells which."""
    norms = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
    return norms.get(str(values.get("norm_type")), "DiTTransformer2DModel") if of == "Transformer2DModel" else of


TEXT: Table = dict.fromkeys(
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "vocab_size",
        "d_model",
        "d_ff",
        "d_kv",
        "num_layers",
        "num_heads",
    ],
    Whole,
)
"""Sizes in the configuration of a text encoder; its own library follows all other fields, as it does for diffusers."""
