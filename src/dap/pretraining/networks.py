"""How large the networks of a backbone are, and the networks themselves, with first weights that follow from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from dap.base.alone import alone
from dap.base.fields import Frames, FromFile

Kind = Literal["dit", "unet"]
"""A DiT that is conditioned on labels, or the U-Net of a small Stable Diffusion, which is conditioned on prompts."""

HEAD = 32
"""The width of a head of attention."""

Whole = Annotated[int, Field(ge=1, le=2**16)]


class Sizes(FromFile, frozen=True):
    """How large the images and the networks are.

    Attributes:
        kind: which denoiser.
        size: the side of the images, in px.
        frames: how many frames a clip has; None for images. A DiT of clips is a Latte.
        levels: the channels of the autoencoder at each level. Each level except the last halves the side.
        layers: the residual layers of a level of the autoencoder.
        latent_channels: the channels of a latent.
        width: the width of a DiT, or the channels of the first level of a U-Net; a multiple of 32.
        depth: the number of blocks of a DiT. A U-Net has three levels and does not use this field.
        patch: the side of a DiT's patches, in latent pixels. A U-Net does not use this field.
        batch_images: the number of images in a step of the autoencoder.
        batch_latents: the number of latents in a step of the denoiser.
        start: the first weights of the autoencoder: those of the embedded starter, or random ones.
    """

    kind: Kind = "dit"
    size: Annotated[int, Field(ge=1, le=2048)]
    frames: Frames | None = None
    levels: Annotated[list[Whole], Field(min_length=1, max_length=8)]
    layers: Annotated[int, Field(ge=1, le=8)] = 1
    latent_channels: Whole = 4
    width: Whole
    depth: Whole
    patch: Whole = 2
    batch_images: Whole = 32
    batch_latents: Whole = 64
    start: Literal["starter", "nothing"] = "nothing"

    @property
    def latent_side(self) -> int:
        """The side of a latent."""
        return self.size >> (len(self.levels) - 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """First weights that the seed decides. torch's own generator is as before when the block ends."""
    with alone(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def autoencoder(sizes: Sizes, seed: int) -> Any:
    """An `AutoencoderKL` of diffusers.

    It starts from the starter's weights where `sizes` says so. They were trained on grey images of 32 px. On colour images of
    64 px 1,600 images bring them to 20.3 dB, and random weights to 14.9 dB at the same cost.
    """
    import diffusers

    if sizes.start == "starter":
        from dap.starter import PIPELINE

        with alone():
            known: Any = diffusers.AutoencoderKL.from_pretrained(PIPELINE / "vae", dtype=torch.float32)
        known.register_to_config(sample_size=sizes.size, scaling_factor=1.0)
        return known.requires_grad_(True)
    build: Any = diffusers.AutoencoderKL  # its annotations say one-element tuples
    with seeded(seed):
        return build(
            down_block_types=("DownEncoderBlock2D",) * len(sizes.levels),
            up_block_types=("UpDecoderBlock2D",) * len(sizes.levels),
            block_out_channels=tuple(sizes.levels),
            layers_per_block=sizes.layers,
            latent_channels=sizes.latent_channels,
            norm_num_groups=min(8, *sizes.levels),
            sample_size=sizes.size,
        )


def transformer(sizes: Sizes, classes: int, seed: int) -> Any:
    """A `DiTTransformer2DModel` of diffusers, which predicts noise and the range of its variance, as DiT-XL/2 does.

    The network stays in evaluation mode. In training mode each block would drop labels in its own label embedding; here the null
    label is drawn once for an image, and all blocks see it.
    """
    from diffusers import DiTTransformer2DModel

    with seeded(seed):
        return DiTTransformer2DModel(
            num_attention_heads=sizes.width // HEAD,
            attention_head_dim=HEAD,
            in_channels=sizes.latent_channels,
            out_channels=2 * sizes.latent_channels,
            num_layers=sizes.depth,
            sample_size=sizes.latent_side,
            patch_size=sizes.patch,
            num_embeds_ada_norm=classes,
            norm_num_groups=32,
        ).eval()


def latte(sizes: Sizes, classes: int, seed: int) -> Any:
    """A Latte of `dap.networks`, which predicts noise and the range of its variance. It begins as its authors' (adaLN-Zero): no
    block adds anything, and the output is zero. The tables of places and frames do not learn."""
    from dap.networks.latte import LabelledLatteTransformer3DModel

    with seeded(seed):
        made = LabelledLatteTransformer3DModel(
            sample_size=sizes.latent_side,
            num_frames=sizes.frames or 1,
            patch_size=sizes.patch,
            in_channels=sizes.latent_channels,
            out_channels=2 * sizes.latent_channels,
            hidden_size=sizes.width,
            num_layers=sizes.depth,
            num_attention_heads=sizes.width // HEAD,
            intermediate_size=4 * sizes.width,
            num_classes=classes,
        ).eval()
        made.zero()
    return made


def labelled(sizes: Sizes, classes: int, seed: int) -> Any:
    """The denoiser of images or clips that is told labels."""
    return (transformer if sizes.frames is None else latte)(sizes, classes, seed)


def unet(sizes: Sizes, context: int, seed: int) -> Any:
    """A `UNet2DConditionModel` of diffusers, which predicts noise. It has three levels, with attention in the inner two.

    Args:
        sizes: of its fields, `width` is the number of channels of the first level; the inner levels have 2 and 2.5 times as many.
        context: the width of the encoded prompts.
        seed: decides the first weights.
    """
    from diffusers import UNet2DConditionModel

    build: Any = UNet2DConditionModel  # its annotations say one-element tuples
    channels = (sizes.width, 2 * sizes.width, 5 * sizes.width // 2)
    with seeded(seed):
        return build(
            sample_size=sizes.latent_side,
            in_channels=sizes.latent_channels,
            out_channels=sizes.latent_channels,
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=context,
            attention_head_dim=tuple(number // HEAD for number in channels),  # diffusers' name for the number of heads
            norm_num_groups=16,
        ).eval()
