"""A Stable Diffusion 1, 2 or XL, or latent diffusion's ImageNet model, in one file, opened as a pipeline without the network.

diffusers' single-file loader renames the tensors of the U-Net and the autoencoder. It would fetch their configuration from the
hub. Here the configuration is read from the shapes of the tensors (`shapes`), so nothing is fetched but a tokenizer that is not
on this machine (`tokenizers`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from dap.backbones.converting.checkpoints import unwrapped
from dap.backbones.converting.encoders import text_encoder
from dap.backbones.converting.latent import LABELS, latent_config, latent_pipeline, quantised_config
from dap.backbones.converting.latent import SCHEDULE as LATENT
from dap.backbones.converting.parts import UNET, VAE, Predicted, Said, averaged, check_betas, converted, under
from dap.backbones.converting.shapes import Unlike, autoencoder_config, shapes_of, unet_config
from dap.backbones.converting.tokenizers import tokenizer_for
from dap.backbones.converting.xl import is_xl, xl_pipeline
from dap.backbones.hub import DTYPES, open_autoencoder
from dap.backbones.known import KINDS
from dap.backbones.strange import refuse_tensors
from dap.base.errors import DapError, first_line
from dap.base.registry import suggest

log = logging.getLogger(__name__)

KIND = KINDS["StableDiffusionPipeline"]

TEXT = "cond_stage_model."
"""What stands before the names of the text encoder's tensors."""

PUBLISHED = {
    r"v1-5-pruned(-emaonly)?(-fp16)?": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    r"v2-1_512-(non)?ema-pruned": "stabilityai/stable-diffusion-2-1-base",
    r"sd_xl_base_1\.0(_0\.9vae)?": "stabilityai/stable-diffusion-xl-base-1.0",
    r"sd_xl_turbo_1\.0(_fp16)?": "stabilityai/sdxl-turbo",
}
"""Names of published files, and the hub ids of the same weights, which are the keys of their cards."""

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""The noise schedule of Stable Diffusion 1 and 2."""
SCALING = 0.18215
"""The factor of the latents of Stable Diffusion 1 and 2."""
SIDE, LARGE, LABELLED = 512, 768, 256
"""The side of the images in px; of a Stable Diffusion 2 that predicts a velocity the second, of latent diffusion the third."""

NOISE, VELOCITY = 0.8, 0.5
"""At the last timestep a sample is almost all noise. A network that predicts noise repeats it: the cosine of the sample and its
output is near 1. A network that predicts a velocity gives about −x_0, which has little to do with the sample. Between these two
cosines nothing can be told."""


def is_single(state: Mapping[Any, Any]) -> bool:
    """Whether these tensors are laid out as those of a Stable Diffusion in one file, or of a model like it."""
    return any(str(name).startswith((UNET, UNET.removeprefix("model."))) for name in state)


def open_single(
    path: Path, found: Mapping[Any, Any], said: Said, *, dtype: str, offline: bool
) -> tuple[Any, str] | None:
    """Open a Stable Diffusion in one file as a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`, or latent diffusion's
    ImageNet model as a `LatentDiffusionPipeline`.

    Args:
        path: the .safetensors or .ckpt, for its name and for what lies beside it.
        found: what the file holds, see `checkpoints.opened`. Where it has moving averages of the U-Net, these are taken.
        said: what the user says of the file.
        dtype: the number format of the weights in memory.
        offline: never ask the network for a tokenizer or an autoencoder.

    Returns:
        The pipeline, and its hub id if the name of the file is that of published weights, else the file's name. None if the
        file holds something else.

    Raises:
        DapError: a part of the pipeline is missing, or the tensors are not
            those of such a model.
    """
    found = unwrapped(found, ("state_dict",))  # under which Lightning keeps the weights
    if not is_single(found):
        return None
    state = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    what = (
        "latent diffusion's ImageNet model"
        if LABELS in state
        else "an SDXL"
        if is_xl(state)
        else "a Stable Diffusion 1 or 2"
    )
    try:
        if LABELS in state:
            pipe = _latent(path, state, said, dtype)
        elif is_xl(state):
            pipe = xl_pipeline(path, state, said, dtype, offline)
        else:
            _refuse_others(path, state)
            pipe = _pipeline(path, state, said, dtype, offline)
    except DapError:
        raise
    except Unlike as error:
        raise DapError(f"{path} is not {what} in one file: {error}.") from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DapError(f"{path} is not {what} in one file: {first_line(error).rstrip('.')}. Fetch it anew.") from error
    published = next((hub for name, hub in PUBLISHED.items() if re.fullmatch(name, path.stem)), None)
    return pipe, published or path.name


def _refuse_others(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse the relatives of Stable Diffusion 1 and 2, in words that say what they are."""
    refuse_tensors(path, state)
    what, instead = None, "Give a Stable Diffusion 1 or 2, or a folder of diffusers."
    if any(name.startswith("conditioner.embedders.") for name in state):
        what = "the refiner of SDXL"
        instead = "Give SDXL's base model, such as sd_xl_base_1.0.safetensors."
    elif any(name.startswith(f"{UNET}label_emb.") for name in state):
        what = "an upscaler or another model that takes more than a prompt"
    elif not any(name.startswith((f"{TEXT}transformer.", f"{TEXT}model.")) for name in state):
        what = "a U-Net without the CLIP text encoder of Stable Diffusion"
        instead = "Give the whole file, in which the names of the text encoder begin with cond_stage_model."
    if what:
        raise DapError(f"{path} is {what}. dap opens Stable Diffusion 1, 2 and XL in one file. {instead}")


def _pipeline(path: Path, state: Mapping[str, Tensor], said: Said, dtype: str, offline: bool) -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    if said.prediction not in (None, *get_args(Predicted)):
        raise DapError(f"There is no prediction {said.prediction!r}. {suggest(said.prediction, get_args(Predicted))}")
    if said.heads is not None:
        raise DapError(f"--heads is not for a Stable Diffusion, which {path} is; leave it out.")
    check_betas(state, SCHEDULE)
    coder = {name: t for name, t in under(state, VAE).items() if not name.startswith("loss.")}
    if said.vae is None and not coder:
        raise DapError(f"{path} holds no autoencoder; give dap convert --vae, such as stabilityai/sd-vae-ft-mse.")
    open_clip = any(name.startswith(f"{TEXT}model.") for name in state)
    if said.vae is None:
        config = autoencoder_config(shapes_of(coder), SCALING, said.size or SIDE)
        vae = converted(AutoencoderKL, coder, VAE, config, dtype, path, KIND)
    else:
        vae = open_autoencoder(said.vae, dtype=dtype, offline=offline)
    own = under(state, f"{TEXT}model." if open_clip else f"{TEXT}transformer.text_model.")
    text = text_encoder(own, DTYPES[dtype], open_clip=open_clip)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if (said.size or SIDE) % factor:
        raise DapError(f"Images of {said.size} px have no whole latents; give a --size that {factor} divides.")
    denoiser = averaged(state)
    config = unet_config(shapes_of(denoiser), (said.size or SIDE) // factor)
    unet = converted(UNet2DConditionModel, denoiser, UNET, config, dtype, path, KIND)
    tokenizer = tokenizer_for(path, said.tokenizer, offline, text.config, open_clip=open_clip)
    prediction = said.prediction or _predicted(path, unet, text, tokenizer, certain=not open_clip)
    if said.size is None and open_clip and prediction == "v_prediction":
        unet.register_to_config(sample_size=LARGE // factor)
    scheduler: Any = DDIMScheduler
    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(
            **SCHEDULE, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        **unused,
    )


def _latent(path: Path, state: Mapping[str, Tensor], said: Said, dtype: str) -> Any:
    from diffusers import UNet2DConditionModel

    if (said.tokenizer, said.vae, said.prediction) != (None, None, None):
        raise DapError(
            f"--tokenizer, --vae and --prediction are not for {path}, which has labels and its own autoencoder."
        )
    check_betas(state, LATENT)
    coder = {name: t for name, t in under(state, VAE).items() if not name.startswith("loss.")}
    factor = 2 ** (len(quantised_config(coder)["block_out_channels"]) - 1)
    denoiser = averaged(state)
    config = latent_config(shapes_of(denoiser), (said.size or LABELLED) // factor, said.heads)
    unet = converted(UNet2DConditionModel, denoiser, UNET, config, dtype, path, KIND)
    return latent_pipeline(path, unet, state, coder, DTYPES[dtype])


@torch.no_grad()
def _predicted(path: Path, unet: Any, text: Any, tokenizer: Any, *, certain: bool) -> Predicted:
    """What the U-Net predicts, told by its output at the last timestep, for noise and the empty prompt.

    Args:
        certain: whether all published weights of this kind predict noise. Then an output that looks otherwise is a warning.

    Raises:
        DapError: the output tells nothing, and nothing else does.
    """
    how = {"padding": "max_length", "max_length": tokenizer.model_max_length, "return_tensors": "pt"}
    states = text(tokenizer("", **how).input_ids)[0]
    side = unet.config.sample_size
    noise = torch.randn(1, unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    output = unet(noise.to(unet.dtype), SCHEDULE["num_train_timesteps"] - 1, states.to(unet.dtype)).sample.float()
    if output.shape != noise.shape:
        return "epsilon"  # what takes such a U-Net says what is wrong with it
    return told(torch.cosine_similarity(output.flatten(), noise.flatten(), dim=0).item(), path, certain=certain)


def told(cosine: float, path: Path, *, certain: bool) -> Predicted:
    """What a network predicts whose output has this cosine with the noise that it was given.

    Raises:
        DapError: the cosine is between those of the two kinds, or not a number, and it is not certain that noise is predicted.
    """
    if certain:
        if not cosine >= VELOCITY:
            log.warning(
                "The U-Net of %s does not repeat noise at the last timestep, as one that predicts noise does. If it was trained "
                "to predict a velocity, write its folder with dap convert --prediction v_prediction.",
                path.name,
            )
        return "epsilon"
    if cosine > NOISE:
        return "epsilon"
    if cosine < VELOCITY:
        return "v_prediction"
    raise DapError(
        f"{path} does not say whether its U-Net predicts noise or a velocity, and its output at the last timestep does not "
        "tell; give dap convert --prediction epsilon or v_prediction."
    )
