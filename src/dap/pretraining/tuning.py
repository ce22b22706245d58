"""Tuning a backbone that somebody trained on much data: LoRA on a Stable Diffusion's U-Net, DiffFit on a DiT with new labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dap import imagenet
from dap.backbones.finetune import check_predicts_noise, light, tuned
from dap.backbones.hub import formats_of
from dap.backbones.kinds.dit import DiT
from dap.backbones.kinds.unet import UNet
from dap.base.errors import DapError
from dap.pretraining.denoisers import Learner
from dap.pretraining.networks import seeded

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
"""The layers of a U-Net that get LoRA's matrices: those of all attention (Hu et al. 2022)."""


def check_tunable(backbone: Any) -> None:
    """Check that a backbone can be tuned, before any work.

    Raises:
        DapError: it is of another kind, does not predict noise, was distilled to few steps, has an autoencoder without a
            distribution of latents, or peft is not installed.
    """
    name = backbone.card.name
    if not isinstance(backbone, (DiT, UNet)):
        raise DapError(f"{name} is neither a DiT nor a Stable Diffusion 1, 2 or XL, which are what dap can tune.")
    check_predicts_noise(backbone, "dap tune-backbone")
    if type(backbone.vae).__name__ != "AutoencoderKL":
        raise DapError(
            f"The autoencoder of {name} is an {type(backbone.vae).__name__}, and dap tune-backbone needs an AutoencoderKL; take "
            "a backbone that has one."
        )
    if isinstance(backbone, UNet):
        from importlib.util import find_spec

        if find_spec("peft") is None:
            raise DapError("Tuning a Stable Diffusion needs peft; pip install 'diffusion-as-priors[tune]'.")


class PromptTuner(Learner):
    """A Stable Diffusion whose U-Net learns LoRA's matrices: W + B A with B (m, r) and A (r, n), where B is 0 at the start.

    Class names become prompts by the template of the card.

    Args:
        pipe: the pipeline, which is changed.
        backbone: the pipeline as a backbone.
        class_names: the names of the classes.
        rank: r.
        seed: decides A.
        formats: the number format of the weights of each part that is written, by the part's name.
    """

    peak = 2e-4

    def __init__(
        self,
        pipe: Any,
        backbone: UNet,
        class_names: Sequence[str],
        rank: int,
        seed: int,
        formats: Mapping[str, torch.dtype],
    ) -> None:
        from peft import LoraConfig

        self._formats = formats
        self._pipe, self.backbone, self.module = pipe, backbone, backbone.denoiser
        self._rows = backbone.condition(class_names)
        self.null = backbone.prompt([""])
        with seeded(seed):
            config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION)
            backbone.denoiser.add_adapter(config)
        for name, parameter in backbone.denoiser.named_parameters():
            parameter.requires_grad_("lora_" in name)

    @property
    def class_names(self) -> None:
        return None

    def conditions(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return self._rows[labels]

    def pipeline(self, vae: Any) -> Any:
        del vae
        unet: Any = self.module
        unet.fuse_lora()
        unet.unload_lora()
        return _as_source(self._pipe, self._formats)


class LabelTuner(Learner):
    """A DiT that learns what DiffFit trains (Xie et al., ICCV 2023): biases, norms, class embeddings, and a factor a block.

    A class that the DiT knows by name starts from its own embedding, or from the mean of those that share the name. Any other
    class starts from the mean of all.

    Args:
        pipe: the pipeline. Its transformer is replaced.
        backbone: the pipeline as a backbone.
        class_names: the names of the classes, in the order of their new labels.
        formats: the number format of the weights of each part that is written, by the part's name.
    """

    peak = 1e-3

    def __init__(
        self, pipe: Any, backbone: DiT, class_names: Sequence[str], formats: Mapping[str, torch.dtype]
    ) -> None:
        self._formats = formats
        self._pipe, self._plain = pipe, relabelled(backbone, class_names)
        twin = tuned(self._plain, scales=len(self._plain.transformer.transformer_blocks))
        self.backbone, self.module = twin, twin.denoiser
        chosen = set(light(twin))
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in chosen)

    def conditions(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return labels

    @torch.no_grad()
    def pipeline(self, vae: Any) -> Any:
        """The pipeline with a transformer of the ordinary kind: each factor becomes a part of the weights before it."""
        del vae
        plain, module = self._plain.transformer, self.backbone.denoiser
        found = {name: value for name, value in module.state_dict().items() if not name.endswith(".factor")}
        plain.load_state_dict(found)
        for block, learned in zip(plain.transformer_blocks, module.transformer_blocks, strict=True):
            attention, other = block.attn1, learned.attn1
            for part in ("to_q", "to_k", "to_v"):
                _scale(getattr(attention, part), getattr(other, part).factor)
            _scale(attention.to_out[0], other.to_out[0].factor * other.factor)
            _scale(block.ff.net[-1], learned.ff.factor)
        self._pipe.register_modules(transformer=plain)
        return _as_source(self._pipe, self._formats)


def _scale(linear: nn.Linear, factor: Tensor) -> None:
    linear.weight.mul_(factor[:, None])
    if linear.bias is not None:
        linear.bias.mul_(factor)


def _as_source(pipe: Any, formats: Mapping[str, torch.dtype]) -> Any:
    """The pipeline with each of its networks in the number format of its own weight files, on the CPU."""
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            nn.Module.to(part, "cpu", formats.get(name, torch.float32))
    return pipe


def relabelled(backbone: DiT, class_names: Sequence[str]) -> DiT:
    """A copy of a DiT whose labels are these classes. Both share the autoencoder."""
    transformer = copy.deepcopy(backbone.transformer)
    known = [imagenet.find(name, backbone._labels) for name in class_names]
    for block in transformer.transformer_blocks:
        labels = block.norm1.emb.class_embedder
        old = labels.embedding_table.weight.detach()
        count = len(backbone.class_names)
        rows = [(old[found] if found else old[:count]).mean(0) for found in known]
        table = nn.Embedding(len(rows) + 1, old.shape[1], device=old.device, dtype=old.dtype)
        with torch.no_grad():
            table.weight.copy_(torch.stack([*rows, old[count]]))
        labels.embedding_table, labels.num_classes = table, len(rows)
    transformer.register_to_config(num_embeds_ada_norm=len(class_names))
    schedule: Any = backbone.schedule
    return DiT(transformer, backbone.vae, schedule=schedule, class_names=class_names, card=replace(backbone.card))


def tuner_of(pipe: Any, folder: Path, backbone: Any, class_names: Sequence[str], rank: int, seed: int) -> Learner:
    """The learner for a pipeline that `check_tunable` takes. Each part is written in the number format of the folder's."""
    formats = formats_of(folder)
    if isinstance(backbone, UNet):
        return PromptTuner(pipe, backbone, class_names, rank, seed, formats)
    return LabelTuner(pipe, backbone, class_names, formats)
