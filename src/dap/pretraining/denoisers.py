"""The second stage: a denoiser of the latents, as a backbone that learns."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Card
from dap.backbones.finetune import Denoising, TuningBatch
from dap.backbones.kinds.dit import DiT
from dap.backbones.kinds.latte import Latte
from dap.backbones.modules import ModuleBackbone
from dap.backbones.schedules import Time, VariancePreserving
from dap.pretraining import words
from dap.pretraining.networks import Sizes, latte, transformer, unet
from dap.pretraining.pictures import Latents

BETAS = (1e-4, 0.02)
"""The first and the last of DiT's betas, which lie evenly over 1,000 steps."""

DECAY = 0.999
"""The decay of the averaged weights."""

SEEN_AT = 4
"""At how many noise levels each held-out latent is denoised."""


class Learner(ABC):
    """A denoiser that is trained, with the words or labels of the classes.

    Attributes:
        backbone: the denoiser as a backbone that knows the classes; its parameters change while it learns.
        module: everything that is trained.
        peak: the largest learning rate.
        null: (1,), the condition that replaces dropped conditions; None: the null condition of the backbone.
    """

    backbone: ModuleBackbone
    module: nn.Module
    peak: float = 1e-3
    null: Tensor | None = None

    @abstractmethod
    def conditions(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions (n,) for labels (n,), none of which is dropped."""

    @abstractmethod
    def pipeline(self, vae: Any) -> Any:
        """The diffusers pipeline of the trained parts, in float16 on the CPU. The parts are changed."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of the labels, in order; None for a denoiser that is told prompts."""
        return self.backbone.class_names or None

    def twin(self) -> ModuleBackbone:
        """A copy of the backbone, which does not learn. Both share the autoencoder."""
        parts = self.backbone._parts
        shared = {id(part): part for name, part in parts.items() if name not in ("denoiser", "text_encoder")}
        made = copy.deepcopy(self.backbone, shared)
        for part in made._parts.values():
            part.requires_grad_(False)
        return made


class LabelLearner(Learner):
    """A DiT that is told labels."""

    def __init__(self, sizes: Sizes, vae: Any, class_names: Sequence[str], card: Card, seed: int) -> None:
        device = next(vae.parameters()).device
        self.module = transformer(sizes, len(class_names), seed).to(device)
        self.backbone = DiT(self.module, vae, class_names=class_names, card=card)
        self.module.requires_grad_(True)

    def conditions(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return labels

    def pipeline(self, vae: Any) -> Any:
        from diffusers import DiTPipeline

        parts = (_halved(part) for part in (self.module, vae))
        names: dict[int, str] = dict(enumerate(self.backbone.class_names))
        return DiTPipeline(*parts, scheduler=_scheduler(), id2label=names)  # pyright: ignore[reportArgumentType]


class ClipLearner(Learner):
    """A Latte that is told labels."""

    def __init__(self, sizes: Sizes, vae: Any, class_names: Sequence[str], card: Card, seed: int) -> None:
        device = next(vae.parameters()).device
        self.module = latte(sizes, len(class_names), seed).to(device)
        parts = SimpleNamespace(denoiser=self.module, vae=vae, scheduler=_scheduler())
        self.backbone = Latte(parts, class_names=list(class_names), card=replace(card, frames=sizes.frames))
        self.module.requires_grad_(True)
        for table in (self.module.pos_embed, self.module.temp_embed):
            table.requires_grad_(False)

    def conditions(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return labels

    def pipeline(self, vae: Any) -> Any:
        from dap.networks.labelled_pipeline import LabelledLattePipeline

        names = dict(enumerate(self.backbone.class_names))
        return LabelledLattePipeline(_halved(self.module), _halved(vae), _scheduler(), id2label=names)


class PromptLearner(Learner):
    """A U-Net and its text encoder, which are told prompts such as "a photo of a dress"."""

    def __init__(self, sizes: Sizes, vae: Any, class_names: Sequence[str], card: Card, seed: int) -> None:
        device = next(vae.parameters()).device
        self.tokenizer = words.build_tokenizer(class_names)
        parts = {"unet": unet(sizes, words.WIDTH, seed), "text_encoder": words.build_text_encoder(self.tokenizer, seed)}
        self.parts: dict[str, nn.Module] = parts
        self.module = nn.ModuleDict(parts).to(device)
        ids = words.prompt_ids(self.tokenizer, class_names, device)
        self.backbone = _Prompted(self.module, vae, ids, sizes, class_names, card)
        self.module.requires_grad_(True)

    @property
    def class_names(self) -> None:
        return None

    def conditions(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(words.TEMPLATES), labels.shape, generator=generator)
        return 1 + labels * len(words.TEMPLATES) + which.to(labels.device)

    def pipeline(self, vae: Any) -> Any:
        from diffusers import PNDMScheduler, StableDiffusionPipeline

        build: Any = PNDMScheduler
        unet, text_encoder, vae = map(_halved, (self.parts["unet"], self.parts["text_encoder"], vae))
        return StableDiffusionPipeline(
            vae=vae,
            unet=unet,
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            scheduler=build(**words.SCHEDULE, skip_prk_steps=True, steps_offset=1),
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )


class _Prompted(ModuleBackbone):
    """The U-Net and the text encoder while they learn: conditions are rows of the table of prompts."""

    def __init__(self, parts: Any, vae: Any, ids: Tensor, sizes: Sizes, class_names: Sequence[str], card: Card) -> None:
        schedule: Any = words.SCHEDULE
        super().__init__(
            parts["unet"],
            vae,
            card=card,
            schedule=VariancePreserving.from_config(schedule),
            latent_shape=(sizes.latent_channels, sizes.latent_side, sizes.latent_side),
            layers=("mid_block",),
            class_names=class_names,
            text_encoder=parts["text_encoder"],
        )
        self.ids = ids

    def condition(self, class_names: Sequence[str]) -> Tensor:
        return 1 + super().condition(class_names) * len(words.TEMPLATES)

    def null(self, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.int64, device=self.device)

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        rows, inverse = condition.unique(return_inverse=True)
        context = self._parts["text_encoder"](self.ids[rows]).last_hidden_state[inverse]
        return self.denoiser(x, torch.as_tensor(t, device=x.device).expand(len(x)), context).sample.float()


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    made: Any = DDIMScheduler
    return made(beta_start=BETAS[0], beta_end=BETAS[1], beta_schedule="linear", clip_sample=False)


def _halved(part: nn.Module) -> Any:
    """The part in float16 on the CPU. The `to` of diffusers would warn of parts that should stay in float32, though there are
    none."""
    return nn.Module.to(part, "cpu", torch.float16)


def learner_of(sizes: Sizes, vae: Any, class_names: Sequence[str], card: Card, seed: int) -> Learner:
    """The learner of a kind of denoiser, with first weights that the seed decides."""
    labelled = LabelLearner if sizes.frames is None else ClipLearner
    made = labelled if sizes.kind == "dit" else PromptLearner
    return made(sizes, vae, class_names, card, seed)


def loss_of(learner: Learner, latents: Latents, batch: int) -> Callable[[torch.Generator], Tensor]:
    """The loss of a step; see `backbones.finetune.Denoising`."""
    denoising = Denoising(learner.backbone)

    def loss(generator: torch.Generator) -> Tensor:
        x0, labels = latents.drawn(batch, generator)
        null = None if learner.null is None else learner.null.expand(batch)
        given = TuningBatch(x0, learner.conditions(labels, generator), (), null)
        with mixed(x0.device):
            return denoising(given, generator)[0]

    return loss


def held_out_of(learner: Learner, latents: Latents, batch: int, limit: int = 256) -> Callable[[], float]:
    """The held-out loss: the mean ||ε − ε̂||² of held-out latents at noise levels that lie evenly over the schedule.

    Latents, levels and noise are the same each time.

    Args:
        learner: the denoiser.
        latents: held-out latents, of which the first version is used.
        batch: how many are denoised at a time.
        limit: how many are used, at the most: a random draw.
    """
    backbone, schedule = learner.backbone, learner.backbone.schedule
    assert isinstance(schedule, VariancePreserving)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(latents.labels), generator=generator)[:limit]
    steps = len(schedule)
    places = torch.rand(SEEN_AT, len(chosen), generator=generator)
    # One level out of each of SEEN_AT equal parts of the schedule.
    times = ((torch.arange(SEEN_AT)[:, None] + places) * steps / SEEN_AT).long().flatten()
    rows = chosen.repeat(SEEN_AT)
    noise = torch.randn(len(rows), *latents.mean.shape[2:], generator=generator)
    abar = schedule.alphas_cumprod.view(-1, *[1] * (noise.ndim - 1))
    condition = learner.conditions(latents.labels.cpu()[rows], generator)

    def held_out() -> float:
        errors = []
        for part in torch.arange(len(rows)).split(batch):
            x0, eps, t = latents.mean[0][rows[part].to(latents.mean.device)], noise[part], times[part]
            a = abar[t].to(x0)
            eps, t = eps.to(x0), t.to(x0.device)
            with mixed(x0.device):
                x = a.sqrt() * x0 + (1 - a).sqrt() * eps
                found = backbone.read(x, 0, backbone.run(x, t, condition[part].to(x0.device)))
            errors.append((found.eps - eps).square().flatten(1).mean(1).cpu())
        return torch.cat(errors).mean().item()

    return held_out


def mixed(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where it pays: bfloat16 on a GPU that computes in it. GPUs before Ampere only emulate it, and on CPUs it
    gained less than a fifth, so there all is float32."""
    pays = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", torch.bfloat16) if pays else nullcontext()
