"""Moments of features of real images: what a set as a whole is compared with.

For a class, a layer and a timestep t, these are the mean μ of φ(x_t) over noised real images and the spread of each channel.
Features are measured in that spread, because a few channels of a large diffusion transformer carry most of the variance of
its raw features, and a bare distance would see these channels alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from dap.backbones.base import Backbone
from dap.backbones.schedules import Time
from dap.base.seeding import generators, normal, seed_of
from dap.base.store import Store
from dap.data.bank import CHUNK, RealImages

SMALLEST = 1e-6
"""The smallest spread of a channel. A channel that never changes would be divided by zero."""


@dataclass(frozen=True)
class Moment:
    """The features of a class's real images at one layer and one t: their mean over images, and each channel's spread."""

    mean: Float[Tensor, "tokens width"]
    std: Float[Tensor, " width"]


class Moments:
    """Moments of the features of real images, for each class, layer and timestep, computed when they are asked for.

    Only sums are kept while the real images pass, so a layer of any width fits in memory.

    Args:
        source: the real images, at the backbone's size.
        backbone: the network whose features are taken.
        layers: the layers.
        reals: how many real images of each class are drawn at most.
        seed: the seed of the draw and of the noise.
        cache: a folder in which runs share moments, or None. Entries are keyed by everything that they depend on.

    Raises:
        DapError: a layer does not exist.
    """

    def __init__(
        self,
        source: RealImages,
        backbone: Backbone,
        layers: Sequence[str],
        *,
        reals: int = 500,
        seed: int = 0,
        cache: Path | None = None,
    ) -> None:
        self.source, self.backbone, self.reals, self.seed, self.cache = source, backbone, reals, seed, cache
        self.layers = tuple(backbone.check_layer(layer) for layer in layers)
        self._key = None if cache is None else self._key_of_all()
        self._latents: dict[int, Tensor] = {}
        self._found: dict[tuple[int, Time], dict[str, Moment]] = {}

    def begin(self, labels: Sequence[int]) -> None:
        """Forget what was kept of other labels."""
        self._latents = {k: v for k, v in self._latents.items() if k in labels}
        self._found = {k: v for k, v in self._found.items() if k[0] in labels}

    def at(self, label: int, t: Time, layer: str) -> Moment:
        """The moments of a class at a timestep, float32 on the backbone's device."""
        if (label, t) not in self._found:
            self._found[label, t] = self._stored(label, t)
        return self._found[label, t][layer]

    def latents(self, label: int) -> Float[Tensor, "n c *spatial"]:
        """The latents of the drawn real images of a class."""
        if label not in self._latents:
            n = min(self.reals, self.source.count(label))
            images = self.source.images(label, self.source.good(label, n, self._seed_of(label, "reals"), 1))
            parts = images.to(self.backbone.device).split(CHUNK)
            self._latents[label] = torch.cat([self.backbone.encode(part) for part in parts])
        return self._latents[label]

    def _stored(self, label: int, t: Time) -> dict[str, Moment]:
        def compute() -> dict[str, Tensor]:
            found = self._computed(label, t)
            return {f"{part} {layer}": getattr(m, part) for layer, m in found.items() for part in ("mean", "std")}

        if self._key is None:
            made = compute()
        else:
            assert self.cache is not None
            folder = self.cache / "moments" / self._key / f"{label:05d}"
            store = Store(folder, {"moments": self._key}, hold=0, cache=self.cache)
            made = store.get("moments", {"class": self.source.class_names[label], "t": t}, compute)
        # A copy has an address of its own, and a CPU's kernels round by address: see `FeatureBank`.
        there = {name: value.to(self.backbone.device, copy=True) for name, value in made.items()}
        return {layer: Moment(there[f"mean {layer}"], there[f"std {layer}"]) for layer in self.layers}

    @torch.no_grad()
    def _computed(self, label: int, t: Time) -> dict[str, Moment]:
        latents = self.latents(label)
        alpha, sigma = self.backbone.schedule.level(t)
        gens = generators([self._seed_of(label, "noise", t, index) for index in range(len(latents))])
        x = alpha * latents + sigma * normal(latents.shape[1:], gens, latents)
        condition = self.backbone.condition([self.source.class_names[label]] * len(x))
        sums: dict[str, Tensor] = {}
        squares: dict[str, Tensor] = {}
        for part, of in zip(x.split(CHUNK), condition.split(CHUNK), strict=True):
            for layer, found in self.backbone.features(part, t, of, self.layers).items():
                wide = found.double() if found.device.type != "mps" else found.float()
                sums[layer] = sums.get(layer, 0) + wide.sum(0)
                squares[layer] = squares.get(layer, 0) + wide.square().sum((0, 1))
        moments: dict[str, Moment] = {}
        for layer in self.layers:
            mean = sums[layer] / len(x)
            variance = squares[layer] / (len(x) * len(mean)) - mean.mean(0).square()
            moments[layer] = Moment(mean.float(), variance.clamp_min(SMALLEST**2).sqrt().float())
        return moments

    def _seed_of(self, label: int, *purpose: object) -> int:
        return seed_of(self.seed, self.source.class_names[label], "moments", *purpose)

    def _key_of_all(self) -> str:
        """A hash of everything that the moments of all classes depend on."""
        parts = {
            "layers": self.layers,
            "reals": self.reals,
            "seed": self.seed,
            "prompts": [self.backbone.card.template, self.backbone.card.negative_prompt],
            "classes": [list(self.source.class_names), list(self.backbone.class_names)],
            "source": self.source.fingerprint(),
            "weights": self.backbone.weights_hash(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
