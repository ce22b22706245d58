"""What the configuration files of a pipeline may say: each field is honoured or refused before anything runs.

A field is honoured where a prediction of `dap` follows it as diffusers does: the networks are diffusers' own and follow every
field of theirs, and `dap` reads the noise levels from the scheduler. A field is indifferent where `dap` has its own way, such as
its solvers and its grids of timesteps. A field that is neither is refused, unless it has diffusers' default or is switched off.
So a field that a later version of diffusers brings is never ignored in silence.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError

from dap.base.documents import read_json
from dap.base.errors import DapError
from dap.base.fields import Text
from dap.base.parsing import shown

Whole = Annotated[int, Field(ge=1, le=2**20), Strict()]
"""A size or a number of things."""
Position = Annotated[int, Field(ge=0, le=2**20), Strict()]
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False), Strict()]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), Strict()]
Beta = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), Strict()]
Flag = Annotated[bool, Strict()]
Words = list[Text] | tuple[Text, ...]
Wholes = Whole | list[Whole] | tuple[Whole, ...]
Deep = Wholes | list[Wholes] | tuple[Wholes, ...]
Off = Literal[None, False]
"""A field that must be switched off."""
Factor = Literal[3]

Table = Mapping[str, Any]
"""By the name of a field the type of the values that it may have."""

_BETAS: Table = {
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
_FLOW: Table = {
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
    "algorithm_type clip_sample_range disable_corrector dynamic_thresholding_ratio euler_at_final final_sigmas_type "
    "interpolation_type lambda_min_clipped lower_order_final predict_x0 sample_max_value set_alpha_to_one shift_terminal "
    "sigma_max sigma_min skip_prk_steps solver_order solver_p solver_type steps_offset stochastic_sampling timestep_spacing "
    "use_beta_sigmas use_exponential_sigmas use_karras_sigmas use_lu_lambdas variance_type "
    "flow_shift time_shift_type base_shift max_shift base_image_seq_len max_image_seq_len".split()
)
"""Fields of schedulers that are indifferent: they choose a solver or a grid of timesteps, and `dap` has its own of both."""

_PLAIN = (
    "DDIMScheduler DDIMParallelScheduler DDPMScheduler DDPMParallelScheduler PNDMScheduler LMSDiscreteScheduler "
    "EulerDiscreteScheduler EulerAncestralDiscreteScheduler HeunDiscreteScheduler KDPM2DiscreteScheduler "
    "KDPM2AncestralDiscreteScheduler DPMSolverSDEScheduler"
).split()
_BOTH = (
    "DPMSolverMultistepScheduler DPMSolverSinglestepScheduler UniPCMultistepScheduler DEISMultistepScheduler".split()
)
_FLOWS = "FlowMatchEulerDiscreteScheduler FlowMatchHeunDiscreteScheduler".split()

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
        "activation_fn": Text,
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
        "mid_block_type": Text | None,
        "up_block_types": Words,
        "only_cross_attention": Flag | list[Flag] | tuple[Flag, ...],
        "block_out_channels": list[Whole] | tuple[Whole, ...],
        "layers_per_block": Wholes,
        "downsample_padding": Position,
        "mid_block_scale_factor": Positive,
        "dropout": Annotated[float, Field(ge=0, lt=1), Strict()],
        "act_fn": Text,
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
        "resnet_time_scale_shift": Text,
        "resnet_skip_time_act": Flag,
        "resnet_out_scale_factor": Positive,
        "time_embedding_type": Literal["positional", "fourier"],
        "time_embedding_dim": Whole | None,
        "time_embedding_act_fn": Text | None,
        "timestep_post_act": Text | None,
        "conv_in_kernel": Whole,
        "conv_out_kernel": Whole,
        "attention_type": Literal["default"],
        "mid_block_only_cross_attention": Flag | None,
        "cross_attention_norm": Text | None,
        # These three say how a condition is added that is refused above.
        "addition_time_embed_dim": Any,
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
        "qk_norm": Text | None,
    },
    "AutoencoderKL": {
        "in_channels": Factor,
        "out_channels": Factor,
        "down_block_types": Words,
        "up_block_types": Words,
        "block_out_channels": list[Whole] | tuple[Whole, ...],
        "layers_per_block": Whole,
        "act_fn": Text,
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
        "encoder_block_out_channels": list[Whole] | tuple[Whole, ...],
        "decoder_block_out_channels": list[Whole] | tuple[Whole, ...],
        "num_encoder_blocks": list[Whole] | tuple[Whole, ...],
        "num_decoder_blocks": list[Whole] | tuple[Whole, ...],
        "act_fn": Text,
        "upsample_fn": Text,
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

_SWITCHED_OFF: tuple[Any, ...] = (None, False, 0, "", [], {}, "default")

_OLD_NAMES = {"Transformer2DModel": "DiTTransformer2DModel"}
"""Classes that diffusers reads as another."""

PIPELINES = {"DiTPipeline": "dit", "StableDiffusionPipeline": "unet", "StableDiffusion3Pipeline": "mmdit"}
"""Pipelines whose configuration is known, by the kind of their backbone."""


def check_fields(values: Mapping[str, Any], of: str, kind: str, where: Path | str) -> None:
    """Check the configuration of one part of a pipeline.

    Args:
        values: the fields and their values, of a file or of a part in memory.
        of: the name of the part's class in diffusers. Parts of other libraries are not checked.
        kind: "dit", "unet" or "mmdit".
        where: the file, for the message.

    Raises:
        DapError: a field has a value that dap neither follows nor may ignore, or the class of the part is not supported.
    """
    of = _OLD_NAMES.get(of, of)
    if of.endswith("Scheduler"):
        table, indifferent = _scheduler(values, of, kind, where), OWN_WAY
    elif of.startswith("Autoencoder") or of in NETWORKS:
        if of not in NETWORKS:
            raise DapError(f"{shown(where)}: the autoencoder is {of}; AutoencoderKL and AutoencoderTiny are supported.")
        table, indifferent = NETWORKS[of], frozenset[str]()
    else:
        return
    defaults = _defaults(of)
    for name, value in values.items():
        if name.startswith("_") or name in indifferent:
            continue
        if name not in table:
            if any(value is off or value == off for off in _SWITCHED_OFF):
                continue
            if name in defaults and value == defaults[name]:
                continue
            raise DapError(
                f"{shown(where)}: {shown(name)} is {_short(value)}, and dap does not know what this field decides. "
                "Remove it if the weights were trained without it."
            )
        if problem := _problem(table[name], value):
            raise DapError(f"{shown(where)}: {name} is {_short(value)}; {problem}. {WAYS_OUT.get(name, '')}".rstrip())
    _together(values, of, kind, where)


def _scheduler(values: Mapping[str, Any], of: str, kind: str, where: Path | str) -> Table:
    flow = of in _FLOWS or (of in _BOTH and values.get("use_flow_sigmas") is True)
    if of not in (*_PLAIN, *_BOTH, *_FLOWS):
        known = ", ".join(_FLOWS if kind == "mmdit" else ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler"))
        raise DapError(
            f"{shown(where)}: the scheduler is {of}, whose noise levels dap cannot read. Save the pipeline with the "
            f"scheduler that its weights were trained with, such as {known}."
        )
    if kind == "mmdit" and not flow:
        raise DapError(
            f"{shown(where)}: {of} has no flow's noise levels, but a Stable Diffusion 3 is a flow. Use "
            "FlowMatchEulerDiscreteScheduler, or set use_flow_sigmas to true and prediction_type to flow_prediction there."
        )
    if kind != "mmdit" and flow:
        raise DapError(
            f"{shown(where)}: {of} has the noise levels of a flow, but dap samples this kind of pipeline with betas. "
            "If the weights were trained on a flow (SiT), they are not supported; else save the pipeline with a DDIMScheduler."
        )
    if not flow:
        return _BETAS
    # A scheduler of both families has betas too, which it does not use on a flow.
    unused = dict.fromkeys(("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"), Any)
    return _FLOW if of in _FLOWS else {**unused, **_FLOW}


def _together(values: Mapping[str, Any], of: str, kind: str, where: Path | str) -> None:
    """What two fields say together, and what one says to a kind of pipeline."""
    side = values.get("sample_size")
    if of == "UNet2DConditionModel" and isinstance(side, (list, tuple)) and (len(side) != 2 or side[0] != side[1]):
        raise DapError(
            f"{shown(where)}: sample_size is {_short(side)}; dap makes square images. {WAYS_OUT['sample_size']}"
        )
    betas, steps = values.get("trained_betas"), values.get("num_train_timesteps", 1000)
    if betas and kind != "mmdit" and len(betas) != steps:
        raise DapError(f"{shown(where)}: there are {len(betas)} trained_betas but num_train_timesteps is {steps}.")
    start, end = values.get("beta_start"), values.get("beta_end")
    if start is not None and end is not None and kind != "mmdit" and start > end:
        raise DapError(f"{shown(where)}: beta_start is {start} and beta_end is {end}; betas rise.")
    if of == "AutoencoderKL" and kind != "mmdit" and values.get("shift_factor"):
        raise DapError(f"{shown(where)}: shift_factor is {_short(values['shift_factor'])}; {WAYS_OUT['shift_factor']}")
    if values.get("use_flow_sigmas") and values.get("prediction_type") != "flow_prediction":
        raise DapError(
            f"{shown(where)}: prediction_type is {_short(values.get('prediction_type'))}; with use_flow_sigmas it should be "
            "flow_prediction, or diffusers reads the velocity as something else."
        )


def check_folder(folder: Path, index: Mapping[str, Any]) -> None:
    """Check all configuration files of a pipeline's folder, before diffusers reads them.

    Args:
        folder: the folder.
        index: its `model_index.json`.

    Raises:
        DapError: a file is no JSON object, or `check_fields` refuses a field.
    """
    kind = PIPELINES.get(str(index.get("_class_name")), "")
    for part, said in index.items():
        if not isinstance(said, list) or part.startswith("_"):
            continue
        library, of = (*said, None, None)[:2]
        for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            if of is not None and (file := folder / part / name).is_file():
                values = read_json(file, dict[str, Any])
                if kind and library == "diffusers":
                    check_fields(values, str(of), kind, file)
                elif library == "transformers":
                    _check_text(values, file)


def check_pipeline(pipe: Any, kind: str, folder: Path | None) -> None:
    """Check the configuration of a pipeline in memory.

    Raises:
        DapError: `check_fields` refuses a field.
    """
    for part, network in pipe.components.items():
        config = getattr(network, "config", None)
        if isinstance(config, Mapping):
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            where = f"the {name} of the {part}" if folder is None else folder / part / name
            check_fields(config, type(network).__name__, kind, where)


_TEXT: Table = dict.fromkeys(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings vocab_size d_model d_ff d_kv "
    "num_layers num_heads".split(),
    Whole,
)


def _check_text(values: Mapping[str, Any], where: Path) -> None:
    """Sizes of a text encoder or tokenizer. Its own library follows all other fields, as it does for diffusers."""
    for name, value in values.items():
        if name in _TEXT and (problem := _problem(_TEXT[name], value)):
            raise DapError(f"{shown(where)}: {name} is {_short(value)}; {problem}.")
        if name == "model_max_length" and not (isinstance(value, (int, float)) and value >= 3):
            raise DapError(f"{shown(where)}: {name} is {_short(value)}; it should be a whole number, such as 77.")


_SAID = {"literal_error": "it should be {expected}", "none_required": "it should be null"}


def _problem(wanted: Any, value: Any) -> str | None:
    """What is wrong with the value of a field, or None."""
    if wanted is Any:
        return None
    try:
        TypeAdapter(wanted, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        if wanted is Off:
            return "it should be switched off, null or false"
        found = error.errors(include_url=False)[0]
        return _SAID.get(found["type"], found["msg"][:1].lower() + found["msg"][1:]).format(**found.get("ctx", {}))
    return None


_NO_MATTER = frozenset("architectures dtype force_upcast torch_dtype transformers_version".split())
"""Fields that decide no prediction: who wrote the file, and the number format, which the weights themselves show."""


def deciding(network: Any) -> dict[str, Any]:
    """The fields of a network's configuration that decide what its weights compute, as JSON values.

    A field that has its default is left out, so that a later version with more fields says the same of old weights.

    Args:
        network: a network of diffusers or transformers. Any other has no such fields.
    """
    config = getattr(network, "config", None)
    if isinstance(config, Mapping):
        values = _plain(dict(config))
        defaults = _plain(_defaults(type(network).__name__))
        values = {name: value for name, value in values.items() if name in defaults and defaults[name] != value}
    else:
        values = _plain(config.to_diff_dict()) if hasattr(config, "to_diff_dict") else {}
    return {name: value for name, value in values.items() if not name.startswith("_") and name not in _NO_MATTER}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, sort_keys=True, default=str))


@cache
def _defaults(of: str) -> dict[str, Any]:
    import diffusers

    found = getattr(diffusers, of, None)
    parameters = inspect.signature(found.__init__).parameters if found is not None else {}
    return {name: parameter.default for name, parameter in parameters.items()}


def _short(value: Any) -> str:
    text = shown(repr(value))
    return text if len(text) <= 60 else text[:60] + "…"
