"""Diffusion in pixel space (Ho et al. 2020; Dhariwal & Nichol 2021) by diffusers' `UNet2DModel`, with classes or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.cards import Found
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import Time, VariancePreserving
from dap.base.errors import DapError


class Pixels(ModuleBackbone):
    """A `DDPMPipeline` or `DDIMPipeline` as a backbone: a U-Net that denoises the pixels themselves, in [−1, 1].

    Layers are "down.0" …, "mid" and "up.0" … in the order in which the U-Net runs them. Features are the output of a block, one
    token for each place of its grid, (B, h·w, channels).

    A U-Net without `num_class_embeds` knows no classes: every class name is the same condition. One with `num_class_embeds`
    takes labels. If it has one more embedding than there are class names, the last one stands for "no class", and
    classifier-free guidance is possible.

    Args:
        pipe: the pipeline; its `unet` is a `UNet2DModel`.
        schedule: the noise schedule of the training.
        class_names: the names of the labels, in label order; empty for a U-Net without classes.
        card: the facts that belong to the weights.

    Raises:
        DapError: the class names do not fit the table of labels, or the U-Net gives other channels than it takes.
    """

    def __init__(self, pipe: Any, *, schedule: VariancePreserving, class_names: Sequence[str] = (), card: Card) -> None:
        unet, said = pipe.unet, pipe.scheduler.config
        config, rows = unet.config, unet.config.num_class_embeds or 0
        if len(class_names) not in (rows, max(rows - 1, 0)):
            raise DapError(
                f"{card.name} has a table of {rows} labels but {len(class_names)} class names; put the right list into "
                f"classes.json beside the weights: {rows} names, or {rows - 1} if the last label stands for no class."
            )
        self._by_layer: dict[str, nn.Module] = {f"down.{i}": block for i, block in enumerate(unet.down_blocks)}
        if unet.mid_block is not None:
            self._by_layer["mid"] = unet.mid_block
        self._by_layer |= {f"up.{i}": block for i, block in enumerate(unet.up_blocks)}
        super().__init__(
            unet,
            card=card,
            schedule=schedule,
            latent_shape=(config.in_channels, card.size, card.size),
            layers=tuple(self._by_layer),
            class_names=class_names,
            predicts=said.get("prediction_type", "epsilon"),
            learned_variance=config.out_channels == 2 * config.in_channels,
        )
        self.clip = said.get("clip_sample_range", 1.0) if said.get("clip_sample") else None
        self.unconditional = not rows
        self.classifier_free = rows == len(class_names) + 1

    @classmethod
    def from_pipeline(cls, pipe: Any, found: Found) -> Pixels:
        """The backbone of a `DDPMPipeline` or `DDIMPipeline`.

        Raises:
            DapError: prompts were given, class names for a U-Net that knows no classes, or the schedule is not supported.
        """
        found.without_prompts()
        config = pipe.unet.config
        side = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
        layer = "mid" if pipe.unet.mid_block is not None else f"down.{len(pipe.unet.down_blocks) - 1}"
        names = found.names(pipe, config.num_class_embeds) if config.num_class_embeds else found.without_classes()
        schedule = VariancePreserving.from_config(pipe.scheduler.config)
        return cls(pipe, schedule=schedule, class_names=names, card=found.card("pixels", size=side, layer=layer))

    def module(self, layer: str) -> nn.Module:
        return self._by_layer[layer]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        timestep = torch.as_tensor(t, device=x.device).expand(len(x))
        x = x.to(self.denoiser.dtype)
        if self.unconditional:
            return self.denoiser(x, timestep).sample.float()
        with blind(self.denoiser.class_embedding, condition) as labels:
            return self.denoiser(x, timestep, labels).sample.float()


@contextmanager
def blind(table: nn.Embedding, condition: Tensor) -> Iterator[Tensor]:
    """Labels for a network whose table of embeddings may lack a row for "no class".

    While the block runs, a null condition that has no row of its own gets the mean of all rows. This favours no class, but
    the weights have never seen it, so classifier-free guidance needs a row (`classifier_free`).

    Args:
        table: the table, a part of the network.
        condition: labels (B,), of `condition` or `null`.
    """
    beyond = condition >= table.num_embeddings
    if not beyond.any():
        yield condition
        return

    def mean(module: nn.Module, args: Any, rows: Tensor) -> Tensor:
        return torch.where(beyond[:, None], table.weight.mean(0), rows)

    handle = table.register_forward_hook(mean)
    try:
        yield condition.clamp(max=table.num_embeddings - 1)
    finally:
        handle.remove()
