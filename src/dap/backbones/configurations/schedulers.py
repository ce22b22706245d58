"""Schedulers of diffusers: what they may say of the noise levels, and which fields are indifferent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from dap.backbones.configurations.types import Beta, Flag, Number, Off, Positive, Table, Whole

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
SHIFTED: Table = {**BETAS, "rescale_betas_zero_snr": Literal[True], "snr_shift_scale": Positive}
"""Fields of CogVideoX's schedulers."""
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
    "shift_terminal": Annotated[float | None, Field(ge=0, lt=1), Strict()],
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
CONSISTENT: Table = {**BETAS, "original_inference_steps": Literal[50], "timestep_scaling": Literal[10]}
"""Fields of `LCMScheduler`."""
SHIFTING = ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"]
BOTH = [
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
]
FLOWS = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
