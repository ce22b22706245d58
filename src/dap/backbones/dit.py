"""Class-conditional DiT (Peebles & Xie 2023) from any diffusers `DiTPipeline`: the hub's DiT-XL/2 and the starter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dap import imagenet
from dap.backbones.base import Card, Prediction
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import Time, VariancePreserving
from dap.errors import DapError


class DiT(ModuleBackbone):
    """A diffusers DiT with its VAE.

    Layers are the block indices "0" … "n−1"; the features are the block's output tokens (B, tokens, width).

    Args:
        transformer: `DiTTransformer2DModel`; its last embedding row is the null label.
        vae: `AutoencoderKL`.
        schedule: of training; DiT's by default, 1000 linear betas from 1e-4 to 0.02.
        class_names: the labels of the transformer, in order.
        card: what belongs to the weights.

    Raises:
        DapError: not one class name for each label of the transformer.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        *,
        schedule: VariancePreserving | None = None,
        class_names: Sequence[str],
        card: Card,
    ) -> None:
        config = transformer.config
        if len(class_names) != config.num_embeds_ada_norm:
            raise DapError(
                f"{card.name} has {config.num_embeds_ada_norm} labels but {len(class_names)} class names; "
                "put the right list into classes.json beside the weights."
            )
        super().__init__(transformer, vae)
        self.transformer = transformer
        self.card = card
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.layers = tuple(str(i) for i in range(len(transformer.transformer_blocks)))
        self.class_names = tuple(class_names)
        self.schedule = schedule or VariancePreserving.from_betas(1e-4, 0.02, 1000)
        self.learned_variance = config.out_channels == 2 * config.in_channels
        if card.frequency_shift is not None:
            for block in transformer.transformer_blocks:
                block.norm1.emb.time_proj.downscale_freq_shift = card.frequency_shift

    def condition(self, class_names: Sequence[str]) -> Tensor:
        labels = label_lookup(self.class_names)
        unknown = [n for n in class_names if n.lower() not in labels]
        if unknown:
            known = ", ".join(self.class_names[:10]) + (", …" if len(self.class_names) > 10 else "")
            data = ", ".join(dict.fromkeys(class_names[:10])) + (", …" if len(class_names) > 10 else "")
            raise DapError(
                f"{self.card.name} was not trained on {', '.join(map(repr, unknown[:5]))}. The data's classes: {data}. "
                f"The backbone's {len(self.class_names)}: {known}. Rename the class folders to the backbone's names, or "
                "choose classes with --classes."
            )
        for name in class_names:
            if len(labels[name.lower()]) > 1:
                raise DapError(
                    f"{name!r} is the name of several labels of {self.card.name}: {labels[name.lower()]}. "
                    "Tell them apart in classes.json beside the weights, or name ImageNet's folders by WordNet id."
                )
        return torch.tensor([labels[n.lower()][0] for n in class_names], device=self.device)

    def null(self, n: int) -> Tensor:
        return torch.full((n,), self.transformer.config.num_embeds_ada_norm, device=self.device)

    def module(self, layer: str) -> nn.Module:
        return self.transformer.transformer_blocks[int(layer)]

    def run(self, x: Tensor, t: Time, condition: Tensor) -> Tensor:
        timestep = torch.full((len(x),), t, device=x.device)
        return self.transformer(x.to(self.transformer.dtype), timestep=timestep, class_labels=condition).sample.float()

    def read(self, x: Tensor, t: Time, output: Tensor) -> Prediction:
        eps, variance = output.chunk(2, dim=1) if self.learned_variance else (output, None)
        return Prediction(eps, variance, None)


def label_lookup(class_names: Sequence[str]) -> dict[str, list[int]]:
    """Labels by lower-case name: those of that full name, else those that have it among comma-separated synonyms.

    ImageNet has full names that two labels share (crane, the bird and the machine), hence the lists. A backbone of its
    thousand classes, recognised by their names in order, also knows them by WordNet id.
    """
    lookup: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        lookup.setdefault(name.lower(), []).append(label)
    synonyms: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        for synonym in dict.fromkeys(part.strip().lower() for part in name.split(",")):
            synonyms.setdefault(synonym, []).append(label)
    found = synonyms | lookup
    if is_imagenet(class_names):
        found |= {wnid: [label] for wnid, label in imagenet.indices().items()}
    return found


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether these are ImageNet's thousand classes in sorted order, by WordNet id or by first name of nearly all of them.

    Lists in use differ in the wording of a few names, so nine in ten is enough; the order is what matters.
    """
    known = imagenet.names()
    if len(class_names) != len(known):
        return False
    same = 0
    for mine, (wnid, theirs) in zip(class_names, known.items(), strict=True):
        mine_all = {part.strip().lower() for part in mine.split(",")}
        same += bool(mine_all & {wnid, *(part.strip().lower() for part in theirs.split(","))})
    return same >= 900
