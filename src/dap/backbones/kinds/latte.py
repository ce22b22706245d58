"""Class-conditional Latte (Ma et al. 2024): clips whose frames an image autoencoder encodes one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dap.backbones.cards import Found, image_size
from dap.backbones.kinds.labelled import Labelled
from dap.backbones.modules import PIXELS
from dap.base.errors import DapError


class Latte(Labelled):
    """A `LabelledLattePipeline` as a backbone: noise prediction with linear betas, latents (C, frames, side, side).

    Layers are the block indices "0" … "n−1"; even blocks attend within frames, odd ones across frames. Features are all tokens of
    a block, frame after frame, (B, frames · tokens of a frame, width).

    The network was made for one number of frames and one size, so a card.yaml beside the weights may name these and no others.
    """

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> Latte:
        """The backbone of a `LabelledLattePipeline`.

        Raises:
            DapError: prompts were given, the parts do not fit each other, or a card.yaml names another size or other frames.
        """
        found.without_prompts()
        config = pipe.denoiser.config
        layer = str(len(pipe.denoiser.blocks) // 2)
        card = found.card("latte", size=image_size(config.sample_size, pipe.vae), layer=layer)
        if card.frames not in (None, config.num_frames):
            raise DapError(
                f"The card.yaml of {card.name} says frames: {card.frames}, but these weights make clips of {config.num_frames} "
                "frames. Remove the frames from it."
            )
        names = found.names(pipe, config.num_classes)
        return cls(pipe, class_names=names, card=replace(card, frames=config.num_frames))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return _frame_by_frame(super().encode, images)

    @torch.no_grad()
    def drawn(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draw = super().drawn
        return _frame_by_frame(lambda frames: draw(frames, generator), images)

    def decode_with_graph(self, latents: Tensor) -> Tensor:
        return _frame_by_frame(super().decode_with_graph, latents)

    @property
    def _together(self) -> int:
        """How many frames go through the autoencoder at once."""
        return max(1, PIXELS // self.card.size**2)


def _frame_by_frame(through: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """What a function of images gives for the frames of clips (B, C, frames, h, w), as clips again."""
    return through(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips), -1)).transpose(1, 2)
