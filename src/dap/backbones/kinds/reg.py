"""REG (Wu et al. 2025): a SiT that denoises the class token of DINOv2 together with the latent."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dap.backbones.base import Card
from dap.backbones.kinds.sit import SiT
from dap.backbones.schedules import Interpolant, Time
from dap.base.devices import vram
from dap.base.errors import DapError

PATCH = 16
"""How many px of the image a patch of DINOv2 covers: its authors' training shows DINOv2 images of 256 px at 224 px, in patches of
14 px."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""How DINOv2 standardises the colours of an image in [0, 1]."""

TOGETHER = 64
"""How many images go through DINOv2 at once."""


class REG(SiT):
    """A `REGPipeline` as a backbone. Its latent holds the class token too, so that all that acts on latents acts on both.

    A latent has ⌈D / side²⌉ channels more than the autoencoder's. They hold the D numbers of the class token, row after row, and
    then zeros. `decode` leaves these channels out. Where the data are zero, x_t is noise alone and its velocity is known, so
    the network is not asked for it. Classifier-free guidance of `cfg_channels: all` guides the token as the latent, and that of
    the autoencoder's channels alone leaves the token to the conditional half.

    Layers are the block indices "0" … "n−1"; the features are the block's tokens of the patches (B, tokens, width), without that
    of the class token.

    Args:
        pipe: a `REGPipeline`.
        class_names: the names of the transformer's labels, in label order.
        card: the facts that belong to the weights.

    Raises:
        DapError: there are not as many class names as labels, or the parts do not fit each other.
    """

    kind = "reg"

    def __init__(self, pipe: Any, *, class_names: list[str], card: Card) -> None:
        super().__init__(pipe, class_names=class_names, card=card)
        config, encoder = pipe.transformer.config, pipe.class_encoder
        self._size: int = config.class_token_size
        if encoder.config.hidden_size != self._size:
            raise DapError(
                f"The transformer of {card.name} denoises a class token of {self._size} numbers, its class_encoder makes "
                f"{encoder.config.hidden_size}; take parts that were trained together."
            )
        patches = card.size // PATCH
        self._shown = patches * encoder.config.patch_size
        if not patches or encoder.embeddings.position_embeddings.shape[1] != patches**2 + 1:
            raise DapError(
                f"The class_encoder of {card.name} has positions for {encoder.embeddings.position_embeddings.shape[1] - 1} "
                f"patches, and images of {card.size} px have {patches**2}; write the folder with dap convert --encoder."
            )
        self._channels: int = config.in_channels
        more = math.ceil(self._size / config.sample_size**2)
        self.latent_shape = (self._channels + more, config.sample_size, config.sample_size)
        self._parts["class_encoder"] = encoder.eval().requires_grad_(False)
        self.class_encoder: Any = encoder

    def joined(
        self, latents: Float[Tensor, "b c h w"], token: Float[Tensor, "b d"], rest: Tensor | None = None
    ) -> Float[Tensor, "b more h w"]:
        """Latents of the autoencoder and class tokens as latents of this backbone. The places left over hold `rest`, or zeros."""
        channels, side, _ = self.latent_shape
        cells = (channels - self._channels) * side**2
        filled = F.pad(token, (0, cells - self._size)) if rest is None else torch.cat([token, rest], dim=1)
        return torch.cat([latents, filled.view(len(latents), -1, side, side).to(latents)], dim=1)

    def parted(self, x: Float[Tensor, "b more h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """The autoencoder's latents (B, C, h, w) in latents of this backbone, the class tokens (B, D), and what is left over."""
        cells = x[:, self._channels :].flatten(1)
        return x[:, : self._channels], cells[:, : self._size], cells[:, self._size :]

    def run(self, x: Tensor, t: Time | Tensor, condition: Tensor) -> Tensor:
        assert isinstance(self.schedule, Interpolant)
        latents, token, rest = self.parted(x)
        times = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(len(x))
        dtype = self.denoiser.dtype
        found = self.denoiser(latents.to(dtype), times / self.schedule.steps, condition, token.to(dtype))
        # Zeros under noise: x_t = sigma · eps moves by sigma' · eps = sigma' / sigma · x_t.
        rates = torch.tensor([_rate(self.schedule, at) for at in times.tolist()], device=x.device)
        return self.joined(found.sample.float(), found.class_token.float(), rates[:, None] * rest)

    def tokens(self, output: Any) -> Tensor:
        return super().tokens(output)[:, 1:]

    @torch.no_grad()
    def class_token(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The class tokens of images in [0, 1], after DINOv2's last norm, float32. The network was trained on them unscaled."""
        encoder = self.class_encoder

        def seen(part: Tensor) -> Tensor:
            mean, std = (torch.tensor(of, device=part.device).view(3, 1, 1) for of in (MEAN, STD))
            shown = F.interpolate((part - mean) / std, self._shown, mode="bicubic", align_corners=False)
            return encoder(shown.to(encoder.dtype)).last_hidden_state[:, 0].float()

        return torch.cat(vram.in_parts(seen, TOGETHER, images.to(self.device).float()))

    def encode(self, images: Tensor) -> Tensor:
        return self.joined(super().encode(images), self.class_token(images))

    def drawn(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.joined(super().drawn(images, generator), self.class_token(images))

    def decode_with_graph(self, latents: Tensor) -> Tensor:
        return super().decode_with_graph(latents[:, : self._channels])


def _rate(schedule: Interpolant, t: float) -> float:
    """sigma' / sigma at a time; 0 at the data, where there is no noise."""
    sigma = schedule.level(t)[1]
    return schedule.slopes(t)[1] / sigma if sigma else 0.0
