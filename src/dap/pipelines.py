"""DAP for people who live in diffusers: pipelines whose call takes real images.

`from_pretrained`, `from_pipe`, `.to` and `save_pretrained` are those of the diffusers pipeline each one is. A call puts the
modules into evaluation mode and freezes their parameters, also for a pipeline that shares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from diffusers import DiTPipeline, StableDiffusionPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from dap.backbones import Backbone, ClassifierFree, from_pipeline
from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.data.real.decode import fit_square
from dap.guidance import Descend, Guidance, Nothing, Representative
from dap.kernels import parse
from dap.sampling import Batch, latents
from dap.solvers import SolverName

Images = Tensor | Sequence[Image.Image]
Unit = Literal["paper", "step"]
Output = Literal["pil", "pt", "latent"]


class DAPDiTPipeline(DiTPipeline):
    """`DiTPipeline` with representativeness guidance.

    Unlike the stock pipeline it samples with respaced ancestral DDPM steps and the learned variance, whatever scheduler
    is set, and knows the null label of a fine-tuned DiT with another number of classes.
    """

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        class_labels: Sequence[int | str],
        real_images: Mapping[int | str, Images] | None = None,
        *,
        scale: float | None = None,
        unit: Unit | None = None,
        layer: str | int | None = None,
        kernel: str = "linear",
        repulsion: float = 0.0,
        options: BankOptions | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        solver: SolverName | None = None,
        seeds: Sequence[int] | None = None,
        output_type: Output = "pil",
    ) -> ImagePipelineOutput:
        """Sample one image for each label.

        Args:
            class_labels: labels or class names of the backbone.
            real_images: for each label or name that occurs, real images of it: PIL images, or a tensor (n, 3, h, w) in
                [0, 1] at the backbone's size. None: vanilla sampling.
            scale: γ; default: the backbone card's, and then in the card's unit.
            unit: see `guidance.Descend`.
            layer: where features are tapped; default: the card's.
            kernel: see `kernels.parse`.
            repulsion: see `guidance.Representative`.
            options: everything else about the real features; all the images given are used as the N reals.
            guidance_scale: of classifier-free guidance; default: the card's.
            num_inference_steps: reverse steps.
            solver: see `dap.solvers`; default: ancestral.
            seeds: one an image; default 0, 1, …
            output_type: "pil", "pt" (tensor in [0, 1]) or "latent".

        Raises:
            DapError: unknown labels, no real images for a label, an unknown layer or kernel.
        """
        backbone = from_pipeline(self)

        def name(label: int | str) -> str:
            if isinstance(label, str):
                return label
            if not 0 <= label < len(backbone.class_names):
                raise DapError(f"Label {label} is not among the backbone's {len(backbone.class_names)} labels.")
            return backbone.class_names[label]

        batch = _batch([name(label) for label in class_labels], seeds)
        given = None if real_images is None else {name(label): images for label, images in real_images.items()}
        guidance = _guidance(backbone, batch, given, scale, unit, layer, kernel, repulsion, options)
        return _sampled(self, backbone, guidance, batch, guidance_scale, num_inference_steps, solver, output_type)


class DAPStableDiffusionPipeline(StableDiffusionPipeline):
    """`StableDiffusionPipeline` with representativeness guidance: classes are prompts.

    Unlike the stock pipeline it samples with a solver of `dap.solvers`, whatever scheduler is set, with one seed an image.
    """

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        class_names: Sequence[str],
        real_images: Mapping[str, Images] | None = None,
        *,
        template: str | None = None,
        negative_prompt: str | None = None,
        scale: float | None = None,
        unit: Unit | None = None,
        layer: str | None = None,
        kernel: str = "linear",
        repulsion: float = 0.0,
        options: BankOptions | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        solver: SolverName | None = None,
        seeds: Sequence[int] | None = None,
        output_type: Output = "pil",
    ) -> ImagePipelineOutput:
        """Sample one image for each class name.

        Args:
            class_names: names of classes, or ImageNet's WordNet ids; equal ones are slots of one class.
            real_images: for each name that occurs, real images of it: PIL images, or a tensor (n, 3, h, w) in [0, 1] at
                the backbone's size. None: vanilla sampling.
            template: prompt with {} for the class name; default: the card's, "a photo of a {}". "{}" takes the names as
                whole prompts.
            negative_prompt: what the unconditional half is given; default: the card's, empty.
            scale: γ; default: the card's, and then in the card's unit.
            unit: see `guidance.Descend`.
            layer: "down.0" …, "mid", "up.0" …; default: the card's, "mid".
            kernel: see `kernels.parse`.
            repulsion: see `guidance.Representative`.
            options: everything else about the real features; all the images given are used as the N reals.
            guidance_scale: of classifier-free guidance; default: the card's.
            num_inference_steps: reverse steps.
            solver: see `dap.solvers`; default: ancestral.
            seeds: one an image; default 0, 1, …
            output_type: "pil", "pt" (tensor in [0, 1]) or "latent".

        Raises:
            DapError: no real images for a class, an unknown layer or kernel, a template without {}.
        """
        prompts = {"template": template, "negative_prompt": negative_prompt}
        backbone = from_pipeline(self, **{key: text for key, text in prompts.items() if text is not None})
        batch = _batch(class_names, seeds)
        guidance = _guidance(backbone, batch, real_images, scale, unit, layer, kernel, repulsion, options)
        return _sampled(self, backbone, guidance, batch, guidance_scale, num_inference_steps, solver, output_type)


def _batch(names: Sequence[str], seeds: Sequence[int] | None) -> Batch:
    """Equal names are slots of one class."""
    if isinstance(names, str):
        raise DapError(f"Give a list of classes, one for each image, not the text {names!r}.")
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
    source = InMemory(batch.class_names, real_images, card.size)
    largest = max(source.count(label) for label in range(len(batch.class_names)))
    values = (options or BankOptions()).model_dump() | {"reals": largest}
    values |= {} if layer is None else {"layer": str(layer)}
    bank = FeatureBank(source, backbone, BankOptions.model_validate(values), ipc=max(batch.slots) + 1, keep=False)
    energy = Representative(bank, parse(kernel), repulsion=repulsion)
    return Descend(energy, card.scale if scale is None else scale, unit or card.unit)


def _sampled(
    pipe: DiffusionPipeline,
    backbone: Backbone,
    guidance: Guidance,
    batch: Batch,
    cfg: float | None,
    steps: int,
    solver: SolverName | None,
    output_type: Output,
) -> ImagePipelineOutput:
    card = backbone.card
    model = ClassifierFree(backbone, card.cfg if cfg is None else cfg, card.cfg_channels)
    made = latents(model, guidance, batch, steps=steps, solver=solver)
    if output_type != "latent":
        made = backbone.decode(made)
    if output_type == "pil":
        return ImagePipelineOutput(images=pipe.numpy_to_pil(made.cpu().permute(0, 2, 3, 1).numpy()))
    return ImagePipelineOutput(images=made)  # pyright: ignore[reportArgumentType]


class InMemory:
    """Real images that are already in memory, as the feature bank asks for them."""

    def __init__(self, class_names: Sequence[str], images: Mapping[str, Images], size: int) -> None:
        self.class_names = tuple(class_names)
        absent = [name for name in class_names if name not in images or not len(images[name])]
        if absent:
            raise DapError(f"real_images has none for {absent[0]!r}; it has some for {', '.join(images) or 'nothing'}.")
        self._images = [self._tensor(images[name], size) for name in class_names]

    @staticmethod
    def _tensor(images: Images, size: int) -> Tensor:
        if isinstance(images, Tensor):
            if images.shape[1:] != (3, size, size):
                raise DapError(f"Real images should be (n, 3, {size}, {size}), not {tuple(images.shape)}.")
            return images
        return torch.stack([fit_square(image.convert("RGB"), size, "crop") for image in images])

    def count(self, label: int) -> int:
        return len(self._images[label])

    def good(self, label: int, n: int, seed: int, least: int | None = None) -> list[int]:
        del least  # nothing in memory is broken
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(self.count(label), generator=generator)[:n].tolist()

    def images(self, label: int, indices: Sequence[int]) -> Tensor:
        return self._images[label][list(indices)]

    def fingerprint(self) -> str:
        return "in memory"
