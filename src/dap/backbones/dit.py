"""Class-conditional DiT (Peebles & Xie 2023) from any diffusers `DiTPipeline`: the hub's DiT-XL/2 and the starter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dap.backbones.base import Backbone, Card, Prediction
from dap.errors import DapError
from dap.guidance.base import GradThrough


class _Tapped(Exception):
    """Leaves the network at the tapped layer with its features."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


class DiT(Backbone):
    """A diffusers DiT with its VAE.

    Layers are the block indices "0" … "n−1"; the features are the block's output tokens (B, tokens, width).

    Args:
        transformer: `DiTTransformer2DModel`; its last embedding row is the null label.
        vae: `AutoencoderKL`.
        betas: beta_start and beta_end of the linear training schedule, and its length.
        class_names: the labels of the transformer, in order.
        card: what belongs to the weights.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        *,
        betas: tuple[float, float, int] = (1e-4, 0.02, 1000),
        class_names: Sequence[str],
        card: Card,
    ) -> None:
        config = transformer.config
        if len(class_names) != config.num_embeds_ada_norm:
            raise DapError(
                f"{card.name} has {config.num_embeds_ada_norm} labels but {len(class_names)} class names; "
                "put the right list into classes.json beside the weights."
            )
        # Training mode would replace one label in ten by the null label at random.
        self.transformer = transformer.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.card = card
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.layers = tuple(str(i) for i in range(len(transformer.transformer_blocks)))
        self.class_names = tuple(class_names)
        beta = torch.linspace(*betas, dtype=torch.float64)
        self.alphas_cumprod = (1 - beta).cumprod(0).float()
        self.learned_variance = config.out_channels == 2 * config.in_channels
        self.device = next(transformer.parameters()).device

    def condition(self, class_names: Sequence[str]) -> Tensor:
        labels = label_lookup(self.class_names)
        unknown = [n for n in class_names if n.lower() not in labels]
        if unknown:
            mine = ", ".join(self.class_names[:10]) + (", …" if len(self.class_names) > 10 else "")
            raise DapError(
                f"{self.card.name} was not trained on {', '.join(map(repr, unknown[:5]))}. The data has "
                f"{len(class_names)} classes, the backbone {len(self.class_names)}: {mine}. Rename the class folders "
                "to the backbone's names, or choose classes with --classes."
            )
        for name in class_names:
            if len(labels[name.lower()]) > 1:
                raise DapError(
                    f"{name!r} is the name of several labels of {self.card.name}: {labels[name.lower()]}. "
                    "Tell them apart in classes.json beside the weights."
                )
        return torch.tensor([labels[n.lower()][0] for n in class_names], device=self.device)

    def null(self, n: int) -> Tensor:
        return torch.full((n,), self.transformer.config.num_embeds_ada_norm, device=self.device)

    def predict(
        self,
        x: Tensor,
        t: int,
        condition: Tensor,
        *,
        layer: str | None = None,
        grad_through: GradThrough = "nothing",
    ) -> Prediction:
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            kept.append(output)
            # Handing on a detached copy ends the graph here: later blocks hold frozen weights and build none.
            return output.detach() if grad_through != "denoiser" else output

        with self._hook(layer, keep):
            output = self._forward(x, t, condition)
        eps, variance = output.chunk(2, dim=1) if self.learned_variance else (output, None)
        return Prediction(eps, variance, kept[0] if kept else None)

    @torch.no_grad()
    def tap(self, x: Tensor, t: int, condition: Tensor, layer: str) -> Tensor:
        def leave(module: nn.Module, args: Any, output: Tensor) -> None:
            raise _Tapped(output)

        with self._hook(layer, leave):
            try:
                self._forward(x, t, condition)
            except _Tapped as tapped:
                return tapped.features
        raise AssertionError("the tapped layer was not reached")

    def _forward(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        timestep = torch.full((len(x),), t, device=x.device)
        x = x.to(self.transformer.dtype)
        return self.transformer(x, timestep=timestep, class_labels=condition).sample.float()

    @contextmanager
    def _hook(self, layer: str | None, hook: Any) -> Iterator[None]:
        if layer is None:
            yield
            return
        block = self.transformer.transformer_blocks[int(self.check_layer(layer))]
        handle = block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        x = (images * 2 - 1).to(self.vae.device, self.vae.dtype)
        return self.vae.encode(x).latent_dist.mean.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        z = (latents / self.vae.config.scaling_factor).to(self.vae.device, self.vae.dtype)
        return (self.vae.decode(z).sample.float() / 2 + 0.5).clamp(0, 1)

    def state(self) -> dict[str, Tensor]:
        parts: Mapping[str, nn.Module] = {"transformer": self.transformer, "vae": self.vae}
        return {
            f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
        }


def label_lookup(class_names: Sequence[str]) -> dict[str, list[int]]:
    """Labels by lower-case name: those of that full name, else those that have it among comma-separated synonyms.

    ImageNet has full names that two labels share (crane, the bird and the machine), hence the lists.
    """
    lookup: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        lookup.setdefault(name.lower(), []).append(label)
    synonyms: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        for synonym in dict.fromkeys(part.strip().lower() for part in name.split(",")):
            synonyms.setdefault(synonym, []).append(label)
    return synonyms | lookup
