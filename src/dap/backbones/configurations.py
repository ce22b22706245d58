"""What the configuration files of a pipeline may say: each field is honoured or refused before anything runs.

These are the tables; `honoured` checks files and pipelines against them.

A field is honoured where a prediction of `dap` follows it as diffusers does: the networks are diffusers' own and follow every
field of theirs, and `dap` reads the noise levels from the scheduler. A field is indifferent where `dap` has its own way, such as
its solvers and its grids of timesteps. A field that is neither is refused, unless it has diffusers' default or is switched off.
So a field that a later version of diffusers brings is never ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from dap.base.fields import Text

Word: Any = Text
Whole: Any = Annotated[int, Field(ge=1, le=2**20), Strict()]
"""A size or a number of things."""
Position: Any = Annotated[int, Field(ge=0, le=2**20), Strict()]
Number: Any = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False), Strict()]
Positive: Any = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), Strict()]
Beta: Any = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), Strict()]
Flag: Any = Annotated[bool, Strict()]
Words: Any = list[Word] | tuple[Word, ...]
Wholes: Any = Whole | list[Whole] | tuple[Whole, ...]
Deep: Any = Wholes | list[Wholes] | tuple[Wholes, ...]
Off = Literal[None, False]
"""A field that must be switched off."""
Factor = Literal[3]

Table = Mapping[str, Any]
"""By the name of a field the type of the values that it may have."""

BETAS: Table = {
    "num_train_timesteps": Annotated[int, Field(ge=1, le=10**5), Strict()],
    "beta_start": Beta,
    "beta_end": Beta,
    "beta_schedule": Literal["linear", "scaled_linear"],
    "trained_betas": Annotated[list[Beta], Field(min_length=1, max_length=10**5)] | tuple[Beta, ...] | None,
    "prediction_type": Literal["epsilon", "v_prediction"],
    "rescale_betas_zero_snr": Off,
    "clip_sample": Off,
    "thresholding": Off,
    "use_flow_sigmas": Off,
    "use_dynamic_shifting": Off,
    "timestep_type": Literal["discrete"],
}
FLOW: Table = {
    "num_train_timesteps": Annotated[int, Field(ge=1, le=10**5), Strict()],
    "shift": Positive,
    "flow_shift": Positive,
    "use_dynamic_shifting": Flag,
    "base_shift": Number,
    "max_shift": Number,
    "base_image_seq_len": Whole,
    "max_image_seq_len": Whole,
    "time_shift_type": Literal["exponential", "linear"],
    "invert_sigmas": Off,
    "thresholding": Off,
    "prediction_type": Literal["flow_prediction"],
    "use_flow_sigmas": Literal[True],
}

OWN_WAY = frozenset(
    [
        "algorithm_type",
        "clip_sample_range",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "euler_at_final",
        "final_sigmas_type",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "predict_x0",
        "sample_max_value",
        "set_alpha_to_one",
        "shift_terminal",
        "sigma_max",
        "sigma_min",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "steps_offset",
        "stochastic_sampling",
        "timestep_spacing",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
        "flow_shift",
        "time_shift_type",
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
    ]
)
"""Fields of schedulers that are indifferent: they choose a solver or a grid of timesteps, and `dap` has its own of both."""

PLAIN = [
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
]
BOTH = [
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
]
FLOWS = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]

_ATTENTION: Table = {
    "attention_head_dim": Whole,
    "num_attention_heads": Whole,
    "num_layers": Whole,
    "patch_size": Whole,
}

NETWORKS: Mapping[str, Table] = {
    "DiTTransformer2DModel": {
        **_ATTENTION,
        "in_channels": Whole,
        "out_channels": Whole | None,
        "sample_size": Whole,
        "num_embeds_ada_norm": Whole,
        "norm_num_groups": Whole,
        "norm_type": Literal["ada_norm_zero"],
        "norm_elementwise_affine": Flag,
        "norm_eps": Positive,
        "activation_fn": Word,
        "attention_bias": Flag,
        "upcast_attention": Flag,
        "dropout": Annotated[float, Field(ge=0, lt=1), Strict()],
    },
    "UNet2DConditionModel": {
        "sample_size": Whole | list[Whole] | tuple[Whole, ...],
        "in_channels": Whole,
        "out_channels": Whole,
        "center_input_sample": Flag,
        "flip_sin_to_cos": Flag,
        "freq_shift": Number,
        "down_block_types": Words,
        "mid_block_type": Word | None,
        "up_block_types": Words,
        "only_cross_attention": Flag | list[Flag] | tuple[Flag, ...],
        "block_out_channels": list[Whole] | tuple[Whole, ...],
        "layers_per_block": Wholes,
        "downsample_padding": Position,
        "mid_block_scale_factor": Positive,
        "dropout": Annotated[float, Field(ge=0, lt=1), Strict()],
        "act_fn": Word,
        "norm_num_groups": Whole | None,
        "norm_eps": Positive,
        "cross_attention_dim": Wholes,
        "transformer_layers_per_block": Deep,
        "reverse_transformer_layers_per_block": Deep | None,
        "encoder_hid_dim": Whole | None,
        "encoder_hid_dim_type": Literal[None, "text_proj"],
        "attention_head_dim": Wholes,
        "num_attention_heads": Wholes | None,
        "dual_cross_attention": Flag,
        "use_linear_projection": Flag,
        "class_embed_type": Off,
        "num_class_embeds": Off,
        "addition_embed_type": Off,
        "time_cond_proj_dim": Off,
        "upcast_attention": Flag | None,
        "resnet_time_scale_shift": Word,
        "resnet_skip_time_act": Flag,
        "resnet_out_scale_factor": Positive,
        "time_embedding_type": Literal["positional", "fourier"],
        "time_embedding_dim": Whole | None,
        "time_embedding_act_fn": Word | None,
        "timestep_post_act": Word | None,
        "conv_in_kernel": Whole,
        "conv_out_kernel": Whole,
        "attention_type": Literal["default"],
        "mid_block_only_cross_attention": Flag | None,
        "cross_attention_norm": Word | None,
        # These four say how a condition is added that is refused above.
        "addition_time_embed_dim": Any,
        "class_embeddings_concat": Any,
        "addition_embed_type_num_heads": Any,
        "projection_class_embeddings_input_dim": Any,
    },
    "SD3Transformer2DModel": {
        **_ATTENTION,
        "sample_size": Whole,
        "in_channels": Whole,
        "out_channels": Whole,
        "joint_attention_dim": Whole,
        "caption_projection_dim": Whole,
        "pooled_projection_dim": Whole,
        "pos_embed_max_size": Whole,
        "dual_attention_layers": list[Position] | tuple[Position, ...],
        "qk_norm": Word | None,
    },
    "AutoencoderKL": {
        "in_channels": Factor,
        "out_channels": Factor,
        "down_block_types": Words,
        "up_block_types": Words,
        "block_out_channels": list[Whole] | tuple[Whole, ...],
        "layers_per_block": Whole,
        "act_fn": Word,
        "latent_channels": Whole,
        "norm_num_groups": Whole,
        "scaling_factor": Positive,
        "shift_factor": Number | None,
        "latents_mean": Off,
        "latents_std": Off,
        "use_quant_conv": Flag,
        "use_post_quant_conv": Flag,
        "mid_block_add_attention": Flag,
        "sample_size": Wholes,  # indifferent: only decoding by tiles asks for it
        "force_upcast": Flag,  # indifferent: an overflow is decoded again in float32 whatever it says
    },
    "AutoencoderTiny": {
        "in_channels": Factor,
        "out_channels": Factor,
        "block_out_channels": list[Whole] | tuple[Whole, ...],  # the encoder's again, which diffusers adds
        "encoder_block_out_channels": list[Whole] | tuple[Whole, ...],
        "decoder_block_out_channels": list[Whole] | tuple[Whole, ...],
        "num_encoder_blocks": list[Whole] | tuple[Whole, ...],
        "num_decoder_blocks": list[Whole] | tuple[Whole, ...],
        "act_fn": Word,
        "upsample_fn": Word,
        "latent_channels": Whole,
        "upsampling_scaling_factor": Literal[2],
        "latent_magnitude": Number,  # indifferent, as the next: only the helpers for eight-bit latents ask for them
        "latent_shift": Number,
        "scaling_factor": Positive,
        "shift_factor": Literal[None, 0, False],
        "force_upcast": Flag,
    },
}
"""By the class of a network of diffusers its fields. diffusers' own network follows each of them, unless a comment says other."""

WAYS_OUT: Mapping[str, str] = {
    "rescale_betas_zero_snr": "A schedule rescaled to zero terminal signal is not supported: its first x_t says nothing of eps.",
    "clip_sample": "Latents reach beyond [-1, 1] and dap does not clip them; set it to false there.",
    "thresholding": "It is for pixels and dap does not threshold latents; set it to false there.",
    "use_flow_sigmas": "A flow is sampled by a Stable Diffusion 3 pipeline only, and it needs a flow there.",
    "use_dynamic_shifting": "It belongs to a flow; take the scheduler that the weights were trained with.",
    "timestep_type": "Continuous times belong to EDM, which is not supported.",
    "beta_schedule": "Take weights that were trained with linear or scaled_linear betas.",
    "prediction_type": "dap cannot read what such weights predict; take the scheduler_config.json that they were trained with.",
    "invert_sigmas": "dap counts a flow's time from the image to the noise; such weights cannot be sampled.",
    "sample_size": "Put the side of its square latents there, one number, such as 64 for 512 px and an autoencoder of factor 8.",
    "time_cond_proj_dim": "It is a distilled model that takes the guidance scale as an input (LCM), which dap does not feed.",
    "class_embed_type": "It takes a label or another input besides the prompt, which dap does not feed.",
    "num_class_embeds": "It takes a label or another input besides the prompt, which dap does not feed.",
    "addition_embed_type": "It takes sizes or images besides the prompt (SDXL), which dap does not feed.",
    "encoder_hid_dim_type": "It takes an image besides the prompt, which dap does not feed.",
    "attention_type": "It takes boxes besides the prompt (GLIGEN), which dap does not feed.",
    "latents_mean": "diffusers' pipelines of this kind do not use it, so nobody can say what it should do here; set it to null.",
    "latents_std": "diffusers' pipelines of this kind do not use it, so nobody can say what it should do here; set it to null.",
    "shift_factor": "Only Stable Diffusion 3's pipeline shifts latents; set it to null.",
    "norm_type": "diffusers' DiTPipeline is made for ada_norm_zero alone.",
}
"""What a refusal of a field says besides the value."""

SWITCHED_OFF: tuple[Any, ...] = (None, False, 0, "", [], {}, "default")

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
"""The classes of autoencoders that are followed."""


def is_autoencoder(of: str) -> bool:
    """Whether this is the name of an autoencoder's class in diffusers, one that is followed or another."""
    return of.startswith("Autoencoder") or of in ("AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", "VQModel")


OLD_NAMES = {"Transformer2DModel": "DiTTransformer2DModel"}
"""Classes that diffusers reads as another."""

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
