"""DAP for people who work with diffusers: pipelines whose call takes real images.

`from_pretrained`, `from_pipe`, `.to` and `save_pretrained` are inherited from diffusers. A call puts the modules into evaluation
mode and freezes their parameters, and this also holds for another pipeline that shares the modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import DiTPipeline, StableDiffusionPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from dap.backbones import Backbone, ClassifierFree, from_pipeline
from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.data.real.memory import MemorySource
from dap.guidance import Descend, Guidance, Nothing, Representative
from dap.kernels import parse
from dap.sampling import Batch, latents
from dap.solvers import SolverName

Images = Tensor | Sequence[Image.Image]
Unit = Literal["paper", "step"]
Output = Literal["pil", "pt", "latent"]


class GuidedPipeline:
    """The call that both pipelines share. It samples guided by real images, on the modules of the diffusers pipeline."""

    @torch.no_grad()
    def __call__(
        self,
        classes: Sequence[int | str],
        real_images: Mapping[Any, Images] | None = None,
        *,
        scale: float | None = None,
        unit: Unit | None = None,
        layer: str | int | None = None,
        kernel: str = "linear",
        repulsion: float = 0.0,
        options: BankOptions | None = None,
        template: str | None = None,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        solver: SolverName | None = None,
        seeds: Sequence[int] | None = None,
        output_type: Output = "pil",
    ) -> ImagePipelineOutput:
        """Sample one image for each entry of `classes`. Equal entries are the slots of one class.

        Args:
            classes: for a DiT its labels or class names; for Stable Diffusion names of classes, or ImageNet's WordNet ids.
            real_images: for each class that occurs, real images of it: PIL images, or a tensor (n, 3, h, w) in [0, 1] at the
                backbone's size. None: vanilla sampling.
            scale: γ ≥ 0. Default: the card's, in the card's unit.
            unit: "paper" or "step", see `dap.guidance.Descend`.
            layer: the layer whose features are compared. A DiT's layers are the numbers of its blocks; those of Stable
                Diffusion are "down.0" …, "mid", "up.0" …. Default: the card's.
            kernel: see `dap.kernels.parse`.
            repulsion: λ ≥ 0, see `dap.guidance.Representative`.
            options: all other choices about the real features. All images given are used as the N real images.
            template: prompt of Stable Diffusion with {} for the class name. Default: the card's, "a photo of a {}". "{}" takes
                the names as whole prompts.
            negative_prompt: the text that Stable Diffusion's unconditional half is given. Default: the card's, an empty one.
            guidance_scale: the scale of classifier-free guidance. Default: the card's.
            num_inference_steps: the number of reverse steps.
            solver: see `dap.solvers`. Default: ancestral sampling.
            seeds: one for each image. Default: 0, 1, ….
            output_type: "pil", "pt" (a tensor (B, 3, h, w) in [0, 1]) or "latent" (B, C, h', w').

        Raises:
            DapError: a class is unknown or has no real images; the layer or the kernel is unknown; a template has no {}, or is
                given for a DiT, which takes labels.
        """
        prompts = {"template": template, "negative_prompt": negative_prompt}
        backbone = from_pipeline(self, **{key: text for key, text in prompts.items() if text is not None})
        batch = _batch([_name(backbone, one) for one in _listed(classes)], seeds)
        given = None if real_images is None else {_name(backbone, one): some for one, some in real_images.items()}
        guidance = _guidance(backbone, batch, given, scale, unit, layer, kernel, repulsion, options)
        card = backbone.card
        model = ClassifierFree(backbone, card.cfg if guidance_scale is None else guidance_scale, card.cfg_channels)
        made = latents(model, guidance, batch, steps=num_inference_steps, solver=solver)
        if output_type != "latent":
            made = backbone.decode(made)
        if output_type == "pil":
            arrays = made.cpu().permute(0, 2, 3, 1).numpy()
            return ImagePipelineOutput(images=DiffusionPipeline.numpy_to_pil(arrays))
        return ImagePipelineOutput(images=made)  # pyright: ignore[reportArgumentType]


class DAPDiTPipeline(GuidedPipeline, DiTPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`DiTPipeline` with representativeness guidance; see `GuidedPipeline.__call__`.

    Unlike the stock pipeline it samples with respaced ancestral DDPM steps and the learned variance, whatever scheduler is
    set. It also knows the null label of a fine-tuned DiT that has another number of classes.
    """


class DAPStableDiffusionPipeline(GuidedPipeline, StableDiffusionPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`StableDiffusionPipeline` with representativeness guidance, in which classes are prompts; see `GuidedPipeline.__call__`.

    Unlike the stock pipeline it samples with a solver of `dap.solvers`, whatever scheduler is set, and each image has
    its own seed.
    """


def _listed(classes: Sequence[int | str]) -> Sequence[int | str]:
    if isinstance(classes, str):
        raise DapError(f"Give a list of classes, one for each image, not the text {classes!r}.")
    return classes


def _name(backbone: Backbone, one: int | str) -> str:
    """The class name behind a label or a name."""
    if isinstance(one, str):
        return one
    if not backbone.class_names:
        raise DapError(f"{backbone.card.name} takes names of classes, not the label {one}.")
    if not 0 <= one < len(backbone.class_names):
        raise DapError(f"Label {one} is not among the backbone's {len(backbone.class_names)} labels.")
    return backbone.class_names[one]


def _batch(names: Sequence[str], seeds: Sequence[int] | None) -> Batch:
    """The batch of an image for each name. Equal names are slots of one class."""
    classes = tuple(dict.fromkeys(names))
    rows = [classes.index(name) for name in names]
    slots = [rows[:i].count(row) for i, row in enumerate(rows)]
    seeds = list(range(len(rows))) if seeds is None else list(seeds)
    if len(seeds) != len(rows):
        raise DapError(f"{len(rows)} images need {len(rows)} seeds, not {len(seeds)}.")
    return Batch(classes, tuple(rows), tuple(slots), tuple(seeds))


def _guidance(
    backbone: Backbone,
    batch: Batch,
    real_images: Mapping[str, Images] | None,
    scale: float | None,
    unit: Unit | None,
    layer: str | int | None,
    kernel: str,
    repulsion: float,
    options: BankOptions | None,
) -> Guidance:
    if real_images is None:
        return Nothing()
    card = backbone.card
    if scale is None and unit not in (None, card.unit):
        raise DapError(f"The card's scale is in unit {card.unit!r}; with unit {unit!r} give a scale.")
    source = _source(batch.class_names, real_images, card.size)
    largest = max(source.count(label) for label in range(len(batch.class_names)))
    values = (options or BankOptions()).model_dump() | {"reals": largest}
    values |= {} if layer is None else {"layer": str(layer)}
    bank = FeatureBank(source, backbone, BankOptions.model_validate(values), ipc=max(batch.slots) + 1, keep=False)
    energy = Representative(bank, parse(kernel), repulsion=repulsion)
    return Descend(energy, card.scale if scale is None else scale, unit or card.unit)


def _source(class_names: Sequence[str], images: Mapping[str, Images], size: int) -> MemorySource:
    """The real images of these classes, in label order.

    Args:
        class_names: the classes, in label order.
        images: for each name PIL images, or a tensor (n, 3, size, size) in [0, 1].
        size: side in px.

    Raises:
        DapError: a class has no images, or its tensor is of another size.
    """
    absent = [name for name in class_names if name not in images or not len(images[name])]
    if absent:
        raise DapError(f"real_images has none for {absent[0]!r}; it has some for {', '.join(images) or 'nothing'}.")
    for name in class_names:
        given = images[name]
        if isinstance(given, Tensor) and given.shape[1:] != (3, size, size):
            raise DapError(f"Real images should be (n, 3, {size}, {size}), not {tuple(given.shape)}.")
    return MemorySource({name: images[name] for name in class_names}, size=size)
