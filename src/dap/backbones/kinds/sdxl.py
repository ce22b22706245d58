"""SDXL (Podell et al. 2024) from any diffusers `StableDiffusionXLPipeline`: two text encoders, and sizes as conditions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dap.backbones.kinds.unet import UNet
from dap.backbones.schedules import Time


class SDXL(UNet):
    """An SDXL pipeline as a backbone. It differs from Stable Diffusion 1 and 2 in what the U-Net is told.

    The text is the next to last states of two text encoders side by side, (B, tokens, 2048) in the published weights, and the
    pooled state of the second. Beside the text the U-Net is told three sizes (section 2.2 of the paper): of the original
    image, of the corner at which the crop began, and of the image to make. `dap` says what diffusers says when it is not told
    otherwise: an uncropped original of the size that the weights make.

    The unconditional half is zeros where the pipeline has `force_zeros_for_empty_prompt` and the negative prompt is empty.

    Args: as `UNet`, with a `StableDiffusionXLPipeline`.
    """

    kind = "sdxl"

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, ...]:
        states, _, pooled, _ = self._pipe.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if self._zeros:
            told = torch.tensor([prompt != "" for prompt in prompts], device=states.device)
            states, pooled = states * told[:, None, None], pooled * told[:, None]
        return states, pooled

    @property
    def _zeros(self) -> bool:
        return bool(self._pipe.config.get("force_zeros_for_empty_prompt", False))

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        states, pooled = self.encodings(condition)
        dtype, size = self.denoiser.dtype, self.card.size
        sizes = torch.tensor([[size, size, 0, 0, size, size]], dtype=dtype, device=x.device).expand(len(x), -1)
        return self.denoiser(
            x.to(dtype),
            torch.as_tensor(t, device=x.device).expand(len(x)),
            states.to(dtype),
            timestep_cond=self.told_guidance(x),
            added_cond_kwargs={"text_embeds": pooled.to(dtype), "time_ids": sizes},
        ).sample.float()

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "zeros_for_empty_prompt": self._zeros}
