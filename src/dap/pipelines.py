"""DAP for people who live in diffusers: a `DiTPipeline` whose call takes real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from diffusers import DiTPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from dap.backbones import ClassifierFree, from_pipeline
from dap.data.bank import BankOptions, FeatureBank
from dap.data.decode import fit_square
from dap.errors import DapError
from dap.guidance import Descend, Nothing, Representative
from dap.kernels import parse
from dap.sampling import Batch, images

Images = Tensor | Sequence[Image.Image]


class DAPDiTPipeline(DiTPipeline):
    """`DiTPipeline` with representativeness guidance. `from_pretrained`, `from_pipe`, `.to` and `save_pretrained` are its own.

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
        unit: Literal["paper", "step"] | None = None,
        layer: str | int | None = None,
        kernel: str = "linear",
        repulsion: float = 0.0,
        options: BankOptions | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        seeds: Sequence[int] | None = None,
        output_type: Literal["pil", "pt", "latent"] = "pil",
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
            seeds: one an image; default 0, 1, …
            output_type: "pil", "pt" (tensor in [0, 1]) or "latent".

        Raises:
            DapError: unknown labels, no real images for a label, an unknown layer or kernel.
        """
        backbone = from_pipeline(self)
        labels = [name if isinstance(name, str) else self._name(backbone.class_names, name) for name in class_labels]
        names = tuple(dict.fromkeys(labels))
        rows = [names.index(name) for name in labels]
        slots = [rows[:i].count(row) for i, row in enumerate(rows)]
        seeds = list(range(len(rows))) if seeds is None else list(seeds)
        if len(seeds) != len(rows):
            raise DapError(f"{len(rows)} labels need {len(rows)} seeds, not {len(seeds)}.")
        batch = Batch(names, tuple(rows), tuple(slots), tuple(seeds))
        guidance = Nothing()
        if real_images is not None:
            given = {
                k if isinstance(k, str) else self._name(backbone.class_names, k): v for k, v in real_images.items()
            }
            source = InMemory(names, given, backbone.card.size)
            largest = max(source.count(label) for label in range(len(names)))
            values = (options or BankOptions()).model_dump() | {"reals": largest}
            values |= {} if layer is None else {"layer": str(layer)}
            bank = FeatureBank(source, backbone, BankOptions.model_validate(values), ipc=max(slots) + 1, keep=False)
            energy = Representative(bank, parse(kernel), repulsion=repulsion)
            default = unit or backbone.card.unit
            if scale is None and default != backbone.card.unit:
                raise DapError(f"The card's scale is in unit {backbone.card.unit!r}; with unit {unit!r} give a scale.")
            guidance = Descend(energy, backbone.card.scale if scale is None else scale, default)
        cfg = backbone.card.cfg if guidance_scale is None else guidance_scale
        model = ClassifierFree(backbone, cfg, backbone.card.cfg_channels)
        if output_type == "latent":
            from dap.sampling import latents

            return ImagePipelineOutput(images=latents(model, guidance, batch, steps=num_inference_steps))  # pyright: ignore[reportArgumentType]
        made = images(model, guidance, batch, steps=num_inference_steps)
        if output_type == "pt":
            return ImagePipelineOutput(images=made)  # pyright: ignore[reportArgumentType]
        return ImagePipelineOutput(images=self.numpy_to_pil(made.cpu().permute(0, 2, 3, 1).numpy()))

    @staticmethod
    def _name(class_names: Sequence[str], label: int) -> str:
        if not 0 <= label < len(class_names):
            raise DapError(f"Label {label} is not among the backbone's {len(class_names)} labels.")
        return class_names[label]


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

    def good(self, label: int, n: int, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(self.count(label), generator=generator)[:n].tolist()

    def images(self, label: int, indices: Sequence[int]) -> Tensor:
        return self._images[label][list(indices)]

    def fingerprint(self) -> str:
        return "in memory"
