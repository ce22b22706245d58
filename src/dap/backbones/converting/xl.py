"""SDXL in one file (Podell et al. 2024) as a pipeline: two text encoders, and a U-Net that is told sizes and a pooled text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from dap.backbones.converting.encoders import text_encoder
from dap.backbones.converting.parts import UNET, VAE, Predicted, Said, averaged, check_betas, converted, under
from dap.backbones.converting.shapes import Unlike, autoencoder_config, shapes_of, unet_config
from dap.backbones.converting.tokenizers import tokenizer_for
from dap.backbones.hub import DTYPES, open_autoencoder
from dap.backbones.known import KINDS
from dap.base.errors import DapError
from dap.base.registry import suggest

FIRST, SECOND = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
"""What stands before the names of the tensors of OpenAI's text encoder, and of OpenCLIP's."""

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""The noise schedule of its authors' training."""
SCALING, SIDE = 0.13025, 1024
"""The factor of its latents, and the side of its images in px."""
SIZES = 6
"""How many numbers the U-Net is told beside the pooled text: two sizes and a corner."""


def is_xl(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of an SDXL in one file."""
    return any(name.startswith(SECOND) for name in state)


def xl_pipeline(path: Path, state: Mapping[str, Tensor], said: Said, dtype: str, offline: bool) -> Any:
    """The `StableDiffusionXLPipeline` of an SDXL in one file.

    Args:
        path: the file, for messages.
        state: all its tensors.
        said: what the user says of it. Without a word its U-Net predicts noise.
        dtype: the number format of the weights.
        offline: never ask the network for a tokenizer or an autoencoder.

    Raises:
        Unlike: the tensors are not those of an SDXL.
        DapError: there is no tokenizer, or the file says that it was trained in a way that is not followed.
    """
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    kind, format = KINDS["StableDiffusionXLPipeline"], DTYPES[dtype]
    if said.prediction not in (None, *get_args(Predicted)):
        raise DapError(f"There is no prediction {said.prediction!r}. {suggest(said.prediction, get_args(Predicted))}")
    if said.heads is not None:
        raise DapError(f"--heads is not for an SDXL, which {path} is; leave it out.")
    if "ztsnr" in state or "edm_mean" in state:
        raise DapError(
            f"{path} is an SDXL that was trained on other noise levels (zero terminal signal, or EDM's), which dap does not "
            "sample. Give an SDXL such as sd_xl_base_1.0.safetensors."
        )
    check_betas(state, SCHEDULE)
    side, coder = said.size or SIDE, {name: t for name, t in under(state, VAE).items() if not name.startswith("loss.")}
    if said.vae is not None:
        vae = open_autoencoder(said.vae, dtype=dtype, offline=offline)
    else:
        config = autoencoder_config(shapes_of(coder), SCALING, side)
        vae = converted(AutoencoderKL, coder, VAE, config, dtype, path, kind)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if side % factor:
        raise DapError(f"Images of {side} px have no whole latents; give a --size that {factor} divides.")
    first = text_encoder(under(state, FIRST), format, open_clip=False)
    second = text_encoder(under(state, SECOND), format, open_clip=True, projected=True)
    denoiser = averaged(state)
    fields = xl_config(shapes_of(denoiser), side // factor, second.config.projection_dim)
    unet = converted(UNet2DConditionModel, denoiser, UNET, fields, dtype, path, kind)
    prediction = said.prediction or ("v_prediction" if "v_pred" in state else "epsilon")
    scheduler: Any = EulerDiscreteScheduler
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer_for(path, said.tokenizer, offline, first.config, open_clip=False),
        tokenizer_2=tokenizer_for(path, said.tokenizer, offline, second.config, open_clip=True),
        unet=unet,
        scheduler=scheduler(**SCHEDULE, prediction_type=prediction, steps_offset=1),
        add_watermarker=False,
    )


def xl_config(shapes: Mapping[str, tuple[int, ...]], side: int, pooled: int) -> dict[str, Any]:
    """The fields of the U-Net.

    Args:
        shapes: the shapes of its tensors.
        side: the side of its latents.
        pooled: the width of the pooled text.

    Raises:
        Unlike: it is told nothing beside the text.
    """
    told = shapes.get("label_emb.0.0.weight", ())
    if len(told) != 2 or told[1] <= pooled or (told[1] - pooled) % SIZES:
        raise Unlike("its U-Net is not told a pooled text and sizes")
    return {
        **unet_config(shapes, side),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (told[1] - pooled) // SIZES,
        "projection_class_embeddings_input_dim": told[1],
    }
