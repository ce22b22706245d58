"""A backbone whose score is known exactly: a Gaussian mixture, for tests and for teaching.

The data of class c have the density sum_k w_k N(mu_k, s² I). At noise level t, with x_t = a x_0 + sigma eps, the
density is sum_k w_k N(a mu_k, v I) with v = a² s² + sigma². Hence

    E[x_0 | x_t] = m + a s² / v · (x_t − a m),   m = sum_k r_k(x_t) mu_k,   r = the posterior weights of the modes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone, Card, Prediction
from dap.backbones.schedules import Schedule, Time, VariancePreserving
from dap.base.errors import DapError
from dap.guidance.base import GradThrough


class Mixture(Backbone):
    """An exact class-conditional Gaussian mixture over latents.

    Args:
        means: the modes of each class, (classes, modes, C, *spatial).
        std: s, the standard deviation of all modes.
        class_names: default: "0", "1", ….
        schedule: the noise schedule. Default: DiT's, 1000 linear betas from 1e-4 to 0.02.

    The layer "x0" is the posterior mean E[x_0 | x_t, c], a non-linear feature. The layer "x" is x_t itself.
    """

    def __init__(
        self,
        means: Float[Tensor, "classes modes c *spatial"],
        std: float = 0.1,
        class_names: Sequence[str] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.means, self.std = means, std
        self.latent_shape = tuple(means.shape[2:])
        self.layers = ("x0", "x")
        self.class_names = tuple(class_names or map(str, range(len(means))))
        self.schedule = schedule or VariancePreserving.from_betas(1e-4, 0.02, 1000)
        self.learned_variance = False
        self.device = means.device
        size = self.latent_shape[-1]
        self.card = Card("exact Gaussian mixture", "CC0-1.0", size, 1.0, "all", "x0", 1.0, "paper")

    def condition(self, class_names: Sequence[str]) -> Tensor:
        unknown = [n for n in class_names if n not in self.class_names]
        if unknown:
            raise DapError(f"The mixture has no class {unknown[0]!r}; it has {', '.join(self.class_names)}.")
        return torch.tensor([self.class_names.index(n) for n in class_names], device=self.device)

    def null(self, n: int) -> Tensor:
        return torch.full((n,), -1, device=self.device)

    def posterior_mean(self, x: Tensor, t: Time, condition: Tensor) -> Tensor:
        """E[x_0 | x_t, c], (B, C, *spatial)."""
        a, sigma = self.schedule.level(t)
        v = a**2 * self.std**2 + sigma**2
        modes = self.means.to(x).flatten(0, 1).flatten(1)
        owner = torch.arange(len(self.means), device=x.device).repeat_interleave(self.means.shape[1])
        allowed = (condition[:, None] == owner) | (condition[:, None] < 0)
        gap = x.flatten(1)[:, None] - a * modes
        weight = (-gap.square().sum(2) / (2 * v)).masked_fill(~allowed, -torch.inf).softmax(1)
        prior = (weight @ modes).view_as(x)
        return prior + a * self.std**2 / v * (x - a * prior)

    def predict(
        self,
        x: Tensor,
        t: Time,
        condition: Tensor,
        *,
        layer: str | None = None,
        grad_through: GradThrough = "nothing",
    ) -> Prediction:
        a, sigma = self.schedule.level(t)
        x0 = self.posterior_mean(x, t, condition)
        eps = (x - a * x0) / sigma
        features = None if layer is None else {"x0": x0, "x": x}[self.check_layer(layer)].flatten(1)[:, None]
        if grad_through != "denoiser":
            eps, x0 = eps.detach(), x0.detach()
        return Prediction(eps, None, features, x0)

    @torch.no_grad()
    def tap(self, x: Tensor, t: Time, condition: Tensor, layer: str) -> Tensor:
        features = self.predict(x, t, condition, layer=layer).features
        assert features is not None
        return features

    def encode(self, images: Tensor) -> Tensor:
        return images * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_with_graph(latents).clamp(0, 1)

    def decode_with_graph(self, latents: Tensor) -> Tensor:
        return latents / 2 + 0.5

    def state(self) -> dict[str, Tensor]:
        return {"means": self.means, "std": torch.tensor(self.std)}
